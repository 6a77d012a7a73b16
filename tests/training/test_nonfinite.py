"""A loss or gradient that is no number: found before the weights are touched, told with its rows, left out or fatal."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from alignment.config.batch import BatchConfig, Layout
from alignment.config.checkpoint import CheckpointConfig
from alignment.config.data import DataConfig, TrainSource
from alignment.config.distributed import Device, DistributedConfig
from alignment.config.errors import UserError
from alignment.config.log import LogConfig
from alignment.config.model import ModelConfig
from alignment.config.supervised import SFTConfig
from alignment.config.train import OnNonFinite, TrainConfig
from alignment.data.batches import Batches, Packer
from alignment.data.pack import Batch, pack
from alignment.data.tokenize import Example
from alignment.distributed.engine import TorchEngine
from alignment.losses import CrossEntropyLoss, LossOutput, Mean
from alignment.training.loop import fit
from alignment.training.metrics import Metrics
from alignment.training.nonfinite import NonFiniteGuard, NonFiniteStep
from alignment.training.objectives import SFT
from alignment.training.step import train_step
from alignment.training.supervised import Supervised

BAD_ROW = 2
KINDS = ["loss", "infinite loss", "gradient"]


class Bad:
    """SFT, but a batch with the row `BAD_ROW` has a loss, or only a gradient, that is no number."""

    def __init__(self, kind: str) -> None:
        self.kind, self.sft = kind, SFT(CrossEntropyLoss())

    def __call__(self, model: nn.Module, batch: Batch) -> LossOutput:
        output = self.sft(model, batch)
        if BAD_ROW not in batch.rows.tolist():
            return output
        total = output.loss.total
        if self.kind == "gradient":  # 0 * d sqrt(0) = 0 * inf
            total = total + (total - total.detach()).clamp(min=0).sqrt()
        else:  # a constant: the gradient is a number all the same
            total = total + float("nan" if self.kind == "loss" else "inf")
        return LossOutput(Mean(total, output.loss.count), output.metrics)

    def count(self, batch: Batch) -> int:
        return self.sft.count(batch)


def batch_of(demonstrations: list[Example], *rows: int) -> Batch:
    return pack([demonstrations[row] for row in rows], rows, layout=Layout.shared, pad_id=0)


def weights(engine: TorchEngine) -> list[torch.Tensor]:
    return [p.detach().clone() for p in engine.model.parameters()]


@pytest.mark.parametrize("kind", KINDS)
def test_the_weights_stay_as_they_are(
    descent: Callable[..., TorchEngine], demonstrations: list[Example], kind: str
) -> None:
    """And the gradients are gone: the next step is that of a run which never saw the bad one."""
    engine, clean = descent(), descent()
    before, told = weights(engine), []
    micro_batches = [batch_of(demonstrations, 0, 1), batch_of(demonstrations, BAD_ROW, 3)]
    assert train_step(engine, Bad(kind), micro_batches, told.append) == {}
    assert all(torch.equal(a, b) for a, b in zip(before, weights(engine), strict=True))
    (broken,) = told
    assert isinstance(broken, NonFiniteStep) and broken.objective == "Bad"
    assert (torch.tensor(broken.loss).isfinite().item(), torch.tensor(broken.grad_norm).isfinite().item()) == (
        (True, False) if kind == "gradient" else (False, True)
    )
    for each in (engine, clean):
        train_step(each, Bad(kind), [batch_of(demonstrations, 4, 5)])
    assert all(torch.equal(a, b) for a, b in zip(weights(clean), weights(engine), strict=True))


def test_a_step_alone_raises(descent: Callable[..., TorchEngine], demonstrations: list[Example]) -> None:
    with pytest.raises(UserError, match=r"^the loss of Bad is nan, the norm of its gradient \d"):
        train_step(descent(), Bad("loss"), [batch_of(demonstrations, BAD_ROW)])


def settings(folder: Path, choice: OnNonFinite, **others: Any) -> SFTConfig:
    return SFTConfig(
        output_dir=str(folder),
        model=ModelConfig(init={"model_type": "llama"}),
        data=DataConfig(train=TrainSource(path="rows.jsonl")),
        batch=BatchConfig(size=2, max_tokens=60, layout=Layout.shared),
        train=TrainConfig(max_steps=6, on_nonfinite=choice),
        log=LogConfig(progress=False),
        distributed=DistributedConfig(device=Device.cpu),
        **others,
    )


def supervised(engine: TorchEngine, objective: Bad, train: Batches) -> Supervised:
    return Supervised(engine, objective, objective, train=train, held_out=None, save=lambda folder: None)


def test_stop_ends_the_run_and_tells_the_rows(
    descent: Callable[..., TorchEngine], demonstrations: list[Example], tmp_path: Path
) -> None:
    config = settings(tmp_path, OnNonFinite.stop)
    train, engine = Batches(demonstrations, Packer(config.batch, 0), 0), descent()
    bad = next(step for step in range(1, 4) if BAD_ROW in train.step_rows(step - 1))
    told = rf"^step {bad}: the loss of Bad is nan, .* its rows are in .*nonfinite\.json; .*train\.on_nonfinite=skip"
    with pytest.raises(UserError, match=told):
        fit(supervised(engine, Bad("loss"), train), config, tmp_path)
    (met,) = json.loads((tmp_path / "nonfinite.json").read_text())
    assert (met["step"], met["loss"], met["objective"]) == (bad, "nan", "Bad")
    assert [row["row"] for row in met["rows"]] == train.step_rows(bad - 1)
    assert {row["source"] for row in met["rows"]} == {"rows.jsonl:1"}
    logged = (tmp_path / "metrics.jsonl").read_text().splitlines() if bad > 1 else []
    assert len(logged) == bad - 1


class Worse(Bad):
    """No batch has a loss."""

    def __call__(self, model: nn.Module, batch: Batch) -> LossOutput:
        output = self.sft(model, batch)
        return LossOutput(Mean(output.loss.total * float("nan"), output.loss.count), output.metrics)


@pytest.mark.parametrize(("max_steps", "last"), [(6, 6), (12, 10)])
def test_a_run_that_leaves_out_all_its_steps_is_no_finished_one(
    descent: Callable[..., TorchEngine], demonstrations: list[Example], tmp_path: Path, max_steps: int, last: int
) -> None:
    """Nor is one that was cut meanwhile; one that takes its first step may leave out all that follow."""
    config = settings(tmp_path, OnNonFinite.skip, checkpoint=CheckpointConfig(every=1))
    train, asked = Batches(demonstrations, Packer(config.batch, 0), 0), rf"^step {last}: no step so far could be taken"
    for until in (3, max_steps):
        config.train.max_steps = until
        told = rf"{asked}.* in .*nonfinite\.json \(the first: Worse, loss nan\)" if until == max_steps else "step 3: "
        with pytest.raises(UserError, match=told):
            fit(supervised(descent(), Worse("loss"), train), config, tmp_path)
    guard = NonFiniteGuard(tmp_path / "nonfinite.json", OnNonFinite.skip, train)
    broken = NonFiniteStep("SFT", float("nan"), 1.0)
    for step in range(1, 30):
        learned = Metrics(grad_norm=Mean(torch.tensor(1.0), torch.tensor(1))) if step == 1 else Metrics()
        if step > 1:
            guard.record(step, broken)
        guard.require_learning(step, learned, num_steps=29)


def test_a_checkpoint_from_before_steps_were_counted_so_goes_on(demonstrations: list[Example], tmp_path: Path) -> None:
    data = Batches(demonstrations, Packer(BatchConfig(size=2, max_tokens=60), 0), 0)
    guard = NonFiniteGuard(tmp_path / "nonfinite.json", OnNonFinite.skip, data)
    guard.load_state({"met": []})
    for step in range(5, 30):
        guard.record(step, NonFiniteStep("SFT", float("nan"), 1.0))
        guard.require_learning(step, Metrics(), num_steps=29)


@pytest.mark.parametrize(("num_steps", "last"), [(29, 10), (2, 2)])
def test_a_step_with_nothing_to_learn_from_is_no_step_left_out(
    demonstrations: list[Example], tmp_path: Path, num_steps: int, last: int, capsys: pytest.CaptureFixture[str]
) -> None:
    """Groups whose replies all score alike, say, are dropped, and nothing is wrong with them; of a run that had no
    others it is said, once."""
    data = Batches(demonstrations, Packer(BatchConfig(size=2, max_tokens=60), 0), 0)
    guard = NonFiniteGuard(tmp_path / "nonfinite.json", OnNonFinite.skip, data)
    learned = Metrics(grad_norm=Mean(torch.tensor(1.0), torch.tensor(1)))
    for first in (learned, Metrics()):
        assert capsys.readouterr().out == ""
        for step in range(1, num_steps + 1):
            guard.require_learning(step, first if step == 1 else Metrics(), num_steps=num_steps)
    said = f"step {last}: no step so far had anything to learn from, the weights are as they came: the replies to each "
    assert capsys.readouterr().out == f"{said}prompt all score alike, or are the same\n"


@pytest.mark.parametrize("num_steps", [29, 2])
def test_a_run_whose_every_gradient_overflows_float16_is_no_finished_one(
    demonstrations: list[Example], tmp_path: Path, num_steps: int, capsys: pytest.CaptureFixture[str]
) -> None:
    """It goes on for as long as the scale may yet come down, which is said."""
    data = Batches(demonstrations, Packer(BatchConfig(size=2, max_tokens=60), 0), 0)
    guard, one = NonFiniteGuard(tmp_path / "nonfinite.json", OnNonFinite.skip, data), torch.tensor(1)
    skipped = Metrics({"actor/precision/skipped": Mean(one.float(), one)})
    for step in range(1, num_steps):
        guard.require_learning(step, skipped, num_steps=num_steps)
    assert capsys.readouterr().out.count("step 10: no step so far was taken") == (num_steps > 10)
    told = (
        rf"^step {num_steps}: distributed\.initial_loss_scale must be lower, or the run longer: no step of it was taken"
    )
    with pytest.raises(UserError, match=told):
        guard.require_learning(num_steps, skipped, num_steps=num_steps)
    taken = Metrics({"actor/precision/skipped": Mean(one.float(), one), "grad_norm": Mean(one.float(), one)})
    guard = NonFiniteGuard(tmp_path / "nonfinite.json", OnNonFinite.skip, data)
    for step, learned in ((1, taken), (2, skipped)):
        guard.require_learning(step, learned, num_steps=2)


def test_the_role_whose_numbers_are_none_is_named(
    demonstrations: list[Example], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The critic's and the reference's are in the loss of the actor, which is not to be blamed for them."""
    data = Batches(demonstrations, Packer(BatchConfig(size=2, max_tokens=60), 0), 0)
    stops, skips = (
        NonFiniteGuard(tmp_path / "nonfinite.json", choice, data) for choice in (OnNonFinite.stop, OnNonFinite.skip)
    )
    stops.record_roles(2, {})
    told = r"^step 3: 2 log-probs of the reference are no finite numbers \(it is the model as .*\); 5 values of the "
    told += r"critic are .* critic\.learning_rate .* its rows are in .*nonfinite\.json; .*train\.on_nonfinite=skip"
    with pytest.raises(UserError, match=told):
        stops.record_roles(3, {"reference": 2, "critic": 5})
    (met,) = json.loads((tmp_path / "nonfinite.json").read_text())
    assert (met["step"], met["roles"]) == (3, {"reference": 2, "critic": 5})
    assert [row["row"] for row in met["rows"]] == data.step_rows(2)
    skips.record_roles(3, {"actor": 1})
    assert "step 3: 1 log-probs of the actor are no finite numbers" in capsys.readouterr().out
    assert skips.metrics() == {"skipped_steps": 0.0}  # they are counted as they are met


