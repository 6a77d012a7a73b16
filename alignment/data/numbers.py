"""What passes over all rows ask of each: a number, which rows that are kept have in a column of their table."""

from collections.abc import Callable, Sequence

import numpy as np
import xxhash

from alignment.config.batch import Layout
from alignment.data.pack import packed_length
from alignment.data.sequences import column
from alignment.data.tokenize import Example, row_length


def tokens_hash(example: Example) -> int:
    """Of all that a model reads of it, and of which tokens carry loss; in [0, 2**64)."""
    digest = xxhash.xxh3_64()
    for ids in (example.prompt_ids, *example.completion_ids):
        digest.update(len(ids).to_bytes(4, "little"))
        digest.update(ids.data)
    for mask in example.learned or ():
        digest.update(mask.data)
    return digest.intdigest()


def packed_as(layout: Layout) -> str:
    """The name of the number that is a row's length in this layout."""
    return f"{(Layout.separate if layout is Layout.separate else Layout.shared).value}_length"


def _packed(layout: Layout) -> Callable[[Example], int]:
    return lambda example: packed_length(example, layout) if example.completion_ids else len(example.prompt_ids)


NUMBERS: dict[str, tuple[Callable[[Example], float], type[np.generic]]] = {
    "margin": (lambda example: np.nan if example.margin is None else example.margin, np.float64),
    "weight": (lambda example: example.weight, np.float64),
    "prompt_length": (lambda example: len(example.prompt_ids), np.int64),
    "row_length": (row_length, np.int64),
    **{packed_as(layout): (_packed(layout), np.int64) for layout in (Layout.shared, Layout.separate)},
    "prompt_ids_hash": (lambda example: xxhash.xxh3_64_intdigest(example.prompt_ids.data), np.uint64),
    "tokens_hash": (tokens_hash, np.uint64),
}
"""name -> what it is of a row, and its kind."""


def numbers(examples: Sequence[Example], name: str) -> np.ndarray:
    """[examples], of those that `NUMBERS` names."""
    of, dtype = NUMBERS[name]
    return column(examples, name, of, dtype)
