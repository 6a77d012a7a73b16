"""Make the pictures of README: the end of the quickstart as a terminal shows it, and the report's first figure.

python scripts/make_pictures.py        runs `tiny_pipeline`, some minutes on two cores
"""

import os
import pty
import re
import subprocess
import sys
import tempfile
from pathlib import Path

from rich.console import Console
from rich.text import Text

PICTURES = Path(__file__).parents[1] / "recipes" / "pictures"
WIDTH = 96
NO_COLOUR = re.compile(r"\x1b\[[0-9;?]*[A-Za-ln-z]")  # what moves the cursor; what ends in m is colour
LIGHT = {"currentColor": "#1f2328", "var(--muted)": "#59636e", "var(--grid)": "#d8dee4"}
FIGURES = ("Comparison of models", "Training curves of ppo: reward, gold")  # by their labels in the report
GAP = 12
FRAME = """<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {{width}} {{height}}" \
font-family="ui-monospace, Menlo, Consolas, monospace" font-size="{char_height}px">
<style>{styles}</style>
<rect width="100%" height="100%" rx="8" fill="#292929"/>
<g transform="translate(12, 12)">{backgrounds}<g class="{unique_id}-matrix">{matrix}</g></g>
</svg>
"""


def shown(command: list[str], folder: Path) -> str:
    """What a terminal shows of a command that runs in `folder`."""
    leader, follower = pty.openpty()
    environment = {**os.environ, "COLUMNS": str(WIDTH), "TERM": "xterm-256color"}
    with subprocess.Popen(command, cwd=folder, stdout=follower, stderr=follower, env=environment) as running:
        os.close(follower)
        pieces = []
        while True:
            try:
                piece = os.read(leader, 4096)
            except OSError:  # the terminal is closed when its last user ends
                break
            if not piece:
                break
            pieces.append(piece)
    text = b"".join(pieces).decode().replace("\r\n", "\n")
    if running.returncode:
        sys.exit(f"{' '.join(command)} ended with {running.returncode}:\n{text[-2000:]}")
    return text


def last_stage(text: str) -> str:
    """From the heading of a pipeline's last stage on, without the bars that were there for a while."""
    lines = [line.rpartition("\r")[2] for line in NO_COLOUR.sub("", text).splitlines()]
    plain = [re.sub(r"\x1b\[[0-9;]*m", "", line) for line in lines]
    begin = max(place for place, line in enumerate(plain) if re.search(r"─ (\d+)/\1 ", line))
    shown = [(line, bare.strip()) for line, bare in zip(lines[begin:], plain[begin:], strict=True) if "━" not in bare]
    second = next(place for place, (_, bare) in enumerate(shown) if bare.startswith("reward model on"))
    after = next(place for place, (_, bare) in enumerate(shown) if bare.startswith("report:"))
    picked = [*shown[:second], ("", ""), *shown[after:]]  # the first of its two tables is enough
    return "\n".join(line for place, (line, bare) in enumerate(picked) if bare or (place and picked[place - 1][1]))


def terminal_picture(text: str) -> str:
    recorder = Console(record=True, width=WIDTH, file=open(os.devnull, "w"), force_terminal=True)  # noqa: SIM115
    recorder.print(Text.from_ansi(text))
    picture = recorder.export_svg(code_format=FRAME, unique_id="terminal")
    picture = re.sub(r' clip-path="[^"]*"', "", picture)  # of lines, which the frame above does not define
    return framed(picture)


def framed(picture: str) -> str:
    """With as much room below and to the right of its text as above and to the left; versions of rich leave none."""
    ends = [
        float(at) + float(size) for at, size in re.findall(r' x="([\d.]+)" y="[\d.]+" textLength="([\d.]+)"', picture)
    ]
    lowest = max(float(y) for y in re.findall(r' y="([\d.]+)" textLength', picture))
    return picture.replace("{width}", f"{max(ends) + 2 * GAP:.1f}").replace("{height}", f"{lowest + 2.5 * GAP:.1f}")


def report_picture(report: str) -> str:
    """The figures of the methods and of PPO's course, one above the other, in the colours of a light page."""
    figures = re.findall(r"<svg.*?</svg>", report, re.DOTALL)
    chosen = [next(each for each in figures if label in each.partition(">")[0]) for label in FIGURES]
    sizes = [re.search(r'viewBox="0 0 ([\d.]+) ([\d.]+)"', each) for each in chosen]
    widths, heights = ([float(size[group]) for size in sizes if size is not None] for group in (1, 2))
    parts, top = [], float(GAP)
    for figure, width, height in zip(chosen, widths, heights, strict=True):
        inside = figure.partition(">")[2].removesuffix("</svg>")
        parts.append(f'<svg x="{GAP}" y="{top}" width="{width}" height="{height}">{inside}</svg>')
        top += height + GAP
    whole = '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink" viewBox="0 0 '
    whole += f'{max(widths) + 2 * GAP} {top}"><rect width="100%" height="100%" fill="#ffffff"/>'
    picture = "\n".join([whole, *parts, "</svg>"])
    for variable, colour in LIGHT.items():
        picture = picture.replace(variable, colour)
    return picture + "\n"


def main() -> None:
    PICTURES.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        text = shown([sys.executable, "-m", "alignment", "run", "tiny_pipeline"], Path(folder))
        report = (Path(folder) / "runs" / "tiny_pipeline" / "evaluate" / "report.html").read_text()
    (PICTURES / "terminal.svg").write_text(terminal_picture(last_stage(text)))
    (PICTURES / "report.svg").write_text(report_picture(report))


if __name__ == "__main__":
    main()
