"""Two processes and one: what a check measures in processes of its own."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from alignment.check import ranks
from alignment.config.launch import LaunchConfig
from alignment.config.parts import DataConfig, DistributedConfig, ModelConfig, SourceConfig, TrainConfig
from alignment.config.tasks import RewardConfig
from alignment.config.vocabulary import Device, Grade


@pytest.fixture
def config(pretrained: str, files: dict[str, str]) -> RewardConfig:
    return RewardConfig(
        output_dir="run",
        distributed=DistributedConfig(device=Device.cpu, zero=3),
        launch=LaunchConfig(processes=2),
        model=ModelConfig(path=pretrained),
        data=DataConfig(train=SourceConfig(files["pairs"])),
        train=TrainConfig(max_steps=20),
    )


def test_two_processes_take_the_step_of_one(
    config: RewardConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    verdict = ranks.processes_agree(config)
    assert verdict.grade is Grade.ok and verdict.name == "2 processes == one", verdict
    assert list(tmp_path.iterdir()) == []


def test_processes_that_count_a_gradient_twice_are_found(config: RewardConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    """What two processes left: the loss of one, and twice its gradient."""

    def launched(arguments: list[str], processes: int) -> None:
        assert arguments[:2] == ["-m", "alignment.check.ranks"] and processes == 2
        alone = ranks.first_step(ranks.in_one_process(ranks.few(config, 8)))
        doubled = {**alone, "grad_norm": 2 * alone["grad_norm"]}
        (Path(arguments[2]) / ranks.MEASURED).write_text(json.dumps(doubled))

    monkeypatch.setattr(ranks, "launch", launched)
    assert ranks.processes_agree(config).grade is Grade.fail


def test_several_processes_are_asked_for_where_the_config_does(
    config: RewardConfig, monkeypatch: pytest.MonkeyPatch, checked: Callable[..., Any]
) -> None:
    from alignment.check import run

    called: list[Any] = []
    monkeypatch.setattr(run, "on_rows", lambda config: iter(()))
    monkeypatch.setattr(run, "processes_agree", lambda config: called.append(config))
    list(run.check(config))
    assert called == [config]
    list(checked(RewardConfig, "pairs"))
    assert called == [config]
