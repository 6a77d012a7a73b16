"""The packed batch in the form that other trainers move about: a collator for transformers' Trainer and its like."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np

from alignment.config.batch import Layout
from alignment.data.pack import Batch, pack
from alignment.data.records import Source
from alignment.data.tokenize import Example


def features(examples: Sequence[Example]) -> list[dict[str, Any]]:
    """Examples as the rows of a data set that `PackedCollator` takes, each with its number."""
    return [
        {
            "row": row,
            "prompt_ids": example.prompt_ids.tolist(),
            "completion_ids": [ids.tolist() for ids in example.completion_ids],
            **({} if example.margin is None else {"margin": example.margin}),
            **({} if example.learned is None else {"learned": [mask.tolist() for mask in example.learned]}),
            **({"labels": list(example.labels)} if example.labels else {}),
            **({"ends": list(example.ends)} if example.ends else {}),
            "weight": example.weight,
        }
        for row, example in enumerate(examples)
    ]


@dataclass(frozen=True, slots=True)
class PackedCollator:
    """Tokenized rows to one packed batch, as a dict of tensors: `as_batch(inputs)` has it back, on their device.

    A row is {"row": its number, "prompt_ids": [...], "completion_ids": [[...], ...]}, a pair's completions being the
    chosen one and the rejected one, each with its end token; it may have a `margin` and a `weight`.
    """

    pad_id: int
    layout: Layout = Layout.shared
    """shared where the model keeps branches apart (`settle_layout` asks it), else separate."""

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        """Raises:
        ValueError: the rows have no completions, or unequally many.
        """
        examples = [_example(row) for row in rows]
        numbers = [int(row["row"]) for row in rows]
        batch = pack(examples, numbers, layout=Layout(self.layout), pad_id=self.pad_id)
        parts = {field.name: getattr(batch, field.name) for field in fields(batch)}
        return {name: part for name, part in parts.items() if part is not None}


def as_batch(inputs: Mapping[str, Any]) -> Batch:
    """The batch that `PackedCollator` has made, wherever its tensors are now."""
    parts: list[Any] = [inputs.get(field.name) for field in fields(Batch)]
    given: list[Any] = [tuple(part) if isinstance(part, list) else part for part in parts]
    return Batch(*given)


def _example(row: Mapping[str, Any]) -> Example:
    completions = tuple(np.array(ids, dtype=np.int32) for ids in row["completion_ids"])
    if not completions or not all(map(len, completions)):
        raise ValueError(f"row {row['row']} must have completions, each of a token at least")
    learned = row.get("learned")
    return Example(
        prompt_ids=np.array(row["prompt_ids"], dtype=np.int32),
        completion_ids=completions,
        margin=row.get("margin"),
        source=Source("collated", int(row["row"])),
        finished=(True,) * len(completions),
        learned=None if learned is None else tuple(np.array(mask, dtype=bool) for mask in learned),
        labels=tuple(row.get("labels", ())),
        ends=tuple(row.get("ends", ())),
        weight=row.get("weight", 1.0),
    )
