"""The verb `status`."""

from alignment.cli.parser import Parser, ending_with_reader, existing_folder

PAGE = """usage: alignment status RUN

How far a run is: its state, its step, its newest metrics. RUN is its output_dir; of a sweep or a pipeline, each of its
runs has a line. Of a job on a cluster Slurm is asked too.
"""


def main(arguments: list[str]) -> None:
    parser = Parser("status")
    parser.add_argument("folder", nargs="?")
    given = parser.parse_args(arguments)
    folder = existing_folder("status", given.folder)

    from alignment.slurm.status import print_status

    with ending_with_reader():
        print_status(folder)
