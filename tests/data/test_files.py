"""Tables in text, compressed files, Arrow's own, patterns and folders, each row with its exact place."""

import gzip
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from datasets import Dataset

from alignment.config.data import BadRow, DataConfig, ExampleKind
from alignment.config.errors import UserError
from alignment.config.margin import MarginConfig, MarginScale
from alignment.config.sources import TrainSource
from alignment.data.load import load_split
from alignment.data.read import read_each, read_rows
from alignment.data.records import DataError


def table(separator: str) -> bytes:
    records = [
        ["prompt", "chosen", "rejected", "note"],
        ["a cow", '"moo,\r\nmoo ""twice"""', "no", ""],
        [""],
        ["é", "yes", "no", "kept"],
    ]
    return "".join(["\ufeff", *(separator.join(cells) + "\r\n" for cells in records)]).encode()


CSV = table(",")
ROWS = [
    {"prompt": "a cow", "chosen": 'moo,\r\nmoo "twice"', "rejected": "no"},
    {"prompt": "é", "chosen": "yes", "rejected": "no", "note": "kept"},
]


def written(folder: Path, name: str, data: bytes) -> Path:
    (folder / name).write_bytes(data)
    return folder / name


def placed(rows: Iterable[tuple[Any, Any]]) -> list[tuple[int, Any]]:
    return [(source.line, row) for source, row in rows]


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("rows.csv", CSV),
        ("rows.csv.gz", gzip.compress(CSV, mtime=0)),
        ("rows.csv.zst", pa.compress(CSV, codec="zstd", asbytes=True)),
        ("rows.tsv", table("\t")),
        ("tabs.csv", table("\t")),
        ("semicolons.csv", table(";")),
    ],
)
def test_tables_in_text_keep_their_lines(tmp_path: Path, name: str, data: bytes) -> None:
    """A quoted cell may span lines; an empty one is no field; the line is the one that a record begins in."""
    assert placed(read_rows(written(tmp_path, name, data))) == [(2, ROWS[0]), (5, ROWS[1])]


@pytest.mark.parametrize(
    ("data", "line", "what"),
    [
        (b"prompt,chosen\na,b\nc\n", 3, "a record of 1 cells, where the first line names 2 columns"),
        (b"prompt,chosen\na,b\nc,d,e\n", 3, "a record of 3 cells, where the first line names 2 columns"),
        (
            b'prompt,chosen\n"a\nb",c\n\nd,"e\nf\n',
            5,
            "a record begins here that cannot be read: unexpected end of data",
        ),
        (b'prompt,chosen\na,"b"c\n', 2, "a record begins here that cannot be read: "),
        (b"prompt,chosen\ra,b\rc,d\r", 1, "a record begins here that cannot be read: new-line character seen in "),
        (b"prompt,chosen\na,\xff\n", 2, "not UTF-8: "),
        (b'messages\n"[{""role"": ""user"", ""content"": "\n', 2, "field `messages` begins as turns do and is neither"),
    ],
)
def test_a_broken_record_is_named_by_the_line_it_begins_in(tmp_path: Path, data: bytes, line: int, what: str) -> None:
    path = written(tmp_path, "rows.csv", data)
    with pytest.raises(DataError, match=re.escape(f"{path}:{line}: {what}")):
        list(read_rows(path))


@pytest.mark.parametrize(
    ("data", "what"),
    [(b"a,b,a\n1,2,3\n", "must have different names, got 'a' twice"), (b",\n1,2\n", "must name the columns")],
)
def test_names_of_columns(tmp_path: Path, data: bytes, what: str) -> None:
    with pytest.raises(UserError, match=what):
        list(read_rows(written(tmp_path, "rows.csv", data)))
    assert placed(read_rows(written(tmp_path, "b.csv", b",text\n0,moo\n"))) == [(2, {"text": "moo"})]
    assert placed(read_rows(written(tmp_path, "c.csv", b""))) == []


