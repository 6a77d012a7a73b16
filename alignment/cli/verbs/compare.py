"""The verb `compare`."""

from alignment.cli.parser import Parser, ending_with_reader, existing_folder
from alignment.user_error import fail

PAGE = """usage: alignment compare RUN RUN [RUN ...]

Runs side by side, a column each: the settings in which they differ, their state and step, the main metrics of training,
those of the newest evaluation with 95% intervals where it has them. A folder of several runs, such as a sweep's, stands
for all of them. Of evaluations (`alignment evaluate`) what they found of each model; where two have a model's name and
prompts in common, the differences from the first, paired by prompt, with 95% intervals; else why there are none.

  alignment compare runs/dpo runs/orpo
  alignment compare runs/tiny_dpo/2026-01-31_12-00-00_sweep
  alignment compare runs/evaluate_a runs/evaluate_b

Redirected, a table has a tab between its cells and all its columns.
"""


def main(arguments: list[str]) -> None:
    parser = Parser("compare")
    parser.add_argument("folders", nargs="*")
    given = parser.parse_args(arguments)
    if not given.folders:
        fail("compare needs the folders of runs: alignment compare RUN RUN, their output_dirs")
    folders = [existing_folder("compare", folder) for folder in given.folders]

    from alignment.overview.compare import print_comparison

    with ending_with_reader():
        print_comparison(folders)
