"""Files of a run's folder that a full disk has cut, or that somebody has changed: each verb that reads one says which,
in one line, or does without it."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

SMALL = ["model.init.hidden_size=32", "model.init.intermediate_size=48", "data.train.limit=16", "data.eval.limit=4"]
RUN = ["run", "tiny_sft", *SMALL, "batch.size=4", "train.warmup_steps=0", "log.progress=false", "output_dir=out"]
BEST = ["train.best.metric=eval/loss", "train.eval_every=1", "checkpoint.every=1"]
FILES = (
    *("config.yaml", "started.json", "finished.json", "progress.json", "history.jsonl", "metrics.jsonl"),
    *("submitted.json", "owner.json", "best/.step", "summary.json"),
)
DAMAGES = [
    pytest.param(b'{"step": 1', id="cut"),
    pytest.param(b"\xff\xfe\n", id="letters", marks=pytest.mark.slow),
    pytest.param(b"[1]\n", id="another kind", marks=pytest.mark.slow),
]
FEW = ["data.eval.limit=2", "generation.max_new_tokens=2", "output_dir=found"]
COMMANDS = {
    "status": ["status", "out"],
    "compare": ["compare", "out", "whole"],
    "again": [*RUN, "train.max_steps=2", *BEST],
    "steered": [*RUN, "train.max_steps=3", *BEST, "train.weight_decay=0.5", "resume.accept=[train.weight_decay]"],
    "export": ["export", "out"],
    "logs": ["logs", "out"],
    "evaluate": ["run", "tiny_evaluate", "runs={a: out, b: whole}", "baseline=b", *FEW],
}


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return {"folder": tmp_path_factory.mktemp("trained")}


@pytest.fixture
def whole(alignment: Callable[..., Any], trained: dict[str, Path], tmp_path: Path) -> Path:
    """A finished run in `out`, and another copy of it; it has gone on with a change."""
    kept = trained["folder"] / "out"
    if not kept.exists():
        assert alignment(*RUN, "train.max_steps=1", *BEST).code == 0
        assert alignment(*RUN, "train.max_steps=2", *BEST).code == 0
        (tmp_path / "out").rename(kept)
    for name in ("out", "whole"):
        shutil.copytree(kept, tmp_path / name)
    return tmp_path / "out"


@pytest.mark.parametrize("file", FILES)
@pytest.mark.parametrize("content", DAMAGES)
def test_a_damaged_file_is_one_line_for_every_verb(
    content: bytes, file: str, alignment: Callable[..., Any], whole: Path
) -> None:
    kept = whole.parent / "kept"
    whole.rename(kept)
    for name, words in COMMANDS.items():
        shutil.copytree(kept, whole)
        (whole / file).write_bytes(content)
        ended = alignment(*words)
        case = (name, ended.code, ended.err)
        assert ended.code in (0, 2) and len(ended.err) <= 1, case
        assert (ended.code == 2) == bool(ended.err), case
        if ended.code == 2 and name != "logs":
            assert Path(file).name in ended.err[0], case
        shutil.rmtree(whole)
        shutil.rmtree(whole.parent / "found", ignore_errors=True)


def test_a_history_that_cannot_be_read_stops_a_change_that_may_be_in_it(
    alignment: Callable[..., Any], whole: Path
) -> None:
    with (whole / "history.jsonl").open("a") as file:
        file.write(json.dumps({"changed": "train.weight_decay"}) + "\n")
    line = len((whole / "history.jsonl").read_text().splitlines())
    ended = alignment(*COMMANDS["steered"])
    assert ended.code == 2 and f"out/history.jsonl:{line} must be a JSON object" in ended.err[0], ended.err
    assert "out is damaged: out/history.jsonl" in alignment("status", ".").out
