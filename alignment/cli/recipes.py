"""Where presets and recipes lie, and what they say of themselves. Needs neither Hydra nor torch."""

from pathlib import Path


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
