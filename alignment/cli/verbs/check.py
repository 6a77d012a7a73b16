"""The verb `check`."""

from alignment.cli.composed import FLAGS, read_words
from alignment.cli.parser import Parser
from alignment.user_error import fail

PAGE = f"""usage: alignment check RECIPE [key=value ...] [flags]

Whether that run would be sound, in minutes, and nothing is written: which tokens carry loss, where replies end, lengths
against the limits, layouts, gradients, judges, several processes. One line each, ok, WARN or FAIL; exit code 1 where
one fails.

{FLAGS}"""


def main(arguments: list[str]) -> None:
    words = read_words(Parser("check"), arguments)
    if words is None:
        return
    if words.flags.multirun:
        fail("check takes one run, got -m")

    from alignment.cli.check import check_recipe

    check_recipe(words.recipe, words.overrides, words.folders)
