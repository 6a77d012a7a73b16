"""The verb `export`."""

from pathlib import Path

from alignment.cli.parser import Parser
from alignment.runs.folder import RunFolder
from alignment.user_error import fail

PAGE = """usage: alignment export RUN [--step N] [--out FOLDER]

The model of a checkpoint in Hugging Face form, as a finished run leaves it in RUN/model: for a run that goes on, or was
stopped. RUN is its output_dir. An adapter is merged into its base.

  --step N       of the checkpoint after N steps, not of the newest
  --out FOLDER   there, and not in RUN/exported/step-N
"""


def main(arguments: list[str]) -> None:
    parser = Parser("export")
    parser.add_argument("words", nargs="*")
    parser.add_argument("--step", type=int)
    parser.add_argument("--out", type=Path)
    given = parser.parse_intermixed_args(arguments)
    if len(given.words) != 1:
        fail("export needs one run: alignment export RUN [--step N] [--out FOLDER]")
    folder = Path(given.words[0])
    if not RunFolder(folder).config.is_file():
        fail(f"export: a run's folder holds config.yaml, got {str(folder)!r}")

    from alignment.cli.export import export_run

    export_run(folder, step=given.step, out=given.out)