@pytest.mark.parametrize(
    "head",
    ["What is a cow?,An animal.,A stone.", "yes,no,It is so.", f"a,b,{'long ' * 20}", 'a,b,"two\nlines"', "a;b;A c."],
)
def test_a_row_in_the_place_of_names(tmp_path: Path, head: str) -> None:
    path = written(tmp_path, "rows.csv", f"{head}\n{head}\n".encode())
    sign = ";" if ";" in head else ","
    way = f"add a header line such as prompt{sign}chosen{sign}rejected"
    with pytest.raises(UserError, match=rf"rows\.csv: the first line looks like data, not like column names, .*{way}"):
        list(read_rows(path))


def test_a_name_may_be_a_question(tmp_path: Path) -> None:
    path = written(tmp_path, "rows.csv", b"What do you ask?,Best answer\nmoo,yes\n")
    ((_, row),) = read_each(path, ["What do you ask?"])
    assert row == {"What do you ask?": "moo", "Best answer": "yes"}
    for head in ("prompt,Is it good?", "id,question,label"):
        ((_, row),) = read_each(
            written(tmp_path, "known.csv", f"{head}\n{','.join('1' * (head.count(',') + 1))}\n".encode())
        )
        assert set(row) == set(head.split(","))


def test_a_file_without_rows_has_no_layout_to_tell(tmp_path: Path, tokenizer: Any, capsys: Any) -> None:
    for name, data in (("a.jsonl", b""), ("b.jsonl", b"\n\n"), ("c.csv", b"prompt,chosen,rejected\n")):
        source = TrainSource(str(written(tmp_path, name, data)))
        with pytest.raises(UserError, match="must have at least one good row"):
            load_split("train", DataConfig(train=source), tokenizer, ExampleKind.pairs)
    assert "read as" not in capsys.readouterr().out


def test_a_short_record_is_skipped_where_bad_rows_are(tmp_path: Path) -> None:
    rows = list(read_each(written(tmp_path, "rows.csv", b"a,b\n1,2\n3\n4,5\n")))
    assert [(source.line, isinstance(row, DataError)) for source, row in rows] == [(2, False), (3, True), (4, False)]


def test_turns_in_a_cell_are_turns_and_numbers_numbers(tmp_path: Path, tokenizer: Any) -> None:
    turns = '"[{""role"": ""user"", ""content"": ""hi""}, {""role"": ""assistant"", ""content"": ""1""}]"'
    python = "\"[{'content': 'it''s', 'role': 'user'}, {'content': 'a\\nb', 'role': 'assistant'}]\""
    data = f"chosen,rejected,chosen_score,rejected_score,weight\n{turns},{turns.replace('1', '2')},7.5,2,0.5\n"
    path = written(tmp_path, "pairs.csv", data.encode())
    settings = DataConfig(train=TrainSource(str(path)), margin=MarginConfig(scale=MarginScale.score))
    loaded = load_split("train", settings, tokenizer, ExampleKind.pairs)
    assert loaded is not None and [e.margin for e in loaded.examples] == [5.5]
    assert loaded.records[0].prompt == [{"role": "user", "content": "hi"}] and loaded.examples[0].weight == 0.5
    path = written(tmp_path, "turns.csv", f"messages\n{python}\n".encode())
    assert [turn["content"] for _, row in read_rows(path) for turn in row["messages"]] == ["its", "a\nb"]
    path = written(tmp_path, "pairs.csv", data.replace("7.5", "much").encode())
    with pytest.raises(DataError, match=r"pairs\.csv:2: chosen_score must be a finite number, got 'much'$"):
        load_split("train", settings, tokenizer, ExampleKind.pairs)
    labels = written(tmp_path, "labels.csv", b"prompt,completion,label\na,b,False\nc,d,1\n")
    loaded = load_split("train", DataConfig(train=TrainSource(str(labels))), tokenizer, ExampleKind.labeled)
    assert loaded is not None and [example.labels for example in loaded.examples] == [(False,), (True,)]
    steps = written(tmp_path, "steps.csv", b'prompt,completions,labels\na,"[""b"", ""c""]","[true, false]"\n')
    loaded = load_split("train", DataConfig(train=TrainSource(str(steps))), tokenizer, ExampleKind.steps)
    assert loaded is not None and loaded.records[0].labels == (True, False)
    broken = DataConfig(train=TrainSource(str(written(tmp_path, "s.csv", b"prompt,completions,labels\na,b,c\n"))))
    with pytest.raises(DataError, match="field `completions` must be JSON in a table of texts, got 'b'"):
        load_split("train", broken, tokenizer, ExampleKind.steps)


