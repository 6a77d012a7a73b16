"""`batch.max_tokens` as a run chooses it: from what is free, said, kept in its config, and the same when it goes on."""

import signal
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

import alignment
from alignment.config.batch import BatchConfig
from alignment.config.data import DataConfig
from alignment.config.errors import ConfigError
from alignment.config.evaluate import EvaluateConfig
from alignment.config.generation import GenerationConfig
from alignment.config.model import LoraConfig, ModelConfig
from alignment.config.online import OnlineDPOConfig, PairSelection, PPOConfig
from alignment.config.optimizer import OptimizerName
from alignment.config.ppo import PPOUpdateConfig
from alignment.config.reward import RewardShapingConfig, ScorerEntry
from alignment.config.sources import EvalSource, TrainSource
from alignment.config.supervised import DPOConfig
from alignment.config.train import TrainConfig
from alignment.data.batches import Packer
from alignment.models.footprint import Footprint, Role, Rows
from alignment.runs.folder import RunFolder
from alignment.runs.lifecycle import write_config
from alignment.tasks import max_tokens
from alignment.tasks.max_tokens import LEAST, Room, fitting, roles_of, with_max_tokens_of
from alignment.tasks.rows import rows_of, whole_step

GIB = 2**30
WHAT = {"max_steps": 3, "eval_every": 0, "warmup_steps": 0, "learning_rate": 1e-3}
SMALL: dict[str, Any] = {
    "model": {"init": {"hidden_size": 32, "intermediate_size": 48}},
    "data": {"train": {"limit": 64}, "eval": {"limit": 4}},
    "train": WHAT,
    "batch": {"size": 32, "max_tokens": None},
    "checkpoint": {"every": 1},
    "log": {"progress": False},
}


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Ctrl-C is heard, which it is not of a program that was started in the background."""
    monkeypatch.chdir(tmp_path)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def set_free(monkeypatch: pytest.MonkeyPatch, size: float) -> None:
    monkeypatch.setattr(max_tokens, "free_memory", lambda _: int(size))


def kept_in(folder: str) -> Any:
    return yaml.safe_load(Path(folder, "config.yaml").read_text())["batch"]["max_tokens"]


def weights_of(run: alignment.Run) -> bytes:
    assert run.model is not None
    return (run.model / "model.safetensors").read_bytes()


def test_a_run_that_goes_on_under_another_free_memory_has_the_same_bits(
    interrupted: Callable[..., None], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    set_free(monkeypatch, 0.03 * GIB)
    whole = alignment.run("tiny_dpo", output_dir="whole", **SMALL)
    said = capsys.readouterr().out
    assert "batch.max_tokens: 1024 tokens in one pass, as many as there is room for; 31 MiB are free on this" in said
    assert "MiB; batch.max_tokens=N sets another" in said
    interrupted("tiny_dpo", output_dir="parts", **SMALL)
    assert kept_in("parts") == kept_in("whole") == 1024
    set_free(monkeypatch, 64 * GIB)
    capsys.readouterr()
    parts = alignment.run("tiny_dpo", output_dir="parts", **SMALL)
    assert (
        "batch.max_tokens: 1024, as the run in parts began; batch.max_tokens=N sets another" in capsys.readouterr().out
    )
    assert kept_in("parts") == 1024 and weights_of(parts) == weights_of(whole)
    other = alignment.run("tiny_dpo", output_dir="other", **SMALL)
    assert kept_in("other") == 8192 and weights_of(other) != weights_of(whole)  # the last bits are others


def test_what_is_written_anew_for_a_begun_run_keeps_its_number(tmp_path: Path) -> None:
    """As `submit` writes it before a job goes on."""
    folder = RunFolder(tmp_path / "run")
    config = DPOConfig(model=MODEL, data=ROWS, train=TRAIN, output_dir=str(folder.path))
    write_config(folder, replace(config, batch=BatchConfig(max_tokens=2048)))
    write_config(folder, config)
    assert kept_in("run") is None  # no run has begun
    write_config(folder, replace(config, batch=BatchConfig(max_tokens=2048)))
    folder.started.touch()
    write_config(folder, config)
    assert kept_in("run") == 2048
    write_config(folder, replace(config, batch=BatchConfig(max_tokens=512)))
    assert kept_in("run") == 512


def test_a_number_that_is_named_stays(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    set_free(monkeypatch, 0.03 * GIB)
    settings = {**SMALL, "train": {**WHAT, "max_steps": 1}}
    alignment.run("tiny_dpo", output_dir="out", **{**settings, "batch": {"max_tokens": 3000}})
    assert kept_in("out") == 3000 and "batch.max_tokens" not in capsys.readouterr().out


def test_what_is_tight_is_said(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    set_free(monkeypatch, 1000)
    config = DPOConfig(
        model=ModelConfig(init={"model_type": "llama", "hidden_size": 32, "num_hidden_layers": 1}),
        data=DataConfig(train=TrainSource(path="none.jsonl"), max_length=3000, max_prompt_length=16),
        train=TrainConfig(max_steps=1, learning_rate=1e-3),
    )
    assert with_max_tokens_of(config, 1).batch.max_tokens == 3000  # the longest row is one pass in any case
    said = capsys.readouterr().out
    assert "WARNING: batch.max_tokens: the longest rows that the limits admit, of 5999 tokens, may not fit" in said


def test_a_model_that_cannot_be_counted_takes_a_number_and_says_so(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fails(*_: Any, **__: Any) -> Footprint:
        raise NotImplementedError("no numbers\nhere")

    monkeypatch.setattr(max_tokens, "footprint_of", fails)
    alignment.run("tiny_dpo", output_dir="out", **{**SMALL, "train": {**WHAT, "max_steps": 1}})
    assert kept_in("out") == 8192
    assert (
        "batch.max_tokens: 8192, without a look at the memory: that of model.init cannot be" in capsys.readouterr().out
    )


@pytest.mark.parametrize(
    ("free", "is_gpu", "number"), [(1, False, LEAST), (3.0, False, 2048), (999, False, 8192), (999, True, 16384)]
)
def test_the_highest_power_of_two_that_fits(free: float, *, is_gpu: bool, number: int) -> None:
    footprint = Footprint(held=0.1 * GIB, fixed=0.2 * GIB, per_token=GIB / 1024)  # 2.3 GiB with 2048 tokens
    assert fitting(footprint, Room(int(free * GIB), 1, "", is_gpu=is_gpu)) == number


@pytest.mark.parametrize(("room", "number"), [(6.1, 1024), (6.3, 2048)])
def test_models_learn_one_after_the_other(room: float, number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A critic of 2 GiB with its gradients beside an actor of 1.2 GiB without and a reference of 1 GiB."""

    def sized(role: Role, *_: Any, **__: Any) -> Footprint:
        gradients = 0.8 * GIB * role.is_trained
        return Footprint((1 + role.is_trained) * GIB, 0.0, GIB / 1024 * (role.key == "critic"), gradients)

    set_free(monkeypatch, room / max_tokens.SHARE * GIB)
    monkeypatch.setattr(max_tokens, "footprint_of", sized)
    reward = RewardShapingConfig(function="judges.mine")
    assert with_max_tokens_of(ppo(reward=reward), 1).batch.max_tokens == number


