"""The verb `submit`."""

from contextlib import nullcontext

from alignment.cli.composed import FLAGS, read_words
from alignment.cli.parser import Parser, ending_with_reader

PAGE = f"""usage: alignment submit RECIPE cluster=slurm [key=value ...] [flags]

Hand a run to Slurm: the config is composed, checked and frozen in output_dir, with the job's script beside it. A sweep
becomes an array, a pipeline one job for each stage. `alignment status` and `alignment logs` follow it.

  alignment submit dpo cluster=slurm cluster.nodes=2 cluster.gpus_per_node=8 distributed=zero3 model.path=FOLDER ...

{FLAGS}  -m, --multirun       a sweep over values with commas
  --dry-run            print the script and stop
"""


def main(arguments: list[str]) -> None:
    parser = Parser("submit")
    parser.add_argument("--dry-run", action="store_true")
    words = read_words(parser, arguments)
    if words is None:
        return

    from alignment.cli.submit import submit_recipe

    given = words.flags
    with ending_with_reader() if given.dry_run else nullcontext():
        submit_recipe(words.recipe, words.overrides, words.folders, sweep=given.multirun, dry_run=given.dry_run)
