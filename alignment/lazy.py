"""Names of a package that are imported when they are asked for: `import alignment` loads neither Hydra nor torch."""

from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any

from alignment.user_error import nearest


def exports(package: str, homes: Mapping[str, str]) -> tuple[list[str], Callable[[str], Any]]:
    """A package's `__all__` and `__getattr__`. homes: name -> the module that it is defined in, or that it is."""

    def found(name: str) -> Any:
        if name not in homes:
            raise AttributeError(f"{package} has no {name!r}{nearest(name, homes)}")
        module = import_module(homes[name])
        return module if homes[name] == f"{package}.{name}" else vars(module)[name]

    return sorted(homes), found
