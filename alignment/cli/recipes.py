"""Where presets and recipes lie, and what they say of themselves. Needs neither Hydra nor torch."""

import os
from pathlib import Path

from alignment.config.errors import ConfigError
from alignment.user_error import fail, nearest


def shipped(name: str) -> Path:
    """`conf` and `recipes`: beside the package in a checkout, inside it in a wheel."""
    package = Path(__file__).parents[1]
    packaged = package / f"_{name}"
    return packaged if packaged.is_dir() else package.parent / name


def recipes(folders: list[Path]) -> dict[str, Path]:
    """name -> file of every recipe in these folders; the first folder that has a name wins."""
    return {path.stem: path for folder in reversed(folders) for path in sorted(folder.glob("*.yaml"))}


def first_comment(path: Path) -> str:
    """What a recipe or preset says of itself: the comment in its first line, or nothing."""
    first, *_ = [*path.read_text(errors="replace").splitlines(), ""]
    return first.removeprefix("#").strip() if first.startswith("#") else ""


def may_be_recipe(word: str) -> bool:
    """A path may hold an equals sign, as folders of sweeps do. No key of a config has a slash before its own."""
    if os.path.isfile(os.path.expanduser(word)):
        return True
    is_path = word.endswith(".yaml") and "/" in word.partition("=")[0]
    return is_path or not ("=" in word or word.startswith("~"))


def is_path(recipe: str) -> bool:
    """Whether a recipe is asked for by its file, and not by its name."""
    return recipe.endswith((".yaml", ".yml"))


def found(recipe: str, own: list[Path]) -> tuple[str, list[Path]]:
    """`find_recipe` of a command, which ends where there is no such recipe."""
    try:
        return find_recipe(recipe, own)
    except ConfigError as error:
        fail(str(error))


def find_recipe(recipe: str, own: list[Path]) -> tuple[str, list[Path]]:
    """A recipe's name, and the user's folders to look in: `own`, and that of the recipe where a path is given.

    Raises:
        ConfigError: there is no such recipe.
    """
    if not is_path(recipe):
        known = recipes([*own, shipped("recipes")])
        if recipe not in known:
            config = Path(recipe) / "config.yaml"
            if config.is_file():
                ways = (
                    f"`alignment run {config}` goes on with it; model.path={recipe} and `alignment chat {recipe}` take"
                )
                raise ConfigError(f"no recipe {recipe!r}: that is a run's folder: {ways} its model")
            near = nearest(recipe, known) or nearest(recipe.lower(), known)
            raise ConfigError(f"no recipe {recipe!r}{near}; `alignment recipes` lists them")
        return recipe, own
    path = Path(os.path.expanduser(recipe))
    if not path.is_file():
        near = nearest(path.name, (file.name for file in path.parent.glob("*.yaml")))
        raise ConfigError(f"no recipe file {recipe!r}{near}; `alignment recipes` lists those that are shipped")
    if path.suffix != ".yaml":
        raise ConfigError(f"a recipe's file must end in .yaml, got {recipe!r}")
    return path.stem, [path.parent.resolve(), *own]


def own_folders(folder: str | None) -> list[Path]:
    if folder is None:
        return []
    try:
        return [require_folder(folder)]
    except ConfigError as error:
        fail(f"--{error}")


def require_folder(folder: str | Path) -> Path:
    """Raises:
    ConfigError: there is no such folder of recipes and presets.
    """
    if not Path(folder).is_dir():
        raise ConfigError(f"config-dir must be a folder, got {str(folder)!r}")
    return Path(folder).resolve()
