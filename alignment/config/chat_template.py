"""The chat templates that have a name."""

from enum import Enum


class ChatTemplate(str, Enum):
    """The chat templates that have a name (alignment/data/templates.py has them)."""

    chatml = "chatml"
    llama3 = "llama3"
    zephyr = "zephyr"
    gemma = "gemma"
    mistral = "mistral"
    plain = "plain"


NAMES = tuple(each.value for each in ChatTemplate)
TEMPLATE = {"input": True, "names": NAMES}  # a file that is read, or one of these
