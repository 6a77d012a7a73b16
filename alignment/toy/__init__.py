"""A language task with an exact gold score, on which every method can be tried in a minute on a CPU."""

from pathlib import Path

from alignment.toy.language import Question, ToyError
from alignment.toy.rows import demonstrations, pairs, prompts, scored, stepwise
from alignment.toy.scoring import CHECKS, checks, gold, last_question

__all__ = [
    "CHECKS",
    "Question",
    "ToyError",
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
