"""What the keys, presets and functions of earlier versions are called now: an old name is answered with the new one."""

from collections.abc import Collection

KEYS = {
    "ppo.replies": "num_samples",
    "samples": "num_samples",  # of rejection
    "best_of": "num_samples",  # of evaluate
    "missing_eos_penalty": "reward.missing_eos_penalty",
}
VALUES = {"world": "toy", "world_graded": "toy_graded"}  # of data and its format
MODULES = {"alignment.world": "alignment.toy"}


def key_now(key: str, known: Collection[str]) -> str | None:
    """The name of what was `key`, in a config that has the keys `known` where `key` was looked for."""
    name = KEYS.get(key)
    is_there = name is not None and ("." in key or name.partition(".")[0] in known)
    return name if is_there else None


def value_now(value: str, known: Collection[str]) -> str | None:
    """The name of what was `value`, where it is one of those that there are."""
    name = VALUES.get(value)
    return name if name in known else None


def function_now(path: str) -> str | None:
    """The dotted path of a function of this package that was at `path`."""
    module, _, name = path.rpartition(".")
    return f"{MODULES[module]}.{name}" if module in MODULES else None
