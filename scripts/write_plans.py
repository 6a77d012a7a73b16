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


def main() -> None:
    text = PAGE.read_text()
    for recipe in SHAPES:
        lines = table(recipe)
        before = re.search(rf"^\| {recipe} \|.*\n(\|.*\n)+", text, re.MULTILINE)
        assert before is not None
        text = text.replace(before[0], f"{lines}\n")
    PAGE.write_text(text)


if __name__ == "__main__":
    main()
