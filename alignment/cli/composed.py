"""The words of a verb that takes a recipe: `run`, `check` and `submit RECIPE [key=value ...] [flags]`."""

from argparse import Namespace
from dataclasses import dataclass
from pathlib import Path

from alignment.cli.parser import HELP, Parser, ending_with_reader
from alignment.cli.recipes import found, may_be_recipe, own_folders
from alignment.cli.spellings import as_override
from alignment.user_error import fail

FLAGS = """RECIPE is a name that `alignment recipes` lists, or the path of a .yaml of your own. Behind it, in any order:

  key=value            set a key of the recipe: loss.beta=0.2 model.path=FOLDER
  group=preset         choose a preset: model=pretrained_lora data=hh_rlhf distributed=zero2
  --help               the recipe's presets and keys with their meaning; --help model.lora: of one group of keys
  --cfg job            print the composed config and stop; --resolve fills in its ${...}
  --config-dir DIR     look for recipes and presets in DIR before the shipped ones
"""
OF_OTHERS = {  # flags that another verb has
    "--dry-run": "`alignment submit`",
    "--step": "`alignment export` and `alignment push`",
    "--pairs": "`alignment evaluate`",
    "--for": "`alignment plan`",
    "--shape": "`alignment plan`",
    "--mfu": "`alignment plan`",
}


@dataclass(frozen=True, slots=True)
class Words:
    """What a user has typed behind the verb."""

    recipe: str
    """Its name, by which it is found in `folders` and where the shipped ones are."""
    overrides: list[str]
    folders: list[Path]
    """The user's, of recipes and presets."""
    flags: Namespace


def read_words(parser: Parser, arguments: list[str]) -> Words | None:
    """The recipe is the first word that is no flag. None where the words ask for its help or its config, which this has
    shown."""
    parser.add_argument("words", nargs="*")
    parser.add_argument("--config-dir", "-cd")
    parser.add_argument("--resolve", action="store_true")
    parser.add_argument("--package", "-p")
    what = parser.add_mutually_exclusive_group()
    what.add_argument(*HELP, dest="help", action="store_true")
    what.add_argument("--cfg", "-c", choices=["job", "hydra", "all"])
    what.add_argument("--multirun", "-m", action="store_true")
    verb = parser.verb
    given, unknown = parser.parse_known_intermixed_args(arguments)
    if unknown:
        way = f"keys have no dashes before them, {as_override(unknown)}" if unknown[0].strip("-") else "none is needed"
        if (others := OF_OTHERS.get(unknown[0].partition("=")[0])) is not None:
            way = f"it is a flag of {others}"
        parser.error(f"unrecognized arguments: {' '.join(unknown)} ({way})")
    if not given.words or not may_be_recipe(given.words[0]):
        fail(f"{verb} needs a recipe: alignment {verb} RECIPE [key=value ...]; `alignment recipes` lists them")
    if given.resolve and given.cfg is None:
        fail("--resolve goes with --cfg")
    recipe, folders = found(given.words[0], own_folders(given.config_dir))

    from alignment.cli.overrides import readable
    from alignment.cli.run import print_config, print_help

    words = given.words[1:]
    if given.help:
        groups = [word for word in words if "=" not in word and not word.startswith("~")]
        with ending_with_reader():
            print_help(
                recipe, [readable(word, is_sweep=False) for word in words if word not in groups], folders, groups
            )
        return None
    overrides = [readable(word, is_sweep=given.multirun) for word in words]
    if given.cfg is not None:
        with ending_with_reader():
            print_config(recipe, overrides, folders, cfg=given.cfg, resolve=given.resolve, package=given.package)
        return None
    return Words(recipe, overrides, folders, given)
