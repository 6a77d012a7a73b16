"""float16: the loss is scaled, a step that overflows is left out and halves the scale, and nothing else is changed."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import SGD, AdamW
from torch.optim.lr_scheduler import LambdaLR
from transformers import PreTrainedTokenizerBase

from alignment.config.batch import Layout
from alignment.config.checkpoint import CheckpointConfig
from alignment.config.data import DataConfig, Format, TrainSource
from alignment.config.distributed import Device, DistributedConfig, Precision
from alignment.config.errors import ConfigError
from alignment.config.generation import GenerationConfig
from alignment.config.model import ModelConfig
from alignment.config.online import PPOConfig
from alignment.config.ppo import PPOUpdateConfig
from alignment.config.reward import RewardShapingConfig
from alignment.config.train import TrainConfig
from alignment.data.pack import Batch, pack
from alignment.data.tokenize import Example
from alignment.distributed.engine import TorchEngine
from alignment.distributed.loss_scale import LossScale
from alignment.distributed.placement import WHOLE
from alignment.losses import CrossEntropyLoss, DPOLoss, LossOutput, Mean
from alignment.models.load import load_language_model, load_scalar_model
from alignment.models.readout import token_logprobs
from alignment.rl.experience import Experience
from alignment.rl.update import update_actor_and_critic
from alignment.training.checkpoint import Checkpoints
from alignment.training.nonfinite import NonFiniteStep
from alignment.training.objectives import DPO, SFT
from alignment.training.step import train_step

HUGE = 2.0**40
Build = Callable[..., TorchEngine]


@pytest.fixture
def built(tiny_init: dict[str, Any], tokenizer: PreTrainedTokenizerBase) -> Build:
    def build(
        initial: float = HUGE, *, precision: str = "float16", kind: str = "language", descends: bool = False
    ) -> TorchEngine:
        torch.manual_seed(0)
        load: Any = {"language": load_language_model, "scalar": load_scalar_model}[kind]
        model = load(ModelConfig(init=tiny_init), tokenizer, WHOLE)
        optimizer = SGD(model.parameters(), lr=1.0) if descends else AdamW(model.parameters(), lr=3e-3)
        own: dict[str, Any] = {"initial_loss_scale": initial, "loss_scale_window": 2} if precision == "float16" else {}
        config = DistributedConfig(device=Device.cpu, precision=Precision(precision), **own)
        schedule = LambdaLR(optimizer, lambda step: 1 - step / 100)
        return TorchEngine(model, optimizer, schedule, config=config, max_grad_norm=0.05)

    return build


def batch_of(rows: list[Example], *taken: int) -> Batch:
    return pack([rows[row] for row in taken], taken, layout=Layout.shared, pad_id=0)


def scale_of(engine: TorchEngine) -> float:
    assert engine.scaling is not None
    return engine.scaling.scale


def assert_alike(one: Any, other: Any) -> None:
    """States, to the last bit."""
    if isinstance(one, dict):
        assert one.keys() == other.keys()
        for name in one:
            assert_alike(one[name], other[name])
    elif isinstance(one, Tensor):
        assert torch.equal(one, other)
    elif isinstance(one, list):
        for first, second in zip(one, other, strict=True):
            assert_alike(first, second)
    else:
        assert one == other


def test_the_scale_is_that_of_torch_s_own_scaler() -> None:
    own, weight = LossScale(64.0, 3), nn.Parameter(torch.ones(1))
    theirs, optimizer = torch.amp.GradScaler("cpu", init_scale=64.0, growth_interval=3), SGD([weight], lr=0.0)
    found = []
    for overflows in (True, False, False, True, True, False, False, False, False, False, False, True, False):
        theirs.scale(weight * (float("inf") if overflows else 1.0)).backward()
        theirs.step(optimizer)
        theirs.update()
        optimizer.zero_grad()
        own.update(is_taken=not overflows)
        found.append(own.scale)
        assert own.scale == theirs.get_scale()
    assert min(found) == 8.0 and found[-2:] == [16.0, 16.0] and 32.0 in found[5:]


def test_steps_that_overflow_change_the_scale_alone(built: Build, demonstrations: list[Example]) -> None:
    """What follows them is what a run does that began at the scale to which they have halved it, over micro-batches
    that are added up."""
    engine, sft = built(), SFT(CrossEntropyLoss())
    micro_batches = [batch_of(demonstrations, 0, 1), batch_of(demonstrations, 2, 3)]
    before, steps = engine.state(), 0
    before["model"] = {name: weight.clone() for name, weight in before["model"].items()}
    while "loss" not in (metrics := train_step(engine, sft, micro_batches)):
        assert metrics.means() == {"precision/loss_scale": HUGE / 2**steps, "precision/skipped": 1.0}
        steps += 1
        state = engine.state()
        assert state.pop("loss_scale") == {"scale": HUGE / 2**steps, "num_taken": 0, "began": HUGE}
        assert_alike(state, {name: each for name, each in before.items() if name != "loss_scale"})
    assert steps > 3
    clean = built(HUGE / 2**steps)
    train_step(clean, sft, micro_batches)
    for _ in range(5):  # more than two of them without an overflow double the scale, which then may overflow
        told = [train_step(each, sft, micro_batches).means() for each in (engine, clean)]
        assert told[0] == told[1]
        states = engine.state(), clean.state()
        assert [state["loss_scale"].pop("began") for state in states] == [HUGE, HUGE / 2**steps]
        assert_alike(*states)
    assert told[0]["precision/loss_scale"] >= HUGE / 2**steps and clean.scheduler.last_epoch >= 4


@pytest.mark.parametrize("scale", [2.0, 2.0**12])
def test_gradients_are_clipped_as_they_are_without_the_scale(
    built: Build, demonstrations: list[Example], scale: float
) -> None:
    batch, sft = batch_of(demonstrations, 0, 1, 2), SFT(CrossEntropyLoss())
    found = []
    for engine in (built(scale, descends=True), built(precision="float32", descends=True)):
        before = [p.detach().clone() for p in engine.model.parameters()]
        norm = train_step(engine, sft, [batch]).means()["grad_norm"]
        moved = [was - now.detach() for was, now in zip(before, engine.model.parameters(), strict=True)]
        found.append((norm, torch.cat([each.flatten() for each in moved])))
    (norm, moved), (exact, wanted) = found
    assert norm == pytest.approx(exact, rel=0.01) and exact > 0.1
    assert moved.norm().item() == pytest.approx(0.05, rel=1e-3)
    assert (moved - wanted).norm() < 0.05 * wanted.norm()


@pytest.mark.parametrize("name", ["sft", "dpo"])
def test_it_learns(built: Build, demonstrations: list[Example], pairs: list[Example], name: str) -> None:
    engine = built(2.0**16)
    reference = torch.tensor([[-40.0, -70.0], [-30.0, -15.0], [-45.0, -25.0]])
    objective: Any = SFT(CrossEntropyLoss()) if name == "sft" else DPO(DPOLoss(), reference)
    batch = batch_of(demonstrations if name == "sft" else pairs, 0, 1, 2)
    losses = [train_step(engine, objective, [batch]).means().get("loss") for _ in range(15)]
    learned = [loss for loss in losses if loss is not None]
    assert len(learned) > 10 and learned[-1] < 0.7 * learned[0]
    assert {weight.dtype for weight in engine.model.parameters()} == {torch.float32}


class NoNumber(SFT):
    def __call__(self, model: nn.Module, batch: Batch) -> LossOutput:
        loss = SFT.__call__(self, model, batch).loss
        return LossOutput(Mean(loss.total * float("nan"), loss.count), {})


def test_what_no_scale_mends_is_no_overflow(built: Build, demonstrations: list[Example]) -> None:
    engine, told = built(4.0), list[NonFiniteStep]()
    for _ in range(4):
        train_step(engine, NoNumber(CrossEntropyLoss()), [batch_of(demonstrations, 0)], told.append)
    assert scale_of(engine) == 1.0 and [each.objective for each in told] == ["NoNumber"] * 2


def test_a_run_goes_on_with_the_scale_that_it_had(built: Build, demonstrations: list[Example], tmp_path: Path) -> None:
    sft, batch = SFT(CrossEntropyLoss()), batch_of(demonstrations, 0, 1)
    engine, again = built(), built()
    while "loss" not in train_step(engine, sft, [batch]):
        pass
    Checkpoints(tmp_path, CheckpointConfig(every=1), {"model": engine}).save_if_due(1)
    assert Checkpoints(tmp_path, CheckpointConfig(every=1), {"model": again}).restore() == 1
    assert scale_of(again) == scale_of(engine) < HUGE
    for _ in range(3):
        assert train_step(engine, sft, [batch]).means() == train_step(again, sft, [batch]).means()
    assert_alike(engine.state(), again.state())
    other = built(precision="float32")
    other.load_state(again.state())
    again.load_state(other.state())  # which says nothing of a scale


def test_a_run_goes_on_with_another_scale_or_window_that_is_given() -> None:
    """From the next step on: the scale is the new one, and a window that is over already ends with the step."""
    first = LossScale(64.0, 2000)
    for taken in (False, True, True, True):
        first.update(is_taken=taken)
    assert first.scale == 32.0
    same, shorter, other = LossScale(64.0, 2000), LossScale(64.0, 3), LossScale(2.0**16, 2000)
    for each in (same, shorter, other):
        each.load_state(first.state())
    assert [each.scale for each in (same, shorter, other)] == [32.0, 32.0, 2.0**16]
    found = []
    for _ in range(7):
        shorter.update(is_taken=True)
        found.append(shorter.scale)
    assert found == [64.0, 64.0, 64.0, 128.0, 128.0, 128.0, 256.0]
    again = LossScale(2.0**16, 2000)
    other.update(is_taken=False)
    again.load_state(other.state())
    assert again.scale == other.scale == 2.0**15
    older = {name: value for name, value in first.state().items() if name != "began"}
    again.load_state(older)  # of a checkpoint that does not say how it began
    assert again.scale == 32.0


@torch.no_grad()
def experience(actor: TorchEngine, batch: Batch) -> Experience:
    noise = torch.randn(3, batch.num_tokens, generator=torch.Generator().manual_seed(0))
    now = token_logprobs(actor.model, batch)
    return Experience(batch, now, now, noise[0], noise[1], noise[2])


@pytest.mark.parametrize(("of_actor", "of_critic"), [(2.0**8, HUGE), (HUGE, 2.0**8)])
def test_actor_and_critic_skip_together(
    built: Build, demonstrations: list[Example], tiny_init: dict[str, Any], of_actor: float, of_critic: float
) -> None:
    """Where either overflows neither moves, and both scales are halved; what follows is what it would have been."""
    config = PPOConfig(
        model=ModelConfig(init=tiny_init),
        data=DataConfig(format=Format.toy, train=TrainSource(limit=5)),
        train=TrainConfig(max_steps=1),
        reward=RewardShapingConfig(function="alignment.toy.gold"),
        ppo=PPOUpdateConfig(epochs=1),
        generation=GenerationConfig(temperature=1.0),
        distributed=DistributedConfig(device=Device.cpu),
    )
    engines = actor, critic = built(of_actor), built(of_critic, kind="scalar")
    made = [[experience(actor, batch_of(demonstrations, 0, 1))]]
    before = [[p.detach().clone() for p in each.model.parameters()] for each in engines]
    metrics = update_actor_and_critic(actor, critic, made, config, kl_weight=0.0, seed=0).means()
    wanted = {"precision/loss_scale": of_actor, "value/precision/loss_scale": of_critic, "policy/steps": 1.0}
    assert metrics == {**wanted, "precision/skipped": 1.0, "value/precision/skipped": 1.0}
    for each, was in zip(engines, before, strict=True):
        assert all(torch.equal(p, old) for p, old in zip(each.model.parameters(), was, strict=True))
        assert each.scheduler.last_epoch == 0 and each.optimizer.state == {}
    assert [scale_of(each) for each in engines] == [of_actor / 2, of_critic / 2]
    low = built(2.0**8), built(2.0**8, kind="scalar")
    taken = update_actor_and_critic(*low, made, config, kl_weight=0.0, seed=0).means()
    assert taken["precision/skipped"] == taken["value/precision/skipped"] == 0.0 and "value/loss" in taken
    assert [each.scheduler.last_epoch for each in low] == [1, 1]


@pytest.mark.parametrize(
    ("told", "rule"),
    [
        ({"initial_loss_scale": 8.0}, "initial_loss_scale must be null unless distributed.precision=float16, got 8"),
        ({"precision": Precision.float16, "initial_loss_scale": 0.5}, "must be a finite number >= 1, got 0.5"),
        ({"precision": Precision.float16, "initial_loss_scale": 1e39}, r"must be <= 2\*\*127 .*, got 1e\+39"),
        ({"precision": Precision.float16, "loss_scale_window": 0}, "loss_scale_window must be > 0, got 0"),
    ],
)
def test_what_cannot_act_is_refused(told: dict[str, Any], rule: str) -> None:
    with pytest.raises(ConfigError, match=rule):
        DistributedConfig(**told)


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory, run_ranks: Callable[..., None]) -> Callable[[str], dict[str, bool]]:
    """What was seen under a stage; two of them are run at a time."""
    made: dict[str, dict[str, bool]] = {}

    def find(stage: str) -> dict[str, bool]:
        if stage not in made:
            out = tmp_path_factory.mktemp("float16") / "found.json"
            stages = ["0", "1"] if stage in "01" else ["2", "3"]
            run_ranks(Path(__file__).with_name("float16_ranks.py"), [str(out), *stages], processes=2)
            made.update(json.loads(out.read_text()))
        return made[stage]

    return find


@pytest.mark.parametrize(
    "stage", [pytest.param("0", marks=pytest.mark.slow), pytest.param("1", marks=pytest.mark.slow), "2", "3"]
)
def test_processes_skip_together(stage: str, found: Callable[[str], dict[str, bool]]) -> None:
    """What overflows on one of two processes is left out on both: of one model, and of two that learn together. It goes
    on bit for bit, and clips as float32 does."""
    assert found(stage) == dict.fromkeys(("alone", "together", "resumed", "clipped"), True)
