"""What a user gives where a model, a tokenizer or rows are asked for is a path, a run's folder or a name on the hub:
whoever opens it asks `located`, or what asks that (`input_places`, `find_model`, `files_of`), where it lies."""

import ast
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, get_args, get_type_hints

import pytest

from alignment.config.tasks import TASKS

PACKAGE = Path(__file__).parents[2] / "alignment"
OPENS = ("Path", "PurePath", "RunFolder", "open", "exists", "isfile", "isdir", "from_pretrained", "from_file")
OF_TEXT = ("is_relative_to", "name", "stem")  # what is asked of a path's text, wherever it lies
SAME = ("str", "list", "sorted", "items", "values", "expanduser", "model_of", "input_paths", "hub_names")  # still given
OWN = ("self", "folder", "os")  # what has a `path` that is no key's


def hub_fields(root: Any, seen: set[Any]) -> Iterator[str]:
    """The names of the fields that may hold a name on the hub, of a config and of those in it."""
    if root in seen:
        return
    seen.add(root)
    hints = get_type_hints(root)
    for field in fields(root):
        if "hub" in field.metadata:
            yield field.name
        for kind in (hints[field.name], *get_args(hints[field.name])):
            if is_dataclass(kind):
                yield from hub_fields(kind, seen)


FIELDS = {name for root in TASKS.values() for name in hub_fields(root, set())} - {"join"}  # rows, and str.join


def called(call: ast.Call) -> str:
    function = call.func
    return (
        function.id if isinstance(function, ast.Name) else function.attr if isinstance(function, ast.Attribute) else ""
    )


def is_given(node: ast.AST, names: set[str]) -> bool:
    """Whether an expression is what the user gave. names: the variables that are."""
    match node:
        case ast.Attribute(value=ast.Name(id=owner), attr="path") if owner in OWN:
            return False
        case ast.Attribute(attr=name):
            return name in FIELDS
        case ast.Name(id=name):
            return name in names
        case ast.IfExp(body=one, orelse=other):
            return is_given(one, names) or is_given(other, names)
        case ast.NamedExpr(value=inner) | ast.Subscript(value=inner) | ast.Starred(value=inner):
            return is_given(inner, names)
        case ast.BoolOp(values=several) | ast.List(elts=several) | ast.Tuple(elts=several) | ast.Dict(values=several):
            return any(is_given(each, names) for each in several)
        case ast.Call(args=several) if called(node) in SAME:
            of = [node.func.value] if isinstance(node.func, ast.Attribute) else []
            return called(node) in SAME[-2:] or any(is_given(each, names) for each in [*several, *of])
    return False


def given_names(function: ast.AST) -> set[str]:
    """The variables of a function that hold what the user gave."""
    names = set[str]()
    for _ in range(3):  # by way of one another
        for node in ast.walk(function):
            match node:
                case ast.Assign(targets=targets, value=value):
                    pairs = [(target, value) for target in targets]
                case ast.For(target=target, iter=value) | ast.comprehension(target=target, iter=value):
                    pairs = [(target, value)]
                case ast.AnnAssign(target=target, value=ast.AST() as value) | ast.NamedExpr(target=target, value=value):
                    pairs = [(target, value)]
                case _:
                    continue
            for target, value in pairs:
                if isinstance(target, ast.Tuple) and isinstance(value, ast.Tuple):
                    pairs += zip(target.elts, value.elts, strict=False)  # one may be starred
                elif is_given(value, names):
                    names |= {each.id for each in ast.walk(target) if isinstance(each, ast.Name)}
    return names


def opened(source: str) -> Iterator[str]:
    """The calls that take what a user gave for a place."""
    tree = ast.parse(source)
    text = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Attribute) and node.attr in OF_TEXT}
    for function in ast.walk(tree):
        if isinstance(function, ast.FunctionDef):
            names = given_names(function)
            for node in ast.walk(function):
                is_open = isinstance(node, ast.Call) and called(node) in OPENS and id(node) not in text
                if is_open and any(is_given(each, names) for each in node.args):
                    yield f"{node.lineno}: {ast.unparse(node)}"


def test_what_is_given_becomes_a_place_in_one_way() -> None:
    own = [PACKAGE / "config" / f"{name}.py" for name in ("hub", "inputs", "folders", "files")]  # the one way
    wrong = [
        f"{path.relative_to(PACKAGE)}:{line}"
        for path in sorted(PACKAGE.rglob("*.py"))
        if path not in own
        for line in opened(path.read_text())
    ]
    assert wrong == []


@pytest.mark.parametrize(
    ("body", "is_wrong"),
    {
        "at once": ("return Path(config.model.path).is_file()", True),
        "by a variable": ("start, n = config.model.path, 1; return open(start)", True),
        "of several": ("return [RunFolder(path) for name, path in config.runs.items()]", True),
        "by its key": ("return [Path(path) for key, path in input_paths(config)]", True),
        "loaded": ("return AutoTokenizer.from_pretrained(config.tokenizer or config.path)", True),
        "located": ("place = located(config.model.path); return Path(place)", False),
        "its text": ("return Path(config.model.path).is_relative_to(folder)", False),
        "what was found": ("folder = find_model(config.path, 'model.path'); return Path(folder.path)", False),
    }.values(),
)
def test_the_rule_sees_it(body: str, is_wrong: bool) -> None:
    assert (list(opened(f"def function(config):\n    {body}\n")) != []) is is_wrong
