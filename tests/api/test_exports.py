"""Names that packages give when they are asked for: a type checker sees the same ones, and each is there."""

import ast
from importlib import import_module
from pathlib import Path

import pytest


@pytest.mark.parametrize("package", ["alignment", "alignment.config", "alignment.data", "alignment.models"])
def test_names_are_those_that_a_type_checker_sees(package: str) -> None:
    module = import_module(package)
    assert module.__file__ is not None
    tree = ast.parse(Path(module.__file__).read_text())
    (block,) = (node for node in tree.body if isinstance(node, ast.If))
    imports = [node for node in block.body if isinstance(node, ast.ImportFrom)]
    typed = {alias.name: node.module for node in imports for alias in node.names}
    assert sorted(typed) == module.__all__
    for name, home in typed.items():
        assert getattr(module, name) is getattr(import_module(str(home)), name)
