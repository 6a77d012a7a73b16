"""From files to tensors: row -> Record -> Example -> Batch, in one direction, each decision in one place."""

from typing import TYPE_CHECKING

from alignment.lazy import exports

if TYPE_CHECKING:
    from alignment.data.batches import Packer
    from alignment.data.collate import PackedCollator, as_batch, features
    from alignment.data.load import load_split
    from alignment.data.pack import Batch
    from alignment.data.records import DataError, Record, Source
    from alignment.data.tokenize import Example, Limits, Truncation, encode

__all__, __getattr__ = exports(
    __name__,
    {
        "Batch": "alignment.data.pack",
        "DataError": "alignment.data.records",
        "Example": "alignment.data.tokenize",
        "Limits": "alignment.data.tokenize",
        "PackedCollator": "alignment.data.collate",
        "Packer": "alignment.data.batches",
        "Record": "alignment.data.records",
        "Source": "alignment.data.records",
        "Truncation": "alignment.data.tokenize",
        "as_batch": "alignment.data.collate",
        "encode": "alignment.data.tokenize",
        "features": "alignment.data.collate",
        "load_split": "alignment.data.load",
    },
)
