"""`alignment run RECIPE --help`: the presets to choose among, and every key with its value and its meaning."""

import ast
import inspect
from collections.abc import Iterator
from dataclasses import is_dataclass
from enum import Enum
from pathlib import Path
from textwrap import dedent
from typing import Any, get_type_hints

from hydra.core.object_type import ObjectType
from omegaconf import DictConfig, OmegaConf

from alignment.cli.compose import current_hydra
from alignment.cli.overrides import written
from alignment.cli.recipes import first_comment, recipes

KEY_WIDTH = 40
NOT_OFFERED = ("hydra", "task")  # Hydra's own settings; what the recipe is


def page(recipe: str, composed: DictConfig, folders: list[Path]) -> str:
    """The whole help of a recipe as it is composed. `folders` hold recipes and presets, the first wins."""
    about = first_comment(recipes(folders)[recipe])
    lines = [f"{recipe}: {about}", "", f"  alignment run {recipe} [key=value ...] [flags]", ""]
    lines += ["Presets, chosen by group=name (* in use):", *_presets(composed, folders), ""]
    lines += ["Keys, set by key=value, as they are in this recipe:", *_keys(composed, "")]
    return "\n".join(line.rstrip() for line in lines)


def _presets(composed: DictConfig, folders: list[Path]) -> Iterator[str]:
    loader = current_hydra().config_loader
    chosen = composed.hydra.runtime.choices
    for group in loader.get_group_options("", ObjectType.GROUP):
        if group in NOT_OFFERED:
            continue
        for name in loader.get_group_options(group):
            mark = "*" if chosen.get(group) == name else " "
            yield f"{mark} {f'{group}={name}':<{KEY_WIDTH}}  {_about_preset(group, name, folders)}"


def _about_preset(group: str, name: str, folders: list[Path]) -> str:
    files = [path for folder in folders if (path := folder / group / f"{name}.yaml").is_file()]
    return first_comment(files[0]) if files else ""


def _keys(tree: DictConfig, prefix: str) -> Iterator[str]:
    owner = OmegaConf.get_type(tree)
    assert owner is not None
    docs, hints = field_docs(owner), get_type_hints(owner)
    for name in (name for name in map(str, tree) if name != "hydra"):
        node = tree._get_node(name)
        if isinstance(node, DictConfig) and is_dataclass(OmegaConf.get_type(node)):
            yield from _keys(node, f"{prefix}{name}.")
        else:
            words = [docs.get(name, ""), _choices(hints.get(name))]
            about = " ".join(word for word in words if word)
            yield f"  {f'{prefix}{name}={_value(tree, name)}':<{KEY_WIDTH}}" + (f"  # {about}" if about else "")


def _value(tree: DictConfig, name: str) -> str:
    plain = OmegaConf.to_container(tree, resolve=False, enum_to_str=True)
    assert isinstance(plain, dict)
    value = plain[name]
    return value if isinstance(value, str) else written(value)


def _choices(hint: Any) -> str:
    is_enum = isinstance(hint, type) and issubclass(hint, Enum)
    return f"One of {', '.join(member.value for member in hint)}." if is_enum else ""


def field_docs(owner: type) -> dict[str, str]:
    """field -> the string under it, of a dataclass and of those it inherits from."""
    docs: dict[str, str] = {}
    for cls in reversed(owner.__mro__[:-1]):
        body = ast.parse(dedent(inspect.getsource(cls))).body[0]
        assert isinstance(body, ast.ClassDef)
        for field, text in zip(body.body, body.body[1:], strict=False):
            if isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name):
                match text:
                    case ast.Expr(value=ast.Constant(value=str() as said)):
                        docs[field.target.id] = said
    return docs
