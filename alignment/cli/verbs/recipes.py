"""The verb `recipes`."""

from alignment.cli.parser import Parser, ending_with_reader
from alignment.cli.recipes import first_comment, own_folders, recipes, shipped

PAGE = """usage: alignment recipes [--config-dir DIR]

The recipes that `alignment run` knows by name, one line each. A recipe is a YAML file; `alignment run NAME --cfg job`
prints one with all its keys. One of yours may begin as a copy of that, or name a shipped one in its `defaults`.

  --config-dir DIR   those in DIR too; one there hides a shipped one of its name
"""


def main(arguments: list[str]) -> None:
    parser = Parser("recipes")
    parser.add_argument("--config-dir", "-cd")
    given = parser.parse_args(arguments)
    files = recipes([*own_folders(given.config_dir), shipped("recipes")])
    width = max(map(len, files))
    with ending_with_reader():
        for name in sorted(files):
            print(f"{name:<{width}}  {first_comment(files[name])}".rstrip())
