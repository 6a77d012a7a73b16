"""alignment VERB: `run RECIPE [overrides and flags]`, `recipes`."""

import argparse
import os
import sys
from importlib.metadata import version
from pathlib import Path
from typing import NoReturn

from hydra import main as hydra_main
from hydra._internal.utils import get_args_parser
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from alignment.cli.compose import compose, first_comment, recipes, register, resolve, shipped
from alignment.cli.errors import explain, nearest
from alignment.config.parts import ConfigError
from alignment.config.tasks import PipelineConfig, RunConfig

USAGE = """usage: alignment VERB ...

  alignment run RECIPE [key=value ...] [flags]   run a recipe; the run's folder is output_dir
      RECIPE          a shipped recipe's name, or the path of your own .yaml
      key=value       anything of the config: alignment run tiny_dpo loss.beta=0.2 train.max_steps=50
      --help          the presets and the whole config of this recipe
      --cfg job       print the composed config and stop
      -m              sweep: alignment run tiny_dpo -m loss.beta=0.1,0.2
      --config-dir D  look for recipes and presets in D first
  alignment recipes                              the recipes, one line each
  alignment --version
"""
VERBS = ("run", "recipes")
USER_ERROR = 2
HYDRA_SETTINGS = (  # the run's folder is ours, written by tasks/run.py; Hydra keeps its hands off it
    "hydra.run.dir=.",
    "hydra.sweep.dir=${output_dir}",
    "hydra.sweep.subdir=.",
    "hydra.output_subdir=null",
    "hydra/job_logging=none",
)


def main() -> None:
    arguments = sys.argv[1:]
    if not arguments or arguments[0] in ("-h", "--help"):
        print(USAGE, end="")
        sys.exit(0 if arguments else USER_ERROR)
    verb, *rest = arguments
    if verb == "--version":
        print(version("preference-alignment"))
    elif verb == "recipes":
        list_recipes(rest)
    elif verb == "run":
        run(rest)
    else:
        fail(f"no such verb {verb!r}{nearest(verb, list(VERBS))}; `alignment --help` lists them")


def list_recipes(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(prog="alignment recipes")
    parser.add_argument("--config-dir", type=Path, action="append", default=[], help="a folder of your own recipes")
    folders = [*parser.parse_args(arguments).config_dir, shipped("recipes")]
    found = recipes(folders)
    width = max(map(len, found))
    for name, path in found.items():
        print(f"{name:<{width}}  {first_comment(path)}")


def run(arguments: list[str]) -> None:
    """Hydra's own command line, with the recipe in front and overrides and flags in any order."""
    if arguments and arguments[0] in ("-h", "--help"):
        print(USAGE, end="")
        sys.exit(0)
    if not arguments or arguments[0].startswith("-") or "=" in arguments[0]:
        fail("run needs a recipe: alignment run RECIPE [key=value ...]; `alignment recipes` lists them")
    recipe, *rest = arguments
    if recipe.endswith((".yaml", ".yml")):
        path = Path(recipe)
        if not path.is_file():
            fail(f"no recipe file {recipe!r}")
        recipe, rest = path.stem, ["--config-dir", str(path.parent), *rest]
    overrides = get_args_parser().parse_known_intermixed_args(rest)[0].overrides
    flags = [argument for argument in rest if argument not in overrides]
    sys.argv = [sys.argv[0], "--config-name", recipe, *flags, *overrides, *HYDRA_SETTINGS]
    os.environ["HYDRA_FULL_ERROR"] = "1"  # errors come to us instead of being printed over many lines
    register()
    try:
        hydra_main(version_base="1.3", config_path=str(shipped("conf")), config_name=recipe)(run_composed)()
    except (HydraException, OmegaConfBaseException) as error:
        fail(f"{recipe}: {explain(error)}")


def run_composed(composed: DictConfig) -> None:
    """One job: resolve, then run. A user's mistake ends here in one line, anything else with its traceback."""
    recipe = HydraConfig.get().job.config_name
    try:
        start(resolve(composed))
    except ConfigError as error:
        fail(f"{recipe}: {error}")
    except OmegaConfBaseException as error:
        fail(f"{recipe}: {explain(error)}")


def start(config: RunConfig) -> None:
    """Imports the tasks only now: a mistake in a config is told before torch is loaded."""
    from alignment.data.records import DataError
    from alignment.tasks import pipeline
    from alignment.tasks.run import execute

    hydra_config = HydraConfig.get()
    if hydra_config.mode is RunMode.MULTIRUN:
        config.output_dir = f"{config.output_dir}/{hydra_config.job.num}"
    try:
        if isinstance(config, PipelineConfig):
            pipeline.run(config, compose)
        else:
            execute(config)
    except DataError as error:
        raise ConfigError(str(error)) from error


def fail(message: str) -> NoReturn:
    print(f"alignment: {message}", file=sys.stderr)
    sys.exit(USER_ERROR)
