"""Write the tables of recipes/memory.md as `alignment plan` has them: python scripts/write_plans.py"""

import re
from pathlib import Path

from alignment.cli.plan import composed
from alignment.plan.changes import words
from alignment.plan.estimate import plan_of, planned
from alignment.plan.hardware import named
from alignment.plan.page import gb
from alignment.plan.roles import Counts, Planned
from alignment.plan.search import ways_to_fit

PAGE = Path(__file__).parents[1] / "recipes" / "memory.md"
DEVICES = ("1x24GB", "1x80GB", "8x80GB", "64x80GB")
SHAPES = dict.fromkeys(("dpo", "ppo"), ("llama-2-7b", "llama-3-8b", "llama-2-13b", "llama-3-70b"))
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


def table(recipe: str) -> str:
    lines = [f"| {recipe} | {' | '.join(DEVICES)} |", f"|---{'|---' * len(DEVICES)}|"]
    for shape in SHAPES[recipe]:
        counts = Counts()
        config = planned(composed(recipe, [], [], shape))
        lines.append(f"| {shape} | {' | '.join(cell(config, devices, counts) for devices in DEVICES)} |")
        print(lines[-1], flush=True)
    return "\n".join(lines)


def on_card(card: str, model: str) -> str:
    """A row of the table of recipes for a machine: GB a GPU of each method, as its recipe stands."""
    found = []
    for method in METHODS:
        config = planned(composed(f"{method}_{card}", [f"model={model}"], [], None))
        plan = plan_of(config, named(CARDS[card]), Counts())
        found.append(gb(plan.total) if plan.fits else f"{gb(plan.total)} (tight)")
    return f"| {model} | {' | '.join(found)} |"


def of_card(card: str) -> str:
    lines = [f"| {card} | {' | '.join(METHODS)} |", f"|---{'|---' * len(METHODS)}|"]
    for model in MODELS:
        lines.append(on_card(card, model))
        print(lines[-1], flush=True)
    return "\n".join(lines)


def main() -> None:
    tables = {recipe: table(recipe) for recipe in SHAPES} | {card: of_card(card) for card in CARDS}
    text = PAGE.read_text()
    for name, lines in tables.items():
        before = re.search(rf"^\| {name} \|.*\n(\|.*\n)+", text, re.MULTILINE)
        assert before is not None
        text = text.replace(before[0], f"{lines}\n")
    PAGE.write_text(text)


if __name__ == "__main__":
    main()
