"""The verb `run`."""

from alignment.cli.composed import FLAGS, read_words
from alignment.cli.parser import Parser

PAGE = f"""usage: alignment run RECIPE [key=value ...] [flags]

Run a recipe. What it makes is in its output_dir: config.yaml, metrics.jsonl, checkpoints/, model/. An interrupted run
goes on from its newest checkpoint by the same command, where output_dir names its folder, or by that folder's config:
alignment run FOLDER/config.yaml.

  alignment run tiny_dpo                                    a toy, in a minute, without a download
  alignment run tiny_dpo loss.beta=0.2 train.max_steps=50   with other settings
  alignment run tiny_dpo -m loss.beta=0.1,0.2               a sweep: one run for each value
  alignment run dpo model.path=FOLDER data.train.path=FILE  your model and your pairs

{FLAGS}  -m, --multirun       a sweep over values with commas
"""


def main(arguments: list[str]) -> None:
    words = read_words(Parser("run"), arguments)
    if words is None:
        return

    from alignment.cli.run import run_recipe

    run_recipe(words.recipe, words.overrides, words.folders, sweep=words.flags.multirun)
