import json
from pathlib import Path

import pytest
import torch

from alignment.config.errors import UserError
from alignment.config.log import LogConfig
from alignment.config.supervised import SFTConfig
from alignment.losses import Mean
from alignment.training.log import MetricsLog
from alignment.training.metrics import Metrics
from alignment.training.timer import StepTimer


def open_log(folder: Path, done: int) -> MetricsLog:
    config = object.__new__(SFTConfig)
    config.log = LogConfig(progress=False)
    return MetricsLog(folder, config, StepTimer(torch.device("cpu")), num_steps=9, done=done)


def steps(folder: Path) -> list[int]:
    return [json.loads(line)["step"] for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_a_resumed_log_forgets_what_is_written_again_and_a_torn_line(tmp_path: Path) -> None:
    with open_log(tmp_path, 0) as log:
        for step in range(1, 5):
            log.write(step, {"loss": 1.0 / step})
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 5, "lo')
    with open_log(tmp_path, 2) as log:
        log.write(3, {"loss": 0.5})
    assert steps(tmp_path) == [1, 2, 3]


def test_an_evaluation_before_the_first_step_is_in_the_log_once_however_often_the_run_begins(tmp_path: Path) -> None:
    """Again where it was killed before its first checkpoint, or had evaluated alone."""
    for loss in (3.0, 2.0):
        with open_log(tmp_path, 0) as log:
            log.write(0, {"eval/loss": loss})
    assert steps(tmp_path) == [0] and '"eval/loss": 2.0' in (tmp_path / "metrics.jsonl").read_text()


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_number_that_is_none_stops_the_run(tmp_path: Path, value: float) -> None:
    with open_log(tmp_path, 0) as log, pytest.raises(UserError, match=r"^step 3: grad_norm is (nan|inf); "):
        log.write(3, {"loss": 1.0, "grad_norm": value})


def test_a_metric_that_counted_nothing_is_left_out() -> None:
    metrics = Metrics({"a": Mean(torch.tensor(6.0), torch.tensor(4)), "b": Mean(torch.tensor(1.0), torch.tensor(0))})
    assert metrics.means() == {"a": 1.5}
