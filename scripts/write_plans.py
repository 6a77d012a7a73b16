"""Write the tables of recipes/memory.md as `alignment plan` has them: python scripts/write_plans.py [PATTERN]

PATTERN, a regular expression, names the rows that are made anew: `^ppo llama-3`, `24gb`; each is in the page as soon as
it is planned.
"""

import re
import sys
from pathlib import Path

from page_tables import put

from alignment.cli.plan import composed
from alignment.plan.changes import words
from alignment.plan.estimate import plan_of, planned
from alignment.plan.hardware import named
from alignment.plan.page import gb
from alignment.plan.roles import Counts, Planned
from alignment.plan.search import ways_to_fit

PAGE = Path(__file__).parents[1] / "recipes" / "memory.md"
DEVICES = ("1x24GB", "1x80GB", "8x80GB", "64x80GB")
RECIPES = ("dpo", "ppo")
SHAPES = ("llama-2-7b", "llama-3-8b", "llama-2-13b", "llama-3-70b")
CARDS = {"24gb": "1x24GB", "8x80gb": "8x80GB"}
METHODS = ("sft", "reward", "dpo", "ppo", "grpo")
MODELS = (
    "smollm2-1.7b",
    "gemma-3-1b",
    "llama-2-7b",
    "mistral-7b",
    "qwen2.5-7b",
    "llama-3-8b",
    "qwen3-8b",
    "gemma-2-9b",
)


def cell(config: Planned, devices: str, counts: Counts) -> str:
    """The recipe as it is where it fits, else with the cheapest changes."""
    hardware = named(devices)
    plan = plan_of(config, hardware, counts)
    if plan.fits and hardware.processes == 1:
        return f"as it is: {gb(plan.total)}"
    ways = ways_to_fit(config, hardware, counts, most=1)
    if not ways:
        return f"none ({gb(plan.total)})"
    how = " ".join(f"`{word}`" for word in words(ways[0].changes)) or "as it is"
    return f"{how}: {gb(ways[0].plan.total)}"


def cells_of(recipe: str, shape: str) -> list[str]:
    counts, config = Counts(), planned(composed(recipe, [], [], shape))
    return [cell(config, devices, counts) for devices in DEVICES]


def on_card(card: str, model: str) -> list[str]:
    """GB a GPU of each method, as its recipe for the card stands."""
    found = []
    for method in METHODS:
        config = planned(composed(f"{method}_{card}", [f"model={model}"], [], None))
        plan = plan_of(config, named(CARDS[card]), Counts())
        found.append(gb(plan.total) if plan.fits else f"{gb(plan.total)} (tight)")
    return found


def main() -> None:
    pattern = re.compile(sys.argv[1] if len(sys.argv) > 1 else "")
    for recipe in RECIPES:
        for shape in SHAPES:
            if pattern.search(f"{recipe} {shape}"):
                put(PAGE, (recipe, *DEVICES), shape, cells_of(recipe, shape), SHAPES)
    for card in CARDS:
        for model in MODELS:
            if pattern.search(f"{card} {model}"):
                put(PAGE, (card, *METHODS), model, on_card(card, model), MODELS)


if __name__ == "__main__":
    main()
