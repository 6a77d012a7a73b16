"""Every layout on real files: which rows are bad is known, and every other row keeps its text."""

from pathlib import Path

import pytest

from alignment.config.data import ExampleKind, Format
from alignment.config.margin import MarginScale
from alignment.data.columns import peeked
from alignment.data.detect import detect
from alignment.data.formats import parse
from alignment.data.margins import margin_from
from alignment.data.read import read_each, read_rows
from alignment.data.records import DataError, Record

UNORDERED = "chosen: roles out of order"
EMPTY = "chosen: the reply is empty"
HH_BAD = dict.fromkeys((221, 763, 827, 939, 1232, 1467), UNORDERED) | {335: EMPTY, 1013: EMPTY}
FILES = [
    ("hh_harmless.train.jsonl.gz", Format.hh, ExampleKind.pairs, 1500, HH_BAD | {317: "rejected: roles out of order"}),
    ("hh_harmless.train.jsonl.gz", Format.hh, ExampleKind.demonstrations, 1500, HH_BAD),
    ("hh_harmless.test.jsonl.gz", Format.hh, ExampleKind.pairs, 300, {120: EMPTY}),
    ("hh_harmless.test.jsonl.gz", Format.hh, ExampleKind.prompts, 300, {}),
    (
        "alpaca_eval_graded.train.jsonl.gz",
        Format.native,
        ExampleKind.pairs,
        5055,
        {4608: "chosen and rejected are the same"},
    ),
    ("alpaca_eval_graded.test.jsonl.gz", Format.native, ExampleKind.pairs, 315, {}),
    ("alpaca_eval_sft.train.jsonl.gz", Format.alpaca, ExampleKind.demonstrations, 560, {}),
    ("alpaca_en_demo.json.gz", Format.alpaca, ExampleKind.demonstrations, 999, {}),
    ("dpo_en_demo.json.gz", Format.sharegpt, ExampleKind.pairs, 300, {}),
    ("dpo_zh_demo.json.gz", Format.sharegpt, ExampleKind.pairs, 300, {}),
    ("kto_en_demo.json.gz", Format.messages, ExampleKind.prompts, 300, {}),
]


def parsed(path: Path, format: Format, need: ExampleKind) -> tuple[list[Record], list[DataError]]:
    scale = MarginScale.small if "graded" in path.name else MarginScale.none
    records, errors = [], []
    for source, row in read_rows(path):
        try:
            records.append(parse(row, source, format, need, lambda row, at: margin_from(row, at, scale=scale)))
        except DataError as error:
            errors.append(error)
    return records, errors


@pytest.mark.parametrize(("name", "format", "need", "rows", "bad"), FILES)
def test_the_bad_rows(
    shared: Path, name: str, format: Format, need: ExampleKind, rows: int, bad: dict[int, str]
) -> None:
    records, errors = parsed(shared / "data" / name, format, need)
    assert len(records) + len(errors) == rows
    assert [error.source.line for error in errors] == sorted(bad)
    for error in errors:
        assert error.what.startswith(bad[error.source.line])


def test_undesirable_replies_are_no_demonstrations(shared: Path) -> None:
    path = shared / "data" / "kto_en_demo.json.gz"
    records, errors = parsed(path, Format.messages, ExampleKind.demonstrations)
    assert (len(records), len(errors)) == (150, 150)
    undesirable = [source.line for source, row in read_rows(path) if not row["label"]]
    assert [error.source.line for error in errors] == undesirable


def test_a_transcript_is_put_together_again(shared: Path) -> None:
    path = shared / "data" / "hh_harmless.test.jsonl.gz"
    rows = {source.line: row for source, row in read_rows(path)}
    names = {"user": "Human", "assistant": "Assistant"}
    for record in parsed(path, Format.hh, ExampleKind.pairs)[0]:
        for key, reply in zip(("chosen", "rejected"), record.completions, strict=True):
            text = "".join(f"\n\n{names[turn['role']]}: {turn['content']}" for turn in [*record.prompt, *reply])
            assert text.split() == rows[record.source.line][key].split()


def test_the_layout_is_told_from_the_rows(shared: Path) -> None:
    told = {name: detect(peeked(read_each(shared / "data" / name))[0], "data", None) for name, *_ in FILES}
    assert told == {name: format for name, format, *_ in FILES}
