"""A reward of two values, which the replies to a prompt often have alike."""

from typing import Any


def parity(prompts: list[Any], replies: list[str]) -> list[float]:
    return [float(len(reply) % 2) for reply in replies]
