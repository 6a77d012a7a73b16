"""The command with log.ranges_every: what a run logs of what its dtype does not hold, and where that is refused."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

SMALL = ["model.init.hidden_size=32", "model.init.intermediate_size=48", "data.train.limit=64", "data.eval.limit=4"]
RUN = ["run", "tiny_sft", *SMALL, "batch.size=4", "train.warmup_steps=0", "log.progress=false"]
HALF = [*RUN, "distributed.precision=float16", "train.max_steps=4"]


def rows_of(alignment: Callable[..., Any], folder: Path, scale: int) -> list[dict[str, float]]:
    words = ["log.ranges_every=2", f"distributed.initial_loss_scale={scale}", f"output_dir={folder}"]
    ended = alignment(*HALF, *words)
    assert ended.code == 0, ended.err
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [row for row in rows if row["step"] > 0]


def test_a_run_in_float16_tells_what_a_larger_scale_saves(alignment: Callable[..., Any], tmp_path: Path) -> None:
    rows, scaled = (rows_of(alignment, tmp_path / f"out{scale}", scale) for scale in (1, 1024))
    told = [{name for name in row if name.startswith("ranges/")} for row in rows]
    assert [row["step"] for row, names in zip(rows, told, strict=True) if names] == [2, 4]
    layers = {name.split("/")[1] for name in told[1]}
    assert {"embeddings", "head", "layer_0"} <= layers and len(told[1]) == 4 * len(layers)
    for layer in layers - {"head"}:  # which is the last norm alone, whose gradient is large
        name = f"ranges/{layer}/grad_underflow"
        assert 0 <= scaled[1][name] < rows[1][name] / 4 < 0.25, name
    assert all(rows[1][f"ranges/{layer}/grad_overflow"] == 0 for layer in layers)


def test_where_nothing_trains_or_gradients_are_elsewhere_it_is_refused(alignment: Callable[..., Any]) -> None:
    ended = alignment(*HALF, "log.ranges_every=2", "distributed=zero3", "distributed.offload_optimizer=cpu")
    assert ended.code == 2 and "log.ranges_every must be 0 with distributed.offload_optimizer" in ended.err[-1]
    ended = alignment(*HALF, "log.ranges_every=-1")
    assert ended.code == 2 and "log.ranges_every must be >= 0, got -1" in ended.err[-1]
