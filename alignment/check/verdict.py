"""A verdict: what was asked, how it came out, and the figure that says so."""

from dataclasses import dataclass

from alignment.config.vocabulary import Grade
from alignment.terminal import say_styled

NAME_WIDTH = 26
STYLES = {Grade.ok: "green", Grade.warn: "bold yellow", Grade.fail: "bold red"}


@dataclass(frozen=True, slots=True)
class Verdict:
    """One line of a check."""

    name: str
    grade: Grade
    figure: str

    def print(self) -> None:
        say_styled((f"{self.grade.value:<5}", STYLES[self.grade]), (f"{self.name:<{NAME_WIDTH}} {self.figure}", ""))


def graded(holds: bool, otherwise: Grade = Grade.fail) -> Grade:
    """`ok` where it holds."""
    return Grade.ok if holds else otherwise


def worst(grades: list[Grade]) -> Grade:
    """The gravest of some grades; ok where there is none."""
    return max(grades, key=list(Grade).index, default=Grade.ok)
