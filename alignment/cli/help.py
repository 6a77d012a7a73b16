"""`alignment run RECIPE --help`: the presets to choose among, and every key with its value and its meaning."""

import ast
import inspect
import json
from collections.abc import Iterator
from dataclasses import is_dataclass
from enum import Enum
from pathlib import Path
from textwrap import dedent, wrap
from typing import Any, get_args, get_type_hints

from hydra.core.object_type import ObjectType
from omegaconf import DictConfig, OmegaConf

from alignment.cli.compose import current_hydra
from alignment.cli.overrides import written
from alignment.cli.recipes import first_comment, recipes
from alignment.config.errors import ConfigError
from alignment.user_error import nearest

KEY_WIDTH, PAGE_WIDTH = 40, 120
STAGES = "stages"  # of a pipeline, which have a section of their own
NOT_OFFERED = ("hydra", "task")  # Hydra's own settings; what the recipe is
FIRST = ("model", "data", "train")  # groups of keys that every reader looks for; then the method's own
LAST = ("batch", "seed", "output_dir", "checkpoint", "resume", "log", "distributed", "launch", "cluster")


def page(recipe: str, composed: DictConfig, folders: list[Path], groups: list[str]) -> str:
    """The help of a recipe as it is composed. `folders` hold recipes and presets, the first wins.

    Args:
        groups: such as model.lora: of these keys alone. []: the whole page.

    Raises:
        ConfigError: there is no such group of keys.
    """
    about = first_comment(recipes(folders)[recipe])
    lines = [f"{recipe}: {about}", ""]
    if groups:
        return "\n".join(_without_blanks([*lines, *(line for group in groups for line in _of_group(composed, group))]))
    lines += [f"  alignment run {recipe} [key=value ...] [flags]", ""]
    if STAGES in composed:
        lines += [*_stages(composed), ""]
    lines += ["Presets, chosen by group=name (* in use):", *_presets(composed, folders), ""]
    lines += ["Keys, set by key=value, as they are in this recipe (--help model.lora: one group and its values):"]
    lines += [line for name in _in_order(composed) for line in _section(composed, name)]
    return "\n".join(_without_blanks(lines))


def _without_blanks(lines: list[str]) -> list[str]:
    return [line.rstrip() for line in lines]


def _in_order(composed: DictConfig) -> list[str]:
    names = [name for name in map(str, composed) if name not in ("hydra", STAGES)]
    first, last = ([name for name in group if name in names] for group in (FIRST, LAST))
    return [*first, *(name for name in names if name not in FIRST + LAST), *last]


def _section(composed: DictConfig, name: str) -> Iterator[str]:
    """The keys of one part of the config; parts stand apart, single keys do not."""
    if _is_part(composed._get_node(name)):
        yield ""
    yield from _keys(composed, "", [name])


def _of_group(composed: DictConfig, group: str) -> list[str]:
    tree, names = composed, group.strip(".").split(".")
    if names[0] == STAGES and STAGES in composed:
        return list(_stages(composed, *names[1:2]))
    for place, name in enumerate(names):
        known = [str(key) for key in tree if key != "hydra"]
        if name not in known:
            rule = f"--help {group}: there is no group of keys {'.'.join(names[: place + 1])!r} in this recipe"
            within = "".join(f"{each}." for each in names[:place])
            raise ConfigError(f"{rule}{nearest(name, known, within)}; {', '.join(known)}")
        node = tree._get_node(name)
        if not (isinstance(node, DictConfig) and _is_part(node)):
            return list(_keys(tree, "".join(f"{each}." for each in names[:place]), [name], with_values=True))
        tree = node
    return list(_keys(tree, f"{group}.", [str(name) for name in tree], with_values=True))


def _stages(composed: DictConfig, only: str | None = None) -> Iterator[str]:
    """A pipeline's stages, each with its recipe and what it sets of it; `only` that of this name.

    Raises:
        ConfigError: there is no such stage.
    """
    names = [str(stage.name) for stage in composed.stages]
    if only is not None and only not in names:
        raise ConfigError(f"stages must be one of {', '.join(names)}, got {only!r}{nearest(only, names)}")
    shown = only or names[0]
    yield "Stages, one after the other, each a recipe with keys of its own (alignment run RECIPE --help):"
    for stage in composed.stages:
        if only in (None, stage.name):
            is_left_out = not stage.enabled or (composed.only and stage.name not in composed.only)
            name = str(stage.recipe) + (" (left out)" if is_left_out else "")
            yield from _key(f"{stage.name}: ", name, str(stage.about))
            for key in map(str, stage.set):
                text = f"stages.{stage.name}.set.{key}={shown_value(stage.set, key)}"
                yield from wrap(text, PAGE_WIDTH, initial_indent=" " * 6, subsequent_indent=" " * 8)
    yield ""
    yield from _key("stages.NAME.set.KEY=", "VALUE", f"Sets a key of a stage's recipe: stages.{shown}.set.seed=1")
    yield from _key("stages.NAME.enabled=", "false", f"Leaves a stage out: stages.{shown}.enabled=false")
    yield from _key("only=", f"[{shown}]", "Runs these stages alone.")


