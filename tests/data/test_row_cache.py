"""Rows that are kept: what is mapped is what is read, what shapes it names it, and what is damaged is made again."""

import errno
import fcntl
import json
import os
import signal
import socket
import time
from collections.abc import Callable, Iterator
from dataclasses import fields, replace
from multiprocessing import get_context
from pathlib import Path
from threading import Event, Thread, current_thread
from typing import Any

import numpy as np
import pytest
from transformers import PreTrainedTokenizerBase

from alignment.config.batch import BatchConfig
from alignment.config.data import BadRow, DataConfig, ExampleKind, Format
from alignment.config.errors import UserError
from alignment.config.sources import EvalSource, MixedSource, TrainSource
from alignment.data import load, row_cache, row_key, row_lock, row_room
from alignment.data.batches import Packer
from alignment.data.carried import NOTHING, Asked, Carried
from alignment.data.held_out import hold_out, num_prompts, num_shared_prompts, prompt_hashes
from alignment.data.load import load_split
from alignment.data.loaded import Loaded
from alignment.data.numbers import NUMBERS, numbers
from alignment.data.records import DataError, Source
from alignment.data.row_reader import RowReader
from alignment.data.sequences import chosen
from alignment.data.tokenize import Example
from alignment.training import kto
from alignment.training.kto import with_replies_to_others

DIALOGUE = [{"role": "user", "content": "why"}, {"role": "assistant", "content": "so", "weight": 0}]
ROWS: list[dict[str, Any]] = [
    {
        "prompt": f"is {number} so",
        "chosen": f"it is {number}",
        "rejected": "no" * (number % 3 + 1),
        "weight": 1 + number,
    }
    for number in range(11)
]


