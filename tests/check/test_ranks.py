"""Two processes and one: what a check measures in processes of its own."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from transformers import PreTrainedTokenizerBase

from alignment.check import ranks
from alignment.check.verdict import Grade
from alignment.config.batch import BatchConfig
from alignment.config.data import DataConfig, TrainSource
from alignment.config.distributed import Device, DistributedConfig
from alignment.config.generation import GenerationConfig
from alignment.config.launch import LaunchConfig
from alignment.config.model import ModelConfig
from alignment.config.online import PPOConfig
from alignment.config.reward import RewardShapingConfig
from alignment.config.supervised import RewardConfig
from alignment.config.train import TrainConfig
from alignment.distributed.launch import RankFailedError
from alignment.distributed.placement import WHOLE
from alignment.models.load import load_scalar_model, save_model


@pytest.fixture
def config(pretrained: str, files: dict[str, str]) -> RewardConfig:
    return RewardConfig(
        output_dir="run",
        batch=BatchConfig(max_tokens=8192),
        distributed=DistributedConfig(device=Device.cpu, zero=3),
        launch=LaunchConfig(processes=2),
        model=ModelConfig(path=pretrained),
        data=DataConfig(train=TrainSource(files["pairs"])),
        train=TrainConfig(max_steps=20),
    )


def test_two_processes_take_the_step_of_one(
    config: RewardConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    verdict = ranks.processes_agree(config)
    assert verdict.grade is Grade.ok and verdict.name == "2 processes == one", verdict
    assert list(tmp_path.iterdir()) == []


def test_two_processes_take_ppo_s_step_of_one(
    config: RewardConfig, pretrained: str, tokenizer: PreTrainedTokenizerBase, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Rollout, scores, experience and a step of both roles, with all weights sharded."""
    folder = tmp_path_factory.mktemp("judge")
    save_model(load_scalar_model(ModelConfig(path=pretrained), tokenizer, WHOLE), tokenizer, folder)
    ppo = PPOConfig(
        output_dir="run",
        distributed=config.distributed,
        launch=config.launch,
        model=config.model,
        data=config.data,
        batch=config.batch,
        train=config.train,
        reward=RewardShapingConfig(path=str(folder)),
        generation=GenerationConfig(max_new_tokens=6),
    )
    found = ranks.processes_agree(ppo)
    assert found.grade is Grade.ok and "8 of 8 drawn replies are the same" in found.figure, found
    assert "policy's grad_norm" in found.figure and "critic's grad_norm" in found.figure


def test_processes_that_count_a_gradient_twice_are_found(config: RewardConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    """What two processes left: the loss of one, and twice its gradient."""

    def launched(arguments: list[str], processes: int) -> None:
        assert arguments[:3] == ["-m", "alignment", "check"] and processes == 2
        alone = ranks.first_step(ranks.in_one_process(ranks.few(config, 8)), None)
        doubled = {**alone.numbers, "grad_norm": 2 * alone.numbers["grad_norm"]}
        Path(arguments[3]).with_name(ranks.MEASURED).write_text(json.dumps({"numbers": doubled, "replies": []}))

    monkeypatch.setattr(ranks, "launch", launched)
    assert ranks.processes_agree(config).grade is Grade.fail


def test_processes_that_fail_are_a_verdict(config: RewardConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    def launched(arguments: list[str], processes: int) -> None:
        raise RankFailedError("rank 1:\nRuntimeError: out of memory", 1)

    monkeypatch.setattr(ranks, "launch", launched)
    found = ranks.processes_agree(config)
    assert found.grade is Grade.fail and found.figure.endswith("RuntimeError: out of memory")


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
