"""What `alignment plan --for` proposes to type makes the run fit, on as many devices as it says; the first of it is in
recipes/memory.md."""

import re
from itertools import pairwise
from pathlib import Path

import pytest
from page_tables import rows_of
from write_plans import DEVICES, RECIPES, SHAPES

from alignment.cli.plan import composed
from alignment.plan.command import planned_lines
from alignment.plan.estimate import plan_of, planned
from alignment.plan.hardware import named
from alignment.plan.host import host_of
from alignment.plan.page import gb
from alignment.plan.roles import Counts

PAGE = Path(__file__).parents[2] / "recipes" / "memory.md"
ALL = [(recipe, shape, devices) for recipe in RECIPES for shape in SHAPES for devices in DEVICES]
OFTEN = (("dpo", "llama-2-7b", "8x80GB"),)
COUNTS = Counts()
TAKEN = re.compile(
    r"(\S+) of \S+ GB on (?:each of (\d+) x|1) GPU of (\d+) GB(?: and (\S+) GB of CPU memory of a machine)?"
    r"(?:, batch\.max_tokens=(\d+))?"
)
FEWEST = re.compile(r"the fewest that it fits on, (?:as it is|with (?P<words>.*?)): (?P<taken>\S+ of .*)")
LAUNCHED = ("launch.processes=", "cluster")  # which a page leaves out, whose columns say it
COMMAND = re.compile(r"^    alignment plan (\w+) --shape (\S+) --for (\S+) (.*)$", re.MULTILINE)
IN_4_BITS = (("dpo", "GB of 1x24GB with passes of {:,} tokens"), ("ppo", "GB with 16 replies"))


def proposed(lines: list[str]) -> list[tuple[list[str], str]]:
    """What to type, and what is then taken, of each way that is shown, the fewest devices last."""
    shown = [
        (line.split(), after.strip().partition("; costs: ")[0])
        for line, after in pairwise(lines)
        if after.startswith("    ")
    ]
    fewest = FEWEST.fullmatch(lines[-1])
    return shown if fewest is None else [*shown, ((fewest["words"] or "").split(), fewest["taken"])]


@pytest.mark.parametrize(
    ("recipe", "shape", "devices"),
    [pytest.param(*each, marks=() if each in OFTEN else pytest.mark.slow) for each in ALL],
)
def test_what_is_proposed_can_be_typed_and_fits(recipe: str, shape: str, devices: str) -> None:
    lines = planned_lines(recipe, composed(recipe, [], [], shape), devices, None)
    found = proposed(lines)
    assert found and lines[-1].startswith("the fewest that it fits on"), lines
    for words, text in found:
        taken = TAKEN.fullmatch(text)
        assert taken is not None, text
        size, number, memory, max_tokens = taken[1], int(taken[2] or 1), taken[3], taken[5]
        config = planned(composed(recipe, words, [], shape))
        plan = plan_of(config, named(f"{number}x{memory}GB"), COUNTS)
        assert plan.fits and gb(plan.total) == size, (words, text)
        host = host_of(plan)
        elsewhere = host.offloaded + host.activations
        assert taken[4] == (gb(elsewhere) if elsewhere else None), (words, text)
        assert config.processes() == number == plan.hardware.processes, (words, text)
        assert max_tokens is None or int(max_tokens) == plan.max_tokens
    words, text = found[0]
    cell = rows_of(PAGE.read_text(), (recipe, *DEVICES))[shape][DEVICES.index(devices)]
    how = " ".join(f"`{word}`" for word in words if not word.startswith(LAUNCHED)) or "as it is"
    assert cell == f"{how}: {text.split()[0]}", "python scripts/write_plans.py"


@pytest.mark.parametrize(("recipe", "shape"), [(recipe, shape) for recipe in RECIPES for shape in SHAPES[:1]])
def test_the_page_s_settings_fit(recipe: str, shape: str) -> None:
    for devices, cell in zip(DEVICES, rows_of(PAGE.read_text(), (recipe, *DEVICES))[shape], strict=True):
        words, size = re.findall(r"`([^`]+)`", cell), cell.rpartition(": ")[2]
        plan = plan_of(planned(composed(recipe, words, [], shape)), named(devices), COUNTS)
        assert plan.fits and gb(plan.total) == size, (devices, cell)


@pytest.mark.parametrize(
    ("recipe", "said"), [pytest.param(*each, marks=() if each[0] == "dpo" else pytest.mark.slow) for each in IN_4_BITS]
)
def test_adapters_on_a_base_in_4_bits_fit_one_card(recipe: str, said: str) -> None:
    """DPO of 7 billion weights, and PPO of 8 billion with its four roles, as the page has them."""
    page = PAGE.read_text()
    ((_, shape, devices, words),) = [found for found in COMMAND.findall(page) if found[0] == recipe]
    plan = plan_of(planned(composed(recipe, words.split(), [], shape)), named(devices), COUNTS)
    assert plan.fits and f"{gb(plan.total)} {said.format(plan.max_tokens)}" in " ".join(page.split())
