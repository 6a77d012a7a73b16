"""A small world with an exact gold score, on which every method can be tried in a minute on a CPU."""

from pathlib import Path

from alignment.world.generate import demonstrations, pairs, prompts, scored, stepwise
from alignment.world.gold import CHECKS, checks, gold, last_question
from alignment.world.language import Question, WorldError

__all__ = [
    "CHECKS",
    "Question",
    "WorldError",
    "checks",
    "demonstrations",
    "gold",
    "last_question",
    "pairs",
    "prompts",
    "scored",
    "stepwise",
    "tokenizer_path",
]


def tokenizer_path() -> Path:
    """The folder of the shipped tokenizer, for `AutoTokenizer.from_pretrained`."""
    return Path(__file__).parent / "tokenizer"
