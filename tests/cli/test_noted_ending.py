"""How a run ended is in its folder, whoever ended it, until it goes on."""

import json
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from alignment.config.errors import UserError
from alignment.distributed.launch import RankFailedError
from alignment.preempt import Preempted
from alignment.runs.claim import this_process
from alignment.runs.folder import RunFolder
from alignment.tasks import run
from alignment.training import supervised

SMALL = ["model.init.hidden_size=32", "model.init.intermediate_size=48", "data.train.limit=16", "data.eval.limit=4"]
RUN = ["run", "tiny_sft", *SMALL, "batch.size=4", "train.warmup_steps=0", "log.progress=false", "output_dir=out"]
THREE = [*RUN, "train.max_steps=3", "checkpoint.every=1"]
ENDS = {
    "a mistake": (UserError("no row is\nleft"), "failed", "step 2: no row is left"),
    "a defect": (RuntimeError("two\nlines"), "failed", "RuntimeError: lines"),
    "a defect without a word": (AssertionError(), "failed", "AssertionError"),
    "Ctrl-C": (KeyboardInterrupt(), "interrupted", "Ctrl-C"),
    "a signal": (Preempted("stopped by SIGTERM"), "interrupted", "stopped by SIGTERM"),
}


def ending(folder: Path) -> dict[str, Any]:
    line = RunFolder(folder).noted()[-1]
    return {name: value for name, value in line.items() if name != "time"}


@pytest.mark.parametrize("case", ENDS)
def test_a_run_notes_what_ended_it(
    case: str, alignment: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    error, word, why = ENDS[case]
    train_step, taken = supervised.train_step, []

    def ended(*arguments: Any) -> Any:
        if taken:
            raise error
        taken.append(1)
        return train_step(*arguments)

    with monkeypatch.context() as patched:
        patched.setattr(supervised, "train_step", ended)
        with suppress(type(error)):  # what the command tells itself does not come so far
            alignment(*THREE)
    found = ending(tmp_path / "out")
    assert found["ended"] == word and found["step"] == 1
    assert found["why"] in (why, why.removeprefix("step 2: "))
    state = alignment("status", "out").out.splitlines()[1]
    assert state == f"  state     {'failed' if word == 'failed' else 'interrupted at step 1'}: {found['why']}"
    assert alignment(*THREE).code == 0
    assert alignment("status", "out").out.splitlines()[1] == "  state     finished"


@pytest.mark.parametrize("number", [0, 1])
def test_ctrl_c_says_how_to_go_on(number: int, alignment: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    train_step, taken = supervised.train_step, []

    def ended(*arguments: Any) -> Any:
        if len(taken) == number:
            raise KeyboardInterrupt
        taken.append(1)
        return train_step(*arguments)

    monkeypatch.setattr(supervised, "train_step", ended)
    stopped = alignment(*THREE)
    assert (stopped.code, stopped.err) == (130, ["alignment: interrupted"])
    what = "before a step was saved; to begin it anew" if number == 0 else "; step 1 is saved; to go on"
    said = f"out: interrupted{' ' * (number == 0)}{what}: alignment run out/config.yaml"
    assert stopped.out.splitlines()[-1] == said


def test_a_mistake_before_anything_was_done_leaves_no_ending(alignment: Callable[..., Any], tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text('{"prompt": "Hi"}\n')
    words = ["run", "tiny_sft", "data=native", "data.train.path=rows.jsonl", "output_dir=out"]
    assert alignment(*words).code == 2 and not (tmp_path / "out").exists()


@pytest.mark.parametrize("is_killed", [True, False])
def test_where_the_main_process_was_ended_with_another_its_launcher_notes_it(
    is_killed: bool, alignment: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And where it has gone by itself, what it noted stays the last word."""
    files = RunFolder(tmp_path / "out")

    def launched(*arguments: Any) -> None:
        files.path.mkdir()
        files.started.write_text("{}")
        files.note(ended="failed", why="its own word", step=None)
        if is_killed:
            gone = replace(this_process(), pid=2**22 + 1)
            files.owner.write_text(json.dumps({"owner": asdict(gone), "beat": 1}))
        raise RankFailedError("rank 1:\nTraceback\n  ...\nMemoryError: all of it", 1)

    monkeypatch.setattr(run, "launch", launched)
    assert alignment(*THREE, "launch.processes=2", "distributed.zero=2").code == 1
    why = "RankFailedError: MemoryError: all of it" if is_killed else "its own word"
    assert ending(files.path)["why"] == why
