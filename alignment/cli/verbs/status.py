"""The verb `status`."""

from alignment.cli.parser import Parser, ending_with_reader, existing_folder

PAGE = """usage: alignment status RUN [--all]
       alignment status FOLDER [--metric NAME ...] [--sort METRIC] [--descending]

How far a run is: its state, its step and the time left, its main metrics and those of its newest evaluation. RUN is its
output_dir. FOLDER holds several, as a sweep, a pipeline or runs/ do: each has a line, with the settings in which they
differ (of several tasks, their tasks: `alignment compare` has more) and their evaluations. Runs are looked for
three folders deep (runs/RECIPE/SWEEP/JOB); what lies deeper is told.

  --all                every metric of the run, with its meaning and unit
  --metric NAME        show this metric of each run in place of the usual ones; may be given several times
  --sort METRIC        the smallest first; --sort=-METRIC or --descending: the largest first

  alignment status runs/tiny_sft --sort eval/loss
  alignment status runs/tiny_dpo --metric eval/loss --metric eval/rewards/accuracy --sort=-eval/rewards/accuracy

States, with who, or with why where it is known; of a job on a cluster Slurm's own, such as PENDING:

  not started    its folder or its stage is there, and it has not begun
  running        its process is at work
  silent         its process is there, but has not stirred for a minute, as one that is stopped
  died           its process went without a word: killed, or short of memory
  interrupted    by Ctrl-C or a signal: at step N, that of its newest checkpoint, or before a step was saved
  failed         with the line that it ended with
  not finished   begun, and nothing tells of its process or its end
  finished       at its last step, or earlier for the reason that is told; nothing saved: train.max_steps=0
  damaged        one of its files cannot be read

Redirected, a table has a tab between its cells and all its columns.
"""


def main(arguments: list[str]) -> None:
    parser = Parser("status")
    parser.add_argument("folder", nargs="?")
    parser.add_argument("--all", action="store_true")
    parser.add_argument("--metric", action="append", default=[])
    parser.add_argument("--sort")
    parser.add_argument("--descending", action="store_true")
    given = parser.parse_args(arguments)
    if given.descending and given.sort is None:
        parser.error("--descending goes with --sort METRIC")
    folder = existing_folder("status", given.folder)

    from alignment.overview.show import print_status
    from alignment.overview.table import Asked

    sort = None if given.sort is None else given.sort.removeprefix("-")
    asked = Asked(tuple(given.metric), sort, given.descending or sort != given.sort)
    with ending_with_reader():
        print_status(folder, asked, every=given.all)
