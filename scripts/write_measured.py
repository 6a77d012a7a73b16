"""Write the tables "planned against measured" of recipes/memory.md: python scripts/write_measured.py [PATTERN]

On a CPU: each run is planned, and run with all its tensors counted. PATTERN, a regular expression, names the rows that
are made anew, `SmolLM2`, `^PPO` or `two processes: SFT`; each is in the page as soon as it is measured. README's table
is put together from theirs.
"""

import json
import os
import re
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

from measured_runs import IN_TWO, REAL, RUNS, STAGES, checkpointing, is_here, measured, write_inputs
from page_tables import put, replaced, rows_of

from alignment.distributed.launch import launch
from alignment.plan.roles import Counts

ROOT = Path(__file__).parents[1]
PAGE, README = ROOT / "recipes" / "memory.md", ROOT / "README.md"
HEAD = "run", "without checkpointing", "with it"
HEAD_OF_TWO = "two processes", *(f"ZeRO {stage}" for stage in STAGES)
METHODS = {
    "SFT": "SFT",
    "reward model": "reward",
    "DPO": "DPO",
    "ORPO": "ORPO",
    "PPO": "PPO",
    "PPO, one backbone": "PPO, one backbone",
    "GRPO": "GRPO",
}
"""Rows of the page, by what they are of -> columns of README's table."""
KINDS = ("all weights", "LoRA", "QLoRA", "SmolLM2-135M", "two processes")
"""Its rows."""
SHOWN = re.compile(r"([\d.]+) planned, ([\d.]+) alive: ([\d.]+)")


def main() -> None:
    pattern = re.compile(sys.argv[1] if len(sys.argv) > 1 else "")
    alone = {name: words for name, words in {**RUNS, **REAL}.items() if pattern.search(name)}
    in_two = {name: words for name, words in IN_TWO.items() if pattern.search(f"{HEAD_OF_TWO[0]}: {name}")}
    lacking = [name for name, words in {**alone, **in_two}.items() if not is_here(words)]
    if lacking:
        raise SystemExit(f"no pretrained model, of which these are: {'; '.join(lacking)} (bash scripts/real_model.sh)")
    with TemporaryDirectory() as folder:
        os.chdir(folder)
        write_inputs({**alone, **in_two})
        for number, (name, words) in enumerate(alone.items()):
            put(PAGE, HEAD, name, cells_of(number, words), [*RUNS, *REAL])
        for number, (name, words) in enumerate(in_two.items()):
            put(PAGE, HEAD_OF_TWO, name, cells_of_two(number, words), list(IN_TWO))
    lines = summary(PAGE.read_text())
    README.write_text(replaced(README.read_text(), lines[0], lines))


def cells_of(number: int, words: list[str]) -> list[str]:
    """Without checkpointing, and with it."""
    counts, found = Counts(), []
    for is_on in (False, True):
        found.append(cell(measured(checkpointing(words, is_on=is_on), f"run{number}_{is_on}", counts)))
    return found


def cells_of_two(number: int, words: list[str]) -> list[str]:
    """Of each stage, of the one of two processes that took most."""
    found = []
    for stage in STAGES:
        out = Path(f"two{number}_{stage}.json")
        own = [*words, f"distributed.zero={stage}", "launch.processes=2"]
        launch([str(Path(__file__).with_name("measured_runs.py")), str(out), *own], 2)
        found.append(cell(json.loads(out.read_text())))
    return found


def cell(found: dict[str, float]) -> str:
    planned, alive = found["planned"], found["alive"]
    return f"{planned / 1e6:.1f} planned, {alive / 1e6:.1f} alive: {planned / alive:.2f}"


def summary(page: str) -> list[str]:
    """README's table, put together from the page's: of all rows of a kind and a method the least and the most that was
    planned, as shares of what was measured."""
    ratios: dict[tuple[str, str], list[float]] = {}
    for head, kind in ((HEAD, None), (HEAD_OF_TWO, HEAD_OF_TWO[0])):
        for name, cells in rows_of(page, head).items():
            place = kind or kind_of(name), method_of(name)
            shown = [SHOWN.fullmatch(each) for each in cells]
            ratios.setdefault(place, []).extend(float(each[3]) for each in shown if each is not None)
    lines = [f"|planned / measured|{'|'.join(METHODS.values())}|", f"|{'---|' * (1 + len(METHODS))}"]
    for kind in KINDS:
        found = [ratios.get((kind, method), []) for method in METHODS]
        if not any(found):
            continue
        lines.append(f"|{kind}|{'|'.join(span(each) for each in found)}|")
    return lines


def kind_of(name: str) -> str:
    """Of a row of the page, the row of README's table that it goes into."""
    if KINDS[3] in name:
        return KINDS[3]
    is_packed = "QLoRA" in name or "int8" in name
    return "QLoRA" if is_packed else "LoRA" if "LoRA" in name else "all weights"


def method_of(name: str) -> str:
    """Of a row of the page, the key of `METHODS`."""
    first = name.partition(",")[0]
    if first != "PPO":
        return first
    return "PPO, one backbone" if "one backbone" in name else "PPO"


def span(ratios: list[float]) -> str:
    if not ratios:
        return "–"
    return "–".join(dict.fromkeys(f"{each:.2f}" for each in (min(ratios), max(ratios))))


if __name__ == "__main__":
    main()