def test_the_processes_of_a_run_share_what_is_free(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of the run, and not of the one process that checks it."""
    set_free(monkeypatch, 8 * GIB)
    config = DPOConfig(
        model=ModelConfig(init={"model_type": "llama", "hidden_size": 32, "num_hidden_layers": 1}),
        data=DataConfig(train=TrainSource(path="none.jsonl"), max_length=64, max_prompt_length=16),
        train=TrainConfig(max_steps=1, learning_rate=1e-3),
    )
    asked: list[int] = []
    whole = max_tokens.footprint_of
    monkeypatch.setattr(max_tokens, "footprint_of", lambda *a, **b: asked.append(a[3]) or whole(*a, **b))
    config.distributed.zero, config.launch.processes = 2, 4
    with_max_tokens_of(config, config.processes())
    assert asked == [4]
    assert "2 GiB are free for each of the processes here" in capsys.readouterr().out


MODEL = ModelConfig(init={"model_type": "llama"})
ROWS = DataConfig(train=TrainSource(path="a"), max_length=100, max_prompt_length=40)
TRAIN = TrainConfig(max_steps=1, learning_rate=1e-3)


def ppo(**more: Any) -> PPOConfig:
    reward = more.pop("reward", RewardShapingConfig(path="r"))
    settings = {"model": MODEL, "data": ROWS, "train": TRAIN, **more}
    return PPOConfig(**settings, reward=reward, generation=GenerationConfig(max_new_tokens=70), num_samples=4)


def keys(roles: Iterator[Role]) -> list[str]:
    return [f"{role.key}{'*' * role.is_trained}{'+' * role.copies}" for role in roles]


def test_the_models_of_each_task_are_counted() -> None:
    """* of those that train, + of a copy of their weights."""
    assert keys(roles_of(DPOConfig(model=MODEL, data=ROWS, train=TRAIN))) == ["model.init*"]
    assert keys(roles_of(ppo())) == ["model.init*", "reference", "critic*", "reward.path"]
    assert keys(roles_of(ppo(ppo=PPOUpdateConfig(ema=0.9))))[0] == "model.init*+"
    adapter = ModelConfig(init={"model_type": "llama"}, lora=LoraConfig(rank=2))
    assert keys(roles_of(ppo(model=adapter))) == ["model.init*", "critic*", "reward.path"]
    several = RewardShapingConfig(models={"a": ScorerEntry(path="x"), "b": ScorerEntry(function="judges.mine")})
    online = OnlineDPOConfig(model=MODEL, data=ROWS, train=TRAIN, reward=several, gold_model="g")
    assert keys(roles_of(online)) == ["model.init*", "reference", "reward.models.a.path", "gold_model"]
    compared = EvaluateConfig(runs={"a": "x", "b": "y"}, data=DataConfig(eval=EvalSource(path="e")), reward="r")
    assert keys(roles_of(compared)) == ["runs.a", "runs.b", "reward"]


def test_the_rows_are_as_long_as_their_limits_admit() -> None:
    assert rows_of(DPOConfig(model=MODEL, data=ROWS, train=TRAIN)) == [Rows(1, 99, 2)]
    assert rows_of(ppo()) == [Rows(40, 70, 4)]
    pairs = DataConfig(eval=EvalSource(path="e"), max_length=600)
    assert rows_of(EvaluateConfig(reward="r", pairs=pairs)) == [Rows(1, 599, 2)]
    assert Rows(40, 70, 4).longest == 110 and Rows(40, 70, 4).together == 320


def test_a_step_that_is_one_pass_has_room_for_its_longest_rows_however_they_are_laid_out() -> None:
    lomo = replace(TRAIN, optimizer=OptimizerName.lomo, max_grad_norm=float("inf"))
    size = BatchConfig(size=6)
    assert whole_step(DPOConfig(model=MODEL, data=ROWS, train=TRAIN)) is None
    assert whole_step(DPOConfig(model=MODEL, data=ROWS, train=lomo, batch=size)) == 6 * 2 * 100
    assert whole_step(ppo(train=lomo, batch=size, ppo=PPOUpdateConfig(mini_batches=4))) == 2 * 4 * 110
    function = RewardShapingConfig(function="judges.mine")
    online = OnlineDPOConfig(model=MODEL, data=ROWS, train=lomo, batch=size, reward=function, num_samples=3)
    longest = online.data.max_prompt_length + online.generation.max_new_tokens
    assert whole_step(online) == 6 * 2 * longest
    assert whole_step(replace(online, pairs=PairSelection.all)) == 6 * 3 * 2 * longest


def test_without_a_run_a_number_is_asked_for() -> None:
    with pytest.raises(ConfigError, match=r"batch.max_tokens must be a number where no run chooses it: .*, got null"):
        Packer(BatchConfig(), 0).train_batches([])
    with pytest.raises(ConfigError, match=r"batch.max_tokens must be > 0, or null"):
        BatchConfig(max_tokens=0)
