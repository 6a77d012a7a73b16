"""A split of the data in tokens, and what is said of it."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from alignment.config.data import Template
from alignment.data.records import DataError, Record
from alignment.data.sequences import chained
from alignment.data.tokenize import Example, Truncation

# With which a prompt begins that a template has laid out already; a tokenizer's own control tokens are refused.
LAID_OUT = re.compile(
    r"\s*(<s>\s*)?(<\|im_start\|>|<\|begin_of_text\|>|<\|start_header_id\|>|<start_of_turn>|<bos>|\[INST\]"
    r"|<\|(user|system)\|>|Human:(?=[\s\S]*\n\nAssistant:))|\n\nHuman:"
)


@dataclass(slots=True)
class Loaded:
    """A split, row by row, and what happened on the way."""

    records: Sequence[Record]
    examples: Sequence[Example]
    skipped: list[DataError]
    truncation: Truncation
    sources: dict[str, int] = field(default_factory=dict)  # name -> rows, in their order; {}: one, without a name
    without_calls: int = 0  # dialogues
    given_system: int = 0  # dialogues that begin with data.system
    weighted: int = 0  # prompts with a `weight`, which only rows that are learned from have
    dropped: int = 0  # dialogues without their last turns, which have no reply
    labels: tuple[bool | float, ...] = ()  # two different ones, or the one that all have
    twice: int = 0  # prompts that begin as another family's template has them
    first_twice: str = ""

    def summary(self, name: str) -> str:
        """One line for the terminal."""
        of_each = ", ".join(f"{source} {rows}" for source, rows in self.sources.items())
        parts = [f"{name}: {len(self.examples)} rows" + (f" ({of_each})" if of_each else "")]
        if self.skipped:
            parts.append(f"{len(self.skipped)} bad rows skipped (first: {self.skipped[0]})")
        for what, count in (("prompts", self.truncation.prompts), ("completions", self.truncation.completions)):
            if count:
                parts.append(f"{count} {what} truncated")
        if self.truncation.steps:
            parts.append(f"{self.truncation.steps} steps beyond data.max_length, with their labels")
        if len(self.labels) == 1 and name == "train":
            parts.append(f"all labels alike, {self.labels[0]}: there is no difference to learn")
        if twice := self.laid_out_twice():
            parts.append(twice)
        if self.without_calls:
            parts.append(
                f"{self.without_calls} dialogues without their `tool_calls`, which the chat template leaves out"
            )
        if self.given_system:
            parts.append(f"{self.given_system} rows begin with data.system")
        if self.weighted:
            parts.append(f"{self.weighted} prompts with a `weight`, which is not read: prompts count alike")
        if self.dropped:
            parts.append(f"{self.dropped} dialogues without their last turns, which have no reply")
        return ", ".join(parts)

    def laid_out_twice(self) -> str:
        """How many prompts begin as another family's template has them, and the way out; "" where none does."""
        if not self.twice:
            return ""
        what = f"{self.twice} prompts begin as another template has them (first: {self.first_twice})"
        way = "data.template=none takes texts as they are, data.format=hh whole dialogues of Human: and Assistant:"
        return f"{what} and are laid out once more ({way})"


def joined(sources: Mapping[str, Loaded]) -> Loaded:
    """Several sources as one split, each behind the one before it."""
    of_all = list(sources.values())
    return Loaded(
        records=chained([loaded.records for loaded in of_all]),
        examples=chained([loaded.examples for loaded in of_all]),
        skipped=[error for loaded in of_all for error in loaded.skipped],
        truncation=Truncation(
            prompts=sum(loaded.truncation.prompts for loaded in of_all),
            completions=sum(loaded.truncation.completions for loaded in of_all),
            steps=sum(loaded.truncation.steps for loaded in of_all),
        ),
        sources={name: len(loaded.examples) for name, loaded in sources.items()},
        without_calls=sum(loaded.without_calls for loaded in of_all),
        given_system=sum(loaded.given_system for loaded in of_all),
        weighted=sum(loaded.weighted for loaded in of_all),
        dropped=sum(loaded.dropped for loaded in of_all),
        labels=tuple(dict.fromkeys(label for loaded in of_all for label in loaded.labels))[:2],
        twice=sum(loaded.twice for loaded in of_all),
        first_twice=next((loaded.first_twice for loaded in of_all if loaded.twice), ""),
    )


def known(records: Sequence[Record], examples: Sequence[Example]) -> dict[str, Any]:
    """What is known of rows together, by the names that `Loaded` has for it."""
    marks = [(record.source, mark) for record in records if (mark := _laid_out(record))]
    return {
        "dropped": sum(record.dropped > 0 for record in records),
        "labels": tuple(dict.fromkeys(label for example in examples for label in example.labels))[:2],
        "twice": len(marks),
        "first_twice": "{}, {!r}".format(*marks[0]) if marks else "",
    }


def _laid_out(record: Record) -> str:
    """The mark of another family with which the first question begins; "" where it does not."""
    asked = next((turn["content"] for turn in record.prompt if turn["role"] == "user"), "")
    found = LAID_OUT.match(asked) if record.template is Template.chat else None
    return found[0].strip() if found else ""