@pytest.fixture(autouse=True)
def own_cache(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(load, "CHUNK", 3)
    monkeypatch.setattr(load, "cores", lambda: 2)
    monkeypatch.setattr(row_key, "LARGE", 0)


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    return written(tmp_path / "rows.jsonl", ROWS)


def written(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def settings(path: Path, **more: Any) -> DataConfig:
    return DataConfig(train=TrainSource(str(path)), format=Format.native, **more)


def in_memory(*arguments: Any, **named: Any) -> Loaded:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(row_key, "LARGE", 2**60)
        loaded = load_split(*arguments, **named)
    assert loaded is not None and isinstance(loaded.examples, list)
    return loaded


def kept(folder: Path) -> list[Path]:
    return sorted((folder / "cache" / "alignment" / "rows").glob("*.arrow"))


def plain(example: Example) -> dict[str, Any]:
    """Arrays by their numbers and kinds."""

    def of(value: Any) -> Any:
        if isinstance(value, np.ndarray):
            return (str(value.dtype), value.tolist())
        return [of(each) for each in value] if isinstance(value, tuple) else value

    return {field.name: of(getattr(example, field.name)) for field in fields(example)}


def assert_same(one: Loaded, other: Loaded) -> None:
    assert list(one.records) == list(other.records)
    assert [plain(each) for each in one.examples] == [plain(each) for each in other.examples]
    assert list(map(str, one.skipped)) == list(map(str, other.skipped))
    bare = [replace(each, records=[], examples=[], skipped=[]) for each in (one, other)]
    assert bare[0] == bare[1]
    assert one.summary("train") == other.summary("train")


STEPS = {"prompt": "add", "completions": ["one", "two"], "labels": [True, False]}
KINDS: dict[ExampleKind, list[dict[str, Any]]] = {
    ExampleKind.pairs: ROWS,
    ExampleKind.labeled: ROWS,
    ExampleKind.demonstrations: [{"messages": [*DIALOGUE, *DIALOGUE[:1], {"role": "assistant", "content": "yes"}]}] * 7,
    ExampleKind.scored: [{"prompt": "a", "completion": "b " * number, "score": number} for number in range(1, 8)],
    ExampleKind.steps: [STEPS] * 5,
    ExampleKind.prompts: [{"prompt": f"{number}", "answer": [number, None], "tags": ["safety"]} for number in range(8)],
}


@pytest.mark.parametrize("processes", [1, 2])
@pytest.mark.parametrize("need", KINDS)
def test_what_is_mapped_is_what_is_read(
    need: ExampleKind, processes: int, chatml: PreTrainedTokenizerBase, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(load, "cores", lambda: processes)
    data = settings(written(tmp_path / "rows.jsonl", KINDS[need]), max_length=14, max_prompt_length=9)
    data = replace(data, format=Format.auto)
    carried = Carried({"f": Asked(required=("answer",))}) if need is ExampleKind.prompts else NOTHING
    whole = in_memory("train", data, chatml, need, carried=carried)
    for _ in range(2):
        mapped = load_split("train", data, chatml, need, carried=carried)
        assert mapped is not None and not isinstance(mapped.examples, list)
        assert_same(mapped, whole)
    assert len(kept(tmp_path)) == 1
    assert plain(mapped.examples[-1]) == plain(whole.examples[-1])
    assert [plain(each) for each in mapped.examples[2:5]] == [plain(each) for each in whole.examples[2:5]]
    with pytest.raises(IndexError):
        mapped.examples[len(whole.examples)]


def test_rows_are_tokenized_once_and_what_was_told_is_told_again(
    chatml: PreTrainedTokenizerBase,
    rows: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    data = replace(settings(rows), format=Format.auto)
    load_split("train", data, chatml, ExampleKind.pairs)
    said = capsys.readouterr().out
    assert said.count("read as native") == 1
    monkeypatch.setattr(RowReader, "__call__", lambda *_: pytest.fail("read again"))
    load_split("train", data, chatml, ExampleKind.pairs)
    (place,) = {path.parent for path in kept(tmp_path)}
    assert capsys.readouterr().out == f"data.train: 11 rows as they are kept in {place}\n{said}"


BAD = {"prompt": "a", "chosen": "b"}


@pytest.mark.parametrize("place", [0, 1, 7, 10])
@pytest.mark.parametrize("bad", [BAD, {**ROWS[0], "weight": -1}, {**ROWS[0], "chosen": "a <|im_end|>"}])
def test_a_bad_row_is_told_and_skipped_as_ever(
    place: int, bad: dict[str, Any], chatml: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    """By file and line, the first of them alone, and nothing is kept of what is refused."""
    made = [*ROWS[:place], bad, *ROWS[place:], BAD]
    data = settings(written(tmp_path / "rows.jsonl", made))
    with pytest.raises(DataError) as told:
        in_memory("train", data, chatml, ExampleKind.pairs)
    with pytest.raises(type(told.value)) as again:
        load_split("train", data, chatml, ExampleKind.pairs)
    assert str(again.value) == str(told.value) and f"rows.jsonl:{place + 1}: " in str(told.value)
    assert list((tmp_path / "cache" / "alignment" / "rows").iterdir()) == []
    lenient = replace(data, on_bad_row=BadRow.skip)
    mapped = load_split("train", lenient, chatml, ExampleKind.pairs)
    assert mapped is not None and len(mapped.skipped) == 2
    assert_same(mapped, in_memory("train", lenient, chatml, ExampleKind.pairs))


def other_template(tokenizer: PreTrainedTokenizerBase, folder: Path, data: DataConfig) -> DataConfig:
    tokenizer.chat_template = str(tokenizer.chat_template).replace("\\n", " ", 1)
    return data


def other_end(tokenizer: PreTrainedTokenizerBase, folder: Path, data: DataConfig) -> DataConfig:
    tokenizer.eos_token = "<pad>"
    return data


def other_pieces(tokenizer: PreTrainedTokenizerBase, folder: Path, data: DataConfig) -> DataConfig:
    tokenizer.add_tokens(["it is"])
    return data


def other_bytes(tokenizer: PreTrainedTokenizerBase, folder: Path, data: DataConfig) -> DataConfig:
    file = folder / "rows.jsonl"
    before = file.stat()
    file.write_text(file.read_text().replace("is 3 so", "is 4 so"))
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))
    return data


def other_library(tokenizer: PreTrainedTokenizerBase, folder: Path, data: DataConfig) -> DataConfig:
    row_key.version = lambda name: "0.0"
    return data


OTHERS: dict[str, Callable[[PreTrainedTokenizerBase, Path, DataConfig], DataConfig]] = {
    "template": other_template,
    "end": other_end,
    "pieces": other_pieces,
    "bytes": other_bytes,
    "library": other_library,
    "limit": lambda _, folder, data: replace(data, train=TrainSource(str(folder / "rows.jsonl"), limit=9)),
    "max_length": lambda _, __, data: replace(data, max_length=700),
    "max_prompt_length": lambda _, __, data: replace(data, max_prompt_length=400),
    "format": lambda _, __, data: replace(data, format=Format.auto),
    "system": lambda _, __, data: replace(data, system="be kind"),
    "columns": lambda _, __, data: replace(data, columns={"rejected": "chosen", "chosen": "rejected"}),
    "on_bad_row": lambda _, __, data: replace(data, on_bad_row=BadRow.skip),
}


@pytest.mark.parametrize("what", OTHERS)
def test_whatever_shapes_rows_names_them(
    what: str, chatml: PreTrainedTokenizerBase, rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(row_key, "version", row_key.version)
    data = settings(rows)
    load_split("train", data, chatml, ExampleKind.pairs)
    rows.touch()  # a new time is no new row
    load_split("train", replace(data, eval=EvalSource(str(rows))), chatml, ExampleKind.pairs)
    assert len(kept(tmp_path)) == 1
    data = OTHERS[what](chatml, tmp_path, data)
    mapped = load_split("train", data, chatml, ExampleKind.pairs)
    assert len(kept(tmp_path)) == 2 and mapped is not None
    assert_same(mapped, in_memory("train", data, chatml, ExampleKind.pairs))


def test_another_task_has_rows_of_its_own(chatml: PreTrainedTokenizerBase, rows: Path, tmp_path: Path) -> None:
    for need in (ExampleKind.pairs, ExampleKind.labeled, ExampleKind.demonstrations):
        load_split("train", settings(rows), chatml, need)
    assert len(kept(tmp_path)) == 3


def flip(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)


def change(file: Path, old: bytes, new: bytes) -> None:
    content = file.read_bytes()
    assert old in content
    file.write_bytes(content.replace(old, new))


DAMAGE: dict[str, Callable[[Path], Any]] = {
    "cut": lambda file: file.write_bytes(file.read_bytes()[:-50]),
    "flipped": flip,
    "gone": lambda file: file.unlink(),
    "what is known is cut": lambda file: file.with_suffix(".known").write_bytes(b"\x80"),
    "what is known is of another class": lambda file: change(
        file.with_suffix(".known"), b"data.loaded", b"data.loader"
    ),
    "what is known is gone": lambda file: file.with_suffix(".known").unlink(),
    "a text": lambda file: file.write_text("no table"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_what_is_damaged_is_made_again_and_said_once(
    damage: str, chatml: PreTrainedTokenizerBase, rows: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = in_memory("train", settings(rows), chatml, ExampleKind.pairs)
    load_split("train", settings(rows), chatml, ExampleKind.pairs)
    DAMAGE[damage](kept(tmp_path)[0])
    capsys.readouterr()
    for times in (1, 0):
        mapped = load_split("train", settings(rows), chatml, ExampleKind.pairs)
        assert mapped is not None and not isinstance(mapped.examples, list)
        assert_same(mapped, whole)
        assert capsys.readouterr().out.replace("\n", " ").count("are damaged and are made again") == times
    assert len(kept(tmp_path)) == 1


def test_a_file_that_changes_while_it_is_read_is_told_and_its_rows_are_not_kept(
    chatml: PreTrainedTokenizerBase, rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They would lie under the name of what it held before."""
    table = load.as_counted

    def counted(*arguments: Any) -> Any:
        with rows.open("a") as file:
            file.write(json.dumps(ROWS[0]) + "\n")
        return table(*arguments)

    with monkeypatch.context() as patched:
        patched.setattr(load, "cores", lambda: 1)
        patched.setattr(load, "as_counted", counted)
        with pytest.raises(UserError, match=r"^data.train: its files have changed while they were read; run again"):
            load_split("train", settings(rows), chatml, ExampleKind.pairs)
    assert list((tmp_path / "cache" / "alignment" / "rows").iterdir()) == []
    mapped = load_split("train", settings(rows), chatml, ExampleKind.pairs)
    assert mapped is not None
    assert_same(mapped, in_memory("train", settings(rows), chatml, ExampleKind.pairs))


def test_who_waited_for_a_lock_that_is_gone_has_one_that_others_find(tmp_path: Path) -> None:
    """Else a third process would take away what the second one is writing."""
    place, begun, found = tmp_path / "rows.arrow", Event(), list[bool]()
    lock = place.with_suffix(".lock")

    def seconds() -> Iterator[Any]:
        found.append(lock.exists())
        yield from ()

    def second() -> None:
        begun.set()
        row_cache.kept_rows(place, seconds(), lambda: None)

    waiting = Thread(target=second)

    def firsts() -> Iterator[Any]:
        waiting.start()
        begun.wait()
        time.sleep(0.2)  # in which it comes to the lock
        raise DataError(Source("rows.jsonl", 1), "is bad")
        yield

    with pytest.raises(DataError):
        row_cache.kept_rows(place, firsts(), lambda: None)
    waiting.join()
    assert found == [True] and place.exists() and not lock.exists()


def test_one_who_waits_long_says_for_whom(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The other may be stopped, or have much to read."""
    monkeypatch.setattr(row_lock, "IN_SILENCE_S", 0.0)
    place, said = tmp_path / "rows.arrow", list[str]()
    waiting = Thread(target=lambda: row_cache.kept_rows(place, iter(()), lambda: None))

    def firsts() -> Iterator[Any]:
        waiting.start()
        until = time.monotonic() + 60
        while not (told := capsys.readouterr().out) and time.monotonic() < until:
            time.sleep(0.01)
        said.append(told)
        yield from ()

    row_cache.kept_rows(place, firsts(), lambda: None)
    waiting.join()
    who, lock = f"process {os.getpid()} on {socket.gethostname()}", place.with_suffix(".lock")
    assert said == [f"waiting for {who}, which reads the same rows to keep them ({lock})\n"]


def test_who_waited_for_one_that_has_no_room_does_not_try_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each would read all of the rows in vain, one after the other."""
    place, waits, found, lock = tmp_path / "rows.arrow", Event(), list[str](), fcntl.flock

    def second() -> None:
        try:
            row_cache.kept_rows(place, iter(()), lambda: pytest.fail("tried again"))
        except row_cache.UnwritableError as error:
            found.append(str(error))

    waiting = Thread(target=second)

    def noted(file: Any, how: int) -> None:
        if current_thread() is waiting:
            waits.set()
        lock(file, how)

    def firsts() -> Iterator[Any]:
        waiting.start()
        assert waits.wait(60)
        raise OSError(errno.ENOSPC, "No space left on device")
        yield

    monkeypatch.setattr(fcntl, "flock", noted)
    with pytest.raises(row_cache.UnwritableError, match="No space left on device"):
        row_cache.kept_rows(place, firsts(), lambda: None)
    waiting.join()
    assert found == ["another process has tried"]
    assert list(tmp_path.iterdir()) == []
    assert row_cache.kept_rows(place, iter(()), lambda: 1)[2] == 1  # once there is room


def test_rows_of_which_nothing_can_be_noted_are_not_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place, write = tmp_path / "rows.arrow", Path.write_bytes

    def full(path: Path, content: bytes) -> int:
        write(path, content[:1])
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(row_cache.UnwritableError):
        row_cache.kept_rows(place, iter(()), lambda: 1)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_may_not_be_looked_into_keeps_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(path: Path, **_: Any) -> bool:
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    monkeypatch.setattr(Path, "exists", refused)
    with pytest.raises(row_cache.UnwritableError, match="Permission denied"):
        row_cache.kept_rows(tmp_path / "rows.arrow", iter(()), lambda: 1)


def killed(data: DataConfig, tokenizer: PreTrainedTokenizerBase) -> None:
    """In the middle of the table."""
    table, done = load.as_counted, 0

    def counted(*arguments: Any) -> Any:
        nonlocal done
        done += 1
        if done == 3:
            os.kill(os.getpid(), signal.SIGKILL)
        return table(*arguments)

    load.as_counted = counted
    load.cores = lambda: 1
    load_split("train", data, tokenizer, ExampleKind.pairs)


def test_a_process_that_is_killed_leaves_nothing_that_is_read(
    chatml: PreTrainedTokenizerBase, rows: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    process = get_context("fork").Process(target=killed, args=(settings(rows), chatml))
    process.start()
    process.join(60)
    assert process.exitcode == -signal.SIGKILL and kept(tmp_path) == []
    assert len([*row_cache.cache_folder().glob("*.partial")]) == 1
    mapped = load_split("train", settings(rows), chatml, ExampleKind.pairs)
    assert mapped is not None and not isinstance(mapped.examples, list)
    assert [*row_cache.cache_folder().glob("*.partial")] == []
    assert "damaged" not in capsys.readouterr().out
    assert_same(mapped, in_memory("train", settings(rows), chatml, ExampleKind.pairs))


def test_a_reader_that_is_gone_is_told(
    chatml: PreTrainedTokenizerBase, rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(RowReader, "__call__", lambda *_: os.kill(os.getpid(), signal.SIGKILL))
    with pytest.raises(UserError, match=r"^a process that read rows is gone"):
        load_split("train", settings(rows), chatml, ExampleKind.pairs)
    assert list((tmp_path / "cache" / "alignment" / "rows").iterdir()) == []


def one_of_two(data: DataConfig, tokenizer: PreTrainedTokenizerBase, made: Path) -> None:
    table = load.as_counted

    def counted(*arguments: Any) -> Any:
        with made.open("a") as file:
            file.write("a batch\n")
        return table(*arguments)

    load.as_counted = counted
    load_split("train", data, tokenizer, ExampleKind.pairs)


def test_processes_that_ask_at_once_make_them_once(chatml: PreTrainedTokenizerBase, rows: Path, tmp_path: Path) -> None:
    made = tmp_path / "made"
    asking = [get_context("fork").Process(target=one_of_two, args=(settings(rows), chatml, made)) for _ in range(3)]
    for process in asking:
        process.start()
    for process in asking:
        process.join(60)
    assert [process.exitcode for process in asking] == [0, 0, 0]
    assert made.read_text().count("a batch") == 4
    assert {file.suffix for file in kept(tmp_path)[0].parent.iterdir()} == {".arrow", ".known"}


def test_a_cache_that_cannot_be_written_is_told_and_done_without(
    chatml: PreTrainedTokenizerBase, rows: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "cache").write_text("a file")
    loaded = load_split("train", settings(rows), chatml, ExampleKind.pairs)
    assert loaded is not None and isinstance(loaded.examples, list) and len(loaded.examples) == 11
    assert "data.train: the rows cannot be kept, each process reads them by itself (" in capsys.readouterr().out


def test_a_mix_and_rows_held_out_are_views_of_what_is_mapped(chatml: PreTrainedTokenizerBase, tmp_path: Path) -> None:
    mix = {
        name: MixedSource(str(written(tmp_path / f"{name}.jsonl", some)))
        for name, some in (("a", ROWS[:6]), ("b", ROWS[4:]))
    }
    data = DataConfig(train=TrainSource(mix=mix), format=Format.native)
    whole, mapped = (
        in_memory("train", data, chatml, ExampleKind.pairs),
        load_split("train", data, chatml, ExampleKind.pairs),
    )
    assert mapped is not None and not isinstance(mapped.examples, list)
    assert_same(mapped, whole)
    assert num_prompts(mapped) == num_prompts(whole) == 11
    for seed in (0, 3):
        for one, other in zip(hold_out(mapped, 0.4, seed), hold_out(whole, 0.4, seed), strict=True):
            assert not isinstance(one.examples, list)
            assert_same(one, other)
    kept_ones, out = hold_out(mapped, 0.4, 0)
    assert num_shared_prompts(kept_ones, out) == (0, num_prompts(out))
    assert num_shared_prompts(mapped, out) == (num_prompts(out), num_prompts(out))


def test_what_passes_over_all_rows_ask_is_in_columns(
    chatml: PreTrainedTokenizerBase, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same numbers of all rows, of some, and of several sources; and no row is made for them."""
    mix = {
        name: MixedSource(str(written(tmp_path / f"{name}.jsonl", some)))
        for name, some in (("a", ROWS[:6]), ("b", ROWS[4:]))
    }
    data = DataConfig(train=TrainSource(mix=mix), format=Format.native)
    whole = in_memory("train", data, chatml, ExampleKind.labeled)
    hashes = {seed: prompt_hashes(whole.records, seed).tolist() for seed in (0, 3)}
    others = [plain(each) for each in with_replies_to_others(whole.examples, 12)]
    monkeypatch.setattr(row_cache, "example_of", lambda *_: pytest.fail("a row is made"))
    monkeypatch.setattr(row_cache, "record_of", lambda *_: pytest.fail("a row is made"))
    mapped = load_split("train", data, chatml, ExampleKind.labeled)
    assert mapped is not None
    some = np.array([20, 3, 3, 0, 25])
    for name in NUMBERS:
        found = numbers(mapped.examples, name)
        assert found.dtype == NUMBERS[name][1]
        np.testing.assert_array_equal(found, numbers(whole.examples, name))  # and NaN is NaN
        np.testing.assert_array_equal(numbers(chosen(mapped.examples, some), name), found[some])
        twice = chosen(chosen(mapped.examples, some), np.array([4, 1]))
        np.testing.assert_array_equal(numbers(twice, name), found[some][[4, 1]])
    assert {seed: prompt_hashes(mapped.records, seed).tolist() for seed in (0, 3)} == hashes
    assert num_prompts(mapped) == 11 and kto.num_prompts(mapped.examples) == 11
    assert len(Packer(BatchConfig(size=4, max_tokens=30), 0).eval_batches(mapped.examples)) > 1
    lazy = with_replies_to_others(mapped.examples, 12)
    assert [plain(each) for each in replace(lazy, examples=whole.examples)] == others


def sized(folder: Path, name: str, rows: int) -> DataConfig:
    made = [{"prompt": f"{name} {row}", "chosen": "yes", "rejected": "no"} for row in range(rows)]
    return settings(written(folder / f"{name}.jsonl", made))


def used_at(place: Path, seconds: int) -> None:
    """In the past; all of an entry's files."""
    for file in place.parent.glob(f"{place.stem}.*"):
        os.utime(file, (seconds, seconds))


def test_rows_that_were_used_the_longest_ago_make_room(
    chatml: PreTrainedTokenizerBase, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Once, with a word on it, and what was used since stays, as does what a killed process left beside it."""
    sources = {name: sized(tmp_path, name, 9) for name in "abcd"}
    places = {}
    for number, name in enumerate("abc"):
        before = set(kept(tmp_path))
        load_split("train", sources[name], chatml, ExampleKind.pairs)
        (places[name],) = set(kept(tmp_path)) - before
        used_at(places[name], 1000 + number)
    folder = places["a"].parent
    left = folder / f"{'0' * 32}.arrow.host-1.partial"
    left.write_bytes(b"x" * 100)
    os.utime(left, (1, 1))
    load_split("train", sources["a"], chatml, ExampleKind.pairs)  # b is now the one used the longest ago
    capsys.readouterr()
    taken = sum(file.stat().st_size for file in folder.iterdir())
    monkeypatch.setattr(row_room, "ROOM", taken)  # one too many, and what is left of the killed one
    load_split("train", sources["d"], chatml, ExampleKind.pairs)
    said = capsys.readouterr().out.replace("\n", " ")
    assert said.count("rows of 2 earlier sources") == 1 and "the least recently used" in said
    assert places["b"] not in kept(tmp_path) and {places["a"], places["c"]} < set(kept(tmp_path))
    assert not left.exists() and not places["b"].with_suffix(".known").exists()
    load_split("train", sources["d"], chatml, ExampleKind.pairs)
    assert "removed" not in capsys.readouterr().out


def test_rows_that_a_process_maps_or_makes_are_not_removed(
    chatml: PreTrainedTokenizerBase, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(row_room, "ROOM", 1)
    mapped = load_split("train", sized(tmp_path, "a", 9), chatml, ExampleKind.pairs)
    assert mapped is not None
    (place,) = kept(tmp_path)
    made = place.with_name(f"{'1' * 32}.lock")
    with made.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        some = mapped.examples[2:4]
        lengths = [len(each.prompt_ids) for each in some]
        del mapped  # a row's tokens are no reason to keep all of them
        again = load_split("train", sized(tmp_path, "a", 9), chatml, ExampleKind.pairs)
        load_split("train", sized(tmp_path, "b", 9), chatml, ExampleKind.pairs)
        assert place in kept(tmp_path) and made.exists() and again is not None
    del again
    load_split("train", sized(tmp_path, "c", 9), chatml, ExampleKind.pairs)
    assert len(kept(tmp_path)) == 1 and place not in kept(tmp_path) and not made.exists()
    assert [len(each.prompt_ids) for each in some] == lengths


def test_no_rank_holds_a_copy_of_the_tokens(chatml: PreTrainedTokenizerBase, rows: Path) -> None:
    mapped = load_split("train", settings(rows), chatml, ExampleKind.pairs)
    assert mapped is not None
    example = mapped.examples[5]
    assert not example.prompt_ids.flags.owndata and not example.prompt_ids.flags.writeable
    again = mapped.examples[5].prompt_ids
    assert np.shares_memory(example.prompt_ids, again)
    assert row_cache.cache_folder().is_dir()