def test_skip_leaves_the_step_out_counts_it_and_goes_on_the_same(
    descent: Callable[..., TorchEngine], demonstrations: list[Example], tmp_path: Path
) -> None:
    """Two passes meet the row twice; a run that was cut between them knows of the first."""
    results = {}
    for name, every in (("whole", 0), ("cut", 3)):
        folder = tmp_path / name
        folder.mkdir()
        config = settings(folder, OnNonFinite.skip, checkpoint=CheckpointConfig(every=every))
        train = Batches(demonstrations, Packer(config.batch, 0), 0)
        for max_steps in (6,) if name == "whole" else (3, 6):
            config.train.max_steps = max_steps
            engine = descent()
            fit(supervised(engine, Bad("gradient"), train), config, folder)
        rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        bad = [step for step in range(1, 7) if BAD_ROW in train.step_rows(step - 1)]
        assert len(bad) == 2
        assert [row["skipped_steps"] for row in rows] == [sum(b <= step for b in bad) for step in range(1, 7)]
        assert [row["step"] for row in rows if "loss" not in row] == bad
        assert [met["step"] for met in json.loads((folder / "nonfinite.json").read_text())] == bad
        timeless = [{name: value for name, value in row.items() if not name.startswith("time/")} for row in rows]
        results[name] = (timeless, weights(engine))
    assert results["whole"][0] == results["cut"][0]
    assert all(torch.equal(a, b) for a, b in zip(results["whole"][1], results["cut"][1], strict=True))