def test_broken_zstandard(tmp_path: Path) -> None:
    whole = pa.compress(b'{"a": 1}\n' * 100, codec="zstd", asbytes=True)
    assert len(list(read_rows(written(tmp_path, "rows.jsonl", whole)))) == 100
    assert len(list(read_rows(written(tmp_path, "rows.jsonl.zst", whole + whole)))) == 200
    for data in (whole[:-4], b"{}\n{}\n"):
        with pytest.raises(DataError, match=r"rows\.json\.zst:\d+: broken zstd data: "):
            list(read_rows(written(tmp_path, "rows.json.zst", data)))


def test_arrow_files_and_streams(tmp_path: Path) -> None:
    table = pa.table({"a": [1, 2], "turns": [[{"role": "user", "name": None}], []]})
    rows = [(1, {"a": 1, "turns": [{"role": "user"}]}), (2, {"a": 2, "turns": []})]
    for name, kind in (("file.arrow", pa.ipc.new_file), ("stream.arrow", pa.ipc.new_stream)):
        with pa.OSFile(str(tmp_path / name), "wb") as sink, kind(sink, table.schema) as writer:
            writer.write_table(table)
        assert placed(read_rows(tmp_path / name)) == rows
        whole = (tmp_path / name).read_bytes()
        for cut in (whole[:-20], b"", b"moo"):
            with pytest.raises(UserError, match=r"cut\.arrow: it is no arrow file, or cut or damaged"):
                list(read_rows(written(tmp_path, "cut.arrow", cut)))


def test_patterns_and_folders_are_read_by_name(tmp_path: Path) -> None:
    for name in ("b.jsonl", "a.jsonl", "c.csv", ".hidden.jsonl", "README.md"):
        written(tmp_path, name, b"n\nc\n" if name == "c.csv" else b'{"n": "%s"}\n' % name[0].encode())
    Dataset.from_list([{"n": "d"}]).save_to_disk(str(tmp_path / "d"))
    (tmp_path / "empty").mkdir()
    assert [row["n"] for _, row in read_rows(tmp_path)] == ["a", "b", "c"]
    assert [str(source) for source, _ in read_rows(tmp_path / "*.jsonl")] == [
        f"{tmp_path}/a.jsonl:1",
        f"{tmp_path}/b.jsonl:1",
    ]
    assert [row["n"] for _, row in read_rows(tmp_path / "[a-e]*")] == ["a", "b", "c", "d"]
    with pytest.raises(UserError, match=r"x\*: no file matches$"):
        read_rows(tmp_path / "x*")
    with pytest.raises(UserError, match=r"README\.md: a data file must end in"):
        read_rows(tmp_path / "*E*")
    written(tmp_path, "f[1].jsonl", b'{"n": "f"}\n')
    assert [row["n"] for _, row in read_rows(tmp_path / "f[1].jsonl")] == ["f"]


def test_several_files_follow_each_other(tmp_path: Path, tokenizer: Any) -> None:
    paths = [str(written(tmp_path, f"{name}.csv", f"prompt,completion\n{name},x\n".encode())) for name in "ba"]
    source = TrainSource([*paths, str(tmp_path / "*.csv")], join={"more": paths[0]}, limit=5)
    loaded = load_split("train", DataConfig(train=source), tokenizer, ExampleKind.demonstrations)
    assert loaded is not None
    assert [record.prompt[0]["content"] for record in loaded.records] == ["b", "a", "a", "b", "b"]
    skipping = DataConfig(train=TrainSource(paths), on_bad_row=BadRow.skip)
    assert load_split("train", skipping, tokenizer, ExampleKind.demonstrations) is not None


def test_turns_that_python_cannot_make_are_an_error_of_their_row(tmp_path: Path) -> None:
    """A list as a key parses, and no dictionary takes it; brackets without end are too deep for JSON and Python."""
    deep = "[" * 100_000
    for cell in ('[{""role"": 1, []: 2}]', f'[{{""role"": {deep}'):
        path = written(tmp_path, "odd.csv", f'messages\n"{cell}"\n'.encode())
        ((source, error),) = read_each(path)
        assert source.line == 2 and "field `messages` begins as turns do and is neither JSON" in str(error)
