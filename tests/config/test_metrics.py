"""Each metric that the source logs has its meaning in the glossary."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

from alignment.config.alarm import ALARMS
from alignment.config.metrics import FAMILIES, HEADLINES, METRICS, SHORT, headlines, held_out, metric

PACKAGE = Path(__file__).parents[2] / "alignment"
ROOMS = ("losses", "training", "generation", "rl", "tasks")


def logged() -> Iterator[tuple[str, str]]:
    """(place, name) wherever a `Mean` is given a name: in a dict, as a part of `Metrics(...)`, by assignment."""
    for path in (path for room in ROOMS for path in sorted((PACKAGE / room).glob("*.py"))):
        for node in ast.walk(ast.parse(path.read_text())):
            named: list[tuple[ast.expr | None, ast.expr]] = []
            if isinstance(node, ast.Dict):
                named = list(zip(node.keys, node.values, strict=True))
            elif isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Subscript):
                named = [(node.targets[0].slice, node.value)]
            elif isinstance(node, ast.Call) and ast.unparse(node.func) == "Metrics":
                named = [(ast.Constant(each.arg), each.value) for each in node.keywords]
            for key, value in named:
                is_mean = isinstance(value, ast.Call) and ast.unparse(value.func).split(".")[0] == "Mean"
                if isinstance(key, ast.Constant) and isinstance(key.value, str) and is_mean:
                    yield f"{path.name}:{node.lineno}", key.value


def test_every_name_of_the_source_has_a_meaning() -> None:
    names = {name: place for place, name in logged()}
    assert len(names) > 30
    assert {name: place for name, place in names.items() if metric(name) is None} == {}


def test_the_parts_of_a_step_have_a_meaning() -> None:
    texts = "".join(path.read_text() for room in ROOMS for path in (PACKAGE / room).glob("*.py"))
    parts = {line.split('"')[1] for line in texts.split("timer.part(")[1:]}
    assert len(parts) > 5
    assert [part for part in parts if metric(f"time/{part}_s") is None] == []


@pytest.mark.parametrize("name", ["eval/loss", "eval/own set/rewards/accuracy", "eval/harmless/reward", *ALARMS])
def test_names_of_evaluations_and_alarms(name: str) -> None:
    assert metric(f"alarm/{name}" if name in ALARMS else name) is not None


def test_a_held_out_set_is_told_from_its_metric() -> None:
    assert held_out("eval/rewards/accuracy") == ("", "rewards/accuracy")
    assert held_out("eval/harmless/rewards/accuracy") == ("harmless", "rewards/accuracy")
    assert held_out("eval/reward/helpful") == ("", "reward/helpful")  # one of reward.models
    assert held_out("eval/own/unknown") == ("", "own/unknown") and metric("eval/own/unknown") is None


def test_the_main_ones_are_known_and_in_order() -> None:
    assert {*HEADLINES, *SHORT} <= METRICS.keys()
    names = ["eval/b/loss", "grad_norm", "eval/a/kl", "eval/a/loss", "kl", "loss"]
    assert headlines(names) == ["loss", "kl", "eval/a/loss", "eval/a/kl", "eval/b/loss"]
    assert all(each.meaning for each in (METRICS | FAMILIES).values())
