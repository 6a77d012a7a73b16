"""The verb `logs`."""

from alignment.cli.parser import Parser, ending_with_reader, existing_folder

PAGE = """usage: alignment logs RUN [-f] [--rank N]

The newest log of a run that was submitted to a cluster; RUN is its output_dir.

  -f, --follow   go on printing what comes
  --rank N       of the process of that rank alone
"""


def main(arguments: list[str]) -> None:
    parser = Parser("logs")
    parser.add_argument("folder", nargs="?")
    parser.add_argument("--follow", "-f", action="store_true")
    parser.add_argument("--rank", type=int)
    given = parser.parse_args(arguments)
    folder = existing_folder("logs", given.folder)

    from alignment.slurm.logs import print_log

    with ending_with_reader():
        print_log(folder, rank=given.rank, follow=given.follow)
