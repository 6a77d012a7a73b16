"""What a row says of its one reply: whether it is desirable, its score, or which of its steps are right."""

from collections.abc import Mapping

from alignment.config.data import ExampleKind
from alignment.data.margins import score_from
from alignment.data.row_parsers import Dialogues
from alignment.data.rows import Row

SINGLE_REPLIES = (
    ExampleKind.labeled,
    ExampleKind.scored,
    ExampleKind.steps,
)  # single replies, of which something is known
LABEL = ": whether the completion is desirable"
STEPS = ": a reply is `completions`, its steps, and `labels`, whether each is right"


def in_one(row: Row, separator: str) -> tuple[Row, tuple[int, ...]]:
    """The row with its `completions` as one, and where each of them ends in it, the separator included."""
    steps, labels = (row.require(key, need=STEPS) for key in ("completions", "labels"))
    if not isinstance(steps, list) or not all(isinstance(step, str) for step in steps) or not steps:
        raise row.error(f"field `completions` must be a list of texts, the steps of a reply, got {steps!r:.60}")
    if blank := [place for place, step in enumerate(steps) if not step.strip()]:
        raise row.error(f"completions[{blank[0]}] is blank: a step must have a text, of which its label speaks")
    if not isinstance(labels, list) or len(labels) != len(steps):
        raise row.error(f"field `labels` must be a list, one for each of the {len(steps)} steps, got {labels!r:.60}")
    steps = [*steps[:-1], steps[-1].rstrip()]
    steps[0] = steps[0].lstrip()
    places, end = [], 0
    for step in steps:
        end += len(step) + len(separator)
        places.append(end)
    return Row({**row.fields, "completion": separator.join(steps)}, row.source), tuple(places)


def labels_of(
    row: Row, dialogues: Dialogues, need: ExampleKind, scores: Mapping[str, float]
) -> tuple[bool | float, ...]:
    match need:
        case ExampleKind.labeled if "completion" in dialogues:
            return (row.truth("label", row.require("label", need=LABEL)),)
        case ExampleKind.scored:
            return (score_from(row.fields, row.source, scores),)
        case ExampleKind.steps:
            return tuple(row.truth(f"labels[{place}]", label) for place, label in enumerate(row.fields["labels"]))
        case _:
            return ()
