"""Rewards of the runs that are killed, for replies of models that have hardly learned anything: none knows the toy task
well enough for its gold score to tell two of them apart."""

from typing import Any


def parity(prompts: list[Any], replies: list[str]) -> list[float]:
    """Of two values, which the replies to a prompt often have alike."""
    return [float(len(reply) % 2) for reply in replies]


def shorter(prompts: list[Any], replies: list[str]) -> list[float]:
    return [-float(len(reply)) for reply in replies]
