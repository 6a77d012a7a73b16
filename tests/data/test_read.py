import gzip
import json
import re
from decimal import Decimal
from pathlib import Path

import pyarrow as pa
import pytest
from datasets import Dataset, DatasetDict
from pyarrow import parquet

from alignment.config.errors import UserError
from alignment.data.read import read_each, read_rows
from alignment.data.records import DataError

ROWS = [{"prompt": "größer?", "completion": "ja\u2028nein"}, {"prompt": "2", "completion": "b"}]
LINES = "\n".join(json.dumps(row, ensure_ascii=False) for row in ROWS).encode()


def written(folder: Path, name: str, data: bytes) -> Path:
    path = folder / name
    path.write_bytes(gzip.compress(data) if name.endswith(".gz") else data)
    return path


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.json", "rows.jsonl.gz", "rows.json.gz"])
@pytest.mark.parametrize("start", [b"", b"\xef\xbb\xbf"], ids=["plain", "byte order mark"])
def test_one_object_per_line(tmp_path: Path, name: str, start: bytes) -> None:
    path = written(tmp_path, name, start + LINES)
    assert [(str(source), row) for source, row in read_rows(path)] == [
        (f"{path}:1", ROWS[0]),
        (f"{path}:2", ROWS[1]),
    ]


@pytest.mark.parametrize("name", ["rows.json", "rows.json.gz"])
def test_a_list_is_numbered_by_element(tmp_path: Path, name: str) -> None:
    path = written(tmp_path, name, b"\n" + json.dumps(ROWS, indent=2).encode())
    assert [(source.line, row) for source, row in read_rows(path)] == [(1, ROWS[0]), (2, ROWS[1])]


SHAPES = {
    "a list within an object": json.dumps({"version": 1, "data": ROWS}, indent=2),
    "the same in one line": json.dumps({"data": ROWS}),
    "objects over many lines": "\n".join(json.dumps(row, indent=2) for row in ROWS),
    "columns": json.dumps({key: [row[key] for row in ROWS] for key in ROWS[0]}, indent=1),
    "one list": json.dumps(ROWS),
}


@pytest.mark.parametrize("name", ["rows.json", "rows.jsonl"])
@pytest.mark.parametrize("shape", SHAPES)
def test_json_of_any_shape_is_read(tmp_path: Path, name: str, shape: str) -> None:
    path = written(tmp_path, name, SHAPES[shape].replace("\n", "\r\n").encode())
    assert [row for _, row in read_rows(path)] == ROWS


def test_one_row_of_turns_over_many_lines_is_a_row(tmp_path: Path) -> None:
    row = {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}
    assert [found for _, found in read_rows(written(tmp_path, "a.json", json.dumps(row, indent=2).encode()))] == [row]


@pytest.mark.parametrize("more", [{"tags": ["x", "y"]}, {"tools": []}, {"tags": ["x"]}])
def test_one_row_of_lists_is_a_row(tmp_path: Path, more: dict[str, list[str]]) -> None:
    """Columns of dialogues are lists of lists."""
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    row = {"messages": turns, **more}
    assert [found for _, found in read_rows(written(tmp_path, "a.jsonl", json.dumps(row).encode()))] == [row]
    columns = json.dumps({"messages": [turns, turns], "tags": ["x", "y"]}).encode()
    rows = [{"messages": turns, "tags": tag} for tag in "xy"]
    assert [found for _, found in read_rows(written(tmp_path, "b.json", columns))] == rows


def test_lists_of_rows_beside_each_other_are_no_rows(tmp_path: Path) -> None:
    path = written(tmp_path, "a.json", json.dumps({"train": ROWS, "test": ROWS}).encode())
    with pytest.raises(UserError, match="holds several lists of rows, save one of them alone: train, test"):
        list(read_rows(path))


