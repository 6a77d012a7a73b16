"""A verdict: what was asked, how it came out, and the figure that says so."""

from dataclasses import dataclass
from enum import Enum

from alignment.terminal import say_row


class Grade(str, Enum):
    """How a check of a run comes out, the gravest last."""

    ok = "ok"
    warn = "WARN"
    fail = "FAIL"


GRADE_WIDTH, NAME_WIDTH = 4, 27
STYLES = {Grade.ok: "green", Grade.warn: "bold yellow", Grade.fail: "bold red"}


@dataclass(frozen=True, slots=True)
class Verdict:
    """One line of a check."""

    name: str
    grade: Grade
    figure: str

    def print(self) -> None:
        say_row([(self.grade.value, STYLES[self.grade], GRADE_WIDTH), (self.name, "", NAME_WIDTH)], self.figure)


def graded(holds: bool, otherwise: Grade = Grade.fail) -> Grade:
    """`ok` where it holds."""
    return Grade.ok if holds else otherwise


def worst(grades: list[Grade]) -> Grade:
    """The gravest of some grades; ok where there is none."""
    return max(grades, key=list(Grade).index, default=Grade.ok)