def _is_part(node: Any) -> bool:
    return isinstance(node, DictConfig) and not node._is_none() and is_dataclass(OmegaConf.get_type(node))


def _presets(composed: DictConfig, folders: list[Path]) -> Iterator[str]:
    loader = current_hydra().config_loader
    chosen = composed.hydra.runtime.choices
    groups = loader.get_group_options("", ObjectType.GROUP)
    offered = [group for group in groups if group not in NOT_OFFERED and group in composed]
    for group in sorted(offered, key=lambda group: (group in LAST, group not in FIRST)):
        for name in loader.get_group_options(group):
            mark = "*" if chosen.get(group) == name else " "
            yield f"{mark} {f'{group}={name}':<{KEY_WIDTH}}  {_about_preset(group, name, folders)}"


def _about_preset(group: str, name: str, folders: list[Path]) -> str:
    files = [path for folder in folders if (path := folder / group / f"{name}.yaml").is_file()]
    return first_comment(files[0]) if files else ""


def _keys(tree: DictConfig, prefix: str, names: list[str], *, with_values: bool = False) -> Iterator[str]:
    """`with_values`: each value of a choice has a line with what it does, and not its name alone."""
    owner = OmegaConf.get_type(tree)
    assert owner is not None
    docs, hints = field_docs(owner), get_type_hints(owner)
    for name in names:
        node = tree._get_node(name)
        if isinstance(node, DictConfig) and _is_part(node):
            yield from _keys(node, f"{prefix}{name}.", list(map(str, node)), with_values=with_values)
        else:
            words = [docs.get(name, ""), "" if with_values else _choices(hints.get(name))]
            yield from _key(f"{prefix}{name}=", shown_value(tree, name), " ".join(" ".join(words).split()))
            yield from _values(hints.get(name)) if with_values else ()


def _key(key: str, value: str, about: str) -> Iterator[str]:
    """`key=value  # what it means`, on as many lines as the words need; a long value has lines of its own."""
    if len(value) > PAGE_WIDTH // 2:
        yield from wrap(f"{key}{value}", PAGE_WIDTH, initial_indent="  ", subsequent_indent="    ")
        begin = " " * (KEY_WIDTH + 2)
    else:
        begin = f"  {f'{key}{value}':<{KEY_WIDTH}}"
    if not about:
        yield begin
        return
    first, *more = wrap(about, max(PAGE_WIDTH - max(len(begin), KEY_WIDTH + 2) - 4, 40), break_on_hyphens=False)
    yield f"{begin}  # {first}"
    yield from (f"{'':{KEY_WIDTH + 2}}  # {line}" for line in more)


def shown_value(tree: DictConfig, name: str) -> str:
    """As it is typed on the command line; a text of signs that cannot be seen, in quotes."""
    plain = OmegaConf.to_container(tree, resolve=False, enum_to_str=True)
    assert isinstance(plain, dict)
    value = plain[name]
    if not isinstance(value, str):
        return written(value)
    return value if value and value.isprintable() else json.dumps(value)


def choices_of(hint: Any) -> type[Enum] | None:
    """What a key chooses among, itself, in a list or beside null; None: it takes no such values."""
    kinds = [kind for kind in (hint, *get_args(hint)) if isinstance(kind, type) and issubclass(kind, Enum)]
    return kinds[0] if kinds else None


def _choices(hint: Any) -> str:
    kind = choices_of(hint)
    return "" if kind is None else f"One of {', '.join(member.value for member in kind)}."


def _values(hint: Any) -> Iterator[str]:
    """Each value of a choice, with its words where it has them, beneath those of its key."""
    kind = choices_of(hint)
    said = {} if kind is None else field_docs(kind)
    begin = f"{'':{KEY_WIDTH + 2}}  #   "
    for each in kind or ():
        text = f"{each.value}: {' '.join(said[each.name].split())}" if each.name in said else str(each.value)
        yield from wrap(text, PAGE_WIDTH, initial_indent=begin, subsequent_indent=f"{begin}  ", break_on_hyphens=False)


def field_docs(owner: type) -> dict[str, str]:
    """field -> the string under it, of a dataclass and of those it inherits from, and of a choice's members."""
    docs: dict[str, str] = {}
    for cls in reversed(owner.__mro__):
        if not cls.__module__.startswith("alignment") and not is_dataclass(cls):
            continue
        body = ast.parse(dedent(inspect.getsource(cls))).body[0]
        assert isinstance(body, ast.ClassDef)
        for field, text in zip(body.body, body.body[1:], strict=False):
            match field, text:
                case (
                    ast.AnnAssign(target=ast.Name(id=name)) | ast.Assign(targets=[ast.Name(id=name)]),
                    ast.Expr(value=ast.Constant(value=str() as said)),
                ):
                    docs[name] = said
    return docs