@pytest.mark.parametrize(
    ("line", "what"),
    [
        (b'{"prompt": "a", "prompt": "b"}', "field `prompt` is given twice"),
        (b'{"messages": [{"role": "user", "content": "a", "content": "b"}]}', "field `content` is given twice"),
        (b'{"a": ' + b"[" * 150 + b"]" * 150 + b"}", "nested deeper than 100 levels"),
        (b'{"a": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", "nested deeper than 100 levels"),
        (b'{"a": ' + b"1" * 5000 + b"}", "JSON that cannot be read: Exceeds the limit (4300 digits)"),
        (b'{"a": "\x00"}', "malformed JSON: "),
    ],
)
def test_a_row_that_cannot_be_read_leaves_the_others(tmp_path: Path, line: bytes, what: str) -> None:
    good = b'{"a": 1}'
    rows = list(read_each(written(tmp_path, "a.jsonl", b"\n".join([good, line, good]))))
    assert [row for _, row in rows if not isinstance(row, DataError)] == [{"a": 1}] * 2
    assert isinstance(rows[1][1], DataError) and str(rows[1][1]).startswith(f"{tmp_path}/a.jsonl:2: {what}")


def test_blank_lines_are_passed_over_and_counted(tmp_path: Path) -> None:
    path = written(tmp_path, "rows.jsonl", b'\n{"a": 1}\n  \n\n{"a": 2}\n')
    assert [(source.line, row["a"]) for source, row in read_rows(path)] == [(2, 1), (5, 2)]


def test_parquet(tmp_path: Path) -> None:
    path = tmp_path / "rows.parquet"
    rows = [{"messages": [{"role": "user", "content": "hi"}], "margin": 1.5}, {"messages": [], "margin": None}]
    Dataset.from_list(rows).to_parquet(str(path))
    assert [(source.line, row) for source, row in read_rows(path)] == [(1, rows[0]), (2, rows[1])]


@pytest.mark.parametrize("kept", [0, 40, -20])
def test_a_cut_table_is_named(tmp_path: Path, kept: int) -> None:
    Dataset.from_list(ROWS).to_parquet(str(tmp_path / "rows.parquet"))
    whole = (tmp_path / "rows.parquet").read_bytes()
    with pytest.raises(UserError, match=r"rows.parquet: it is no parquet file, or cut or damaged \("):
        list(read_rows(written(tmp_path, "rows.parquet", whole[:kept])))
    Dataset.from_list(ROWS).save_to_disk(str(tmp_path / "saved"))
    (part,) = (tmp_path / "saved").glob("*.arrow")
    part.write_bytes(part.read_bytes()[:kept])
    with pytest.raises(UserError, match=r"saved: its files are cut or damaged \("):
        list(read_rows(tmp_path / "saved"))


def test_what_a_table_adds_to_turns_and_calls_is_left_out(tmp_path: Path) -> None:
    """Each row's structures have the fields of all, as nulls: a call would be written with what nobody gave."""
    rows = [
        {
            "messages": [
                {"role": "user", "content": "?"},
                {"role": "assistant", "tool_calls": [{"name": "f", "arguments": each}]},
            ]
        }
        for each in ({"city": "Rome"}, {"days": [{"n": 1}, {"m": 2}]})
    ]
    Dataset.from_list(rows).to_parquet(str(tmp_path / "rows.parquet"))
    Dataset.from_list(rows).save_to_disk(str(tmp_path / "saved"))
    for name in ("rows.parquet", "saved"):
        assert [row for _, row in read_rows(tmp_path / name)] == rows


def test_a_folder_saved_by_datasets(tmp_path: Path) -> None:
    Dataset.from_list(ROWS).save_to_disk(str(tmp_path / "saved"))
    assert [(source.line, row) for source, row in read_rows(tmp_path / "saved")] == [(1, ROWS[0]), (2, ROWS[1])]


def test_a_folder_of_splits_asks_for_one(tmp_path: Path) -> None:
    data = Dataset.from_list(ROWS)
    DatasetDict({"train": data, "test": data}).save_to_disk(str(tmp_path))
    with pytest.raises(ValueError, match=re.escape(f"{tmp_path}: holds several splits") + ".*: train, test$"):
        read_rows(tmp_path)
    assert [row for _, row in read_rows(tmp_path / "test")] == ROWS


@pytest.mark.parametrize(
    ("name", "data", "line", "what"),
    [
        ("a.jsonl", b'{"a": 1}\n\n{"a": }\n', 3, "malformed JSON: Expecting value (column 7)"),
        ("a.jsonl", b'{"a": 1}\n{"a": \r\n{"a": 2}\n', 2, "malformed JSON: Expecting value (column 7)"),
        ("a.jsonl.gz", b'{"a": 1}\n{"a"', 2, "malformed JSON: Expecting ':' delimiter (column 5)"),
        ("a.json", b'[\n{"a": 1},\n{"a": 2,}\n]', 3, "malformed JSON: "),
        ("a.json", b'[{"a": 1}, 3]', 2, "a row must be a JSON object, got int"),
        ("a.jsonl", b'{"a": 1}\n["a"]', 2, "a row must be a JSON object, got list"),
        ("a.jsonl", b"<!DOCTYPE html>\n<html>", 1, "malformed JSON: Expecting value (column 1): it is a web page, "),
        (
            "a.jsonl",
            b"{'a': 1}\n{'a': 2}",
            1,
            "malformed JSON: Expecting property name enclosed in double quotes (column 2): its texts",
        ),
        ("a.jsonl", b'{"a": 1}\noops\n', 2, "malformed JSON: Expecting value (column 1), got 'oops"),
        (
            "a.csv",
            b"PK\x03\x04\x14",
            1,
            "a zip archive, as sheets of .xlsx are too, and no text: save the sheet as CSV",
        ),
        ("a.jsonl", b'{"a": 1}\n{"a": "\xff"}', 2, "not UTF-8: "),
        ("a.jsonl", '{"a": 1}\n'.encode("utf-16"), 1, "not UTF-8: it begins as a file in UTF-16 does"),
        ("a.json", b"\xfe\xff" + '{"a": 1}\n'.encode("utf-16-be"), 1, "not UTF-8: it begins as a file in UTF-16 does"),
    ],
)
def test_a_broken_row_is_named_when_it_is_reached(tmp_path: Path, name: str, data: bytes, line: int, what: str) -> None:
    path = written(tmp_path, name, data)
    with pytest.raises(DataError, match=re.escape(f"{path}:{line}: {what}")):
        list(read_rows(path))


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.json"])
def test_a_stream_of_gzip_is_one_whatever_it_is_called(tmp_path: Path, name: str) -> None:
    assert [row for _, row in read_rows(written(tmp_path, name, gzip.compress(LINES)))] == ROWS


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.json.gz", "rows.parquet"])
def test_what_stands_for_a_file_that_was_not_fetched_is_named_at_once(tmp_path: Path, name: str) -> None:
    pointer = tmp_path / name
    pointer.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n")
    with pytest.raises(UserError, match=rf"^{re.escape(str(pointer))} is a pointer of Git LFS, .*git lfs pull"):
        read_rows(pointer)


def test_a_saved_folder_s_file_that_was_not_fetched_is_named(tmp_path: Path) -> None:
    Dataset.from_list(ROWS).save_to_disk(tmp_path / "rows")
    (file,) = (tmp_path / "rows").glob("*.arrow")
    file.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n")
    with pytest.raises(UserError, match=rf"^{re.escape(str(file))} is a pointer of Git LFS, "):
        read_rows(tmp_path / "rows")


def test_decimals_of_a_table_are_numbers(tmp_path: Path) -> None:
    columns = {"score": pa.array([Decimal("1.50"), None, Decimal("2.00")], pa.decimal128(5, 2)), "a": ["x", "y", "z"]}
    parquet.write_table(pa.table(columns), tmp_path / "rows.parquet")
    rows = [row for _, row in read_rows(tmp_path / "rows.parquet")]
    assert [row["score"] for row in rows] == [1.5, None, 2.0] and isinstance(rows[0]["score"], float)


def test_a_table_without_rows_is_one_and_two_columns_of_one_name_are_none(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """As of a CSV: of the two a row would have but one."""
    two = pa.table([pa.array(["x"]), pa.array(["y"]), pa.array(["z"])], names=["a", "b", "b"])
    files = [tmp_path / "rows.parquet", tmp_path / "rows.arrow"]
    for table in (two, two.slice(0, 0), two.select([0])):
        parquet.write_table(table, files[0])
        with pa.OSFile(str(files[1]), "wb") as file, pa.ipc.new_file(file, table.schema) as whole:
            whole.write_table(table)
        for path in files:
            if table.num_columns == 1:
                assert [row for _, row in read_rows(path)] == [{"a": "x"}]
            elif table.num_rows or path.suffix == ".parquet":  # Arrow's form for files has no batch then
                with pytest.raises(UserError, match=rf"^{path}: the columns must have different names, got 'b' twice$"):
                    list(read_rows(path))
    parquet.write_table(two.select([0, 1]).slice(0, 0), files[0])
    assert list(read_rows(files[0])) == []
    assert capfd.readouterr() == ("", "")


def test_rows_before_a_broken_one_are_given(tmp_path: Path) -> None:
    rows = read_rows(written(tmp_path, "a.jsonl", b'{"a": 1}\n{'))
    assert next(rows)[1] == {"a": 1}
    with pytest.raises(DataError):
        next(rows)


@pytest.mark.parametrize("data", [b"{}\n{}\n", gzip.compress(LINES)[:-6]], ids=["no stream", "cut off"])
def test_broken_gzip(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "a.jsonl.gz"
    path.write_bytes(data)
    with pytest.raises(DataError, match=rf"{re.escape(str(path))}:\d: broken gzip data: "):
        list(read_rows(path))


def test_a_column_that_the_library_cannot_read_is_told(tmp_path: Path) -> None:
    columns = {"prompt": ["a"], "more": pa.array([[("a", 1)]], pa.map_(pa.string(), pa.int64()))}
    parquet.write_table(pa.table(columns), tmp_path / "rows.parquet")
    with pytest.raises(UserError, match=r"rows.parquet: a column cannot be read \(.*map.*\); leave the column out"):
        list(read_rows(tmp_path / "rows.parquet"))


@pytest.mark.parametrize("name", ["rows.txt", "rows.parquet.gz", "rows.gz", "rows.csv.bz2"])
def test_other_kinds_of_file_are_refused_at_once(tmp_path: Path, name: str) -> None:
    with pytest.raises(ValueError, match=re.escape(f"{tmp_path / name}: a data file must end in .jsonl, .json, ")):
        read_rows(written(tmp_path, name, b"{}"))


def test_sheets_are_named_by_what_they_are_not(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"or \.arrow; a sheet is saved as CSV in UTF-8$"):
        read_rows(written(tmp_path, "rows.xlsx", b"PK\x03\x04"))
    path = written(tmp_path, "rows.tsv", b"prompt,chosen\na,b\n")
    with pytest.raises(
        UserError, match=r"the cells of a \.tsv are parted by tabs, got 'prompt,chosen'; name it \.csv$"
    ):
        list(read_rows(path))


def test_a_missing_file_and_a_foreign_folder_are_refused_at_once(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"gone\.jsonl: no such file or folder$"):
        read_rows(tmp_path / "gone.jsonl")
    with pytest.raises(
        ValueError, match=r"a data folder must be one that `Dataset\.save_to_disk` wrote, or hold files of \.jsonl, "
    ):
        read_rows(tmp_path)
