"""One step: its gradient is that of the mean over all of its examples, however they are cut, ordered and laid out."""

from collections.abc import Callable
from dataclasses import fields, replace
from typing import Any

import pytest
import torch
from torch import Tensor

from alignment.config.batch import Layout
from alignment.data.batches import EvenBatches
from alignment.data.pack import Batch, pack
from alignment.data.tokenize import Example
from alignment.distributed.engine import TorchEngine
from alignment.losses import (
    CPOLoss,
    CrossEntropyLoss,
    DPOLoss,
    DPOVariant,
    MarginRankingLoss,
    Mean,
    ORPOLoss,
    ORPONll,
    PolicyLoss,
    ProcessRewardLoss,
    RankingVariant,
    ScoreRegressionLoss,
    SimPOLoss,
    ValueLoss,
)
from alignment.models.readout import sequence_scores, token_logprobs
from alignment.rl.experience import Experience
from alignment.rl.objectives import Actor, Critic
from alignment.training.metrics import Metrics
from alignment.training.objectives import CPO, DPO, ORPO, SFT, ProcessReward, RewardRanking, ScoreRegression, SimPO
from alignment.training.step import evaluate_step, train_step

REFERENCE = torch.tensor([[-40.0, -70.0], [-30.0, -15.0], [-45.0, -25.0], [-8.0, -50.0], [-80.0, -75.0], [-15.0, -9.0]])
OBJECTIVES: dict[str, Any] = {
    "sft": SFT(CrossEntropyLoss()),
    "reward": RewardRanking(MarginRankingLoss(center=0.1)),
    "reward, scaled": RewardRanking(MarginRankingLoss(variant=RankingVariant.scaled)),
    "dpo": DPO(DPOLoss(), REFERENCE),
    "dpo, by token": DPO(DPOLoss(beta=5.0, variant=DPOVariant.sigmoid_norm, rpo_alpha=0.5), REFERENCE),
    "orpo, completion": ORPO(ORPOLoss()),
    "orpo, sequence": ORPO(ORPOLoss(nll=ORPONll.sequence)),
    "regression": ScoreRegression(ScoreRegressionLoss()),
    "steps": ProcessReward(ProcessRewardLoss()),
    "simpo": SimPO(SimPOLoss()),
    "cpo": CPO(CPOLoss()),
    "actor": Actor(PolicyLoss(clip=0.2), 0.7),
    "actor, kl": Actor(PolicyLoss(clip=0.2), 0.7, kl_weight=0.4),
    "critic": Critic(ValueLoss(clip=0.2)),
}
PPO = ("actor", "actor, kl", "critic")
KINDS = dict.fromkeys(("reward", "reward, scaled", "regression", "steps", "critic"), "scalar")
ROWS = [name for name in OBJECTIVES if name not in PPO]
WHOLE = [[0, 1, 2, 3, 4, 5]]
CUT = [[0], [1, 2, 3], [4, 5]]
PERMUTED = [[5, 3, 1, 0, 2, 4]]
Unit = Any  # a Batch, or an Experience


def rows_of(name: str, demonstrations: list[Example], pairs: list[Example]) -> list[Example]:
    """What the objective learns from: single replies, some with scores or with labels of steps, or pairs."""
    if name == "regression":
        return [replace(row, labels=(place / 4,)) for place, row in enumerate(demonstrations)]
    if name == "steps":
        ends = [(0, len(row.completion_ids[0]) - 1) for row in demonstrations]
        rows = zip(demonstrations, ends, strict=True)
        return [replace(row, ends=at, labels=(True, len(at) % 2 > 0)) for row, at in rows]
    return demonstrations if name in ("sft", *PPO) else pairs


def units(name: str, rows: list[Example], cut: list[list[int]], layout: Layout) -> list[Unit]:
    """Micro-batches of the rows; PPO's with old log-probs, values and so on that belong to each row's tokens."""
    batches = [pack([rows[i] for i in piece], piece, layout=layout, pad_id=0) for piece in cut]
    return [experience(batch) for batch in batches] if name in PPO else batches


def experience(batch: Batch) -> Experience:
    def of_rows(kind: int) -> Tensor:
        pieces = [
            torch.randn(length, generator=torch.Generator().manual_seed(100 * kind + row))
            for row, length in zip(batch.rows.tolist(), batch.lengths.tolist(), strict=True)
        ]
        return torch.cat(pieces)

    logprobs, ref_logprobs = -7.6 + 0.3 * of_rows(0), -7.6 + 0.3 * of_rows(4)
    return Experience(batch, logprobs, ref_logprobs, of_rows(2), of_rows(1), of_rows(3))


def stepped(
    descent: Callable[..., TorchEngine], name: str, rows: list[Example], cut: list[list[int]], layout: Layout
) -> tuple[dict[str, Tensor], dict[str, float]]:
    """The gradient of one step, read off the weights, and its metrics."""
    engine = descent(KINDS.get(name, "language"))
    before = {key: p.detach().clone() for key, p in engine.model.named_parameters()}
    metrics = train_step(engine, OBJECTIVES[name], units(name, rows, cut, layout)).means()
    return {key: before[key] - p.detach() for key, p in engine.model.named_parameters()}, metrics


@pytest.mark.parametrize("name", OBJECTIVES)
def test_gradient_and_metrics_do_not_depend_on_the_cut(
    descent: Callable[..., TorchEngine], demonstrations: list[Example], pairs: list[Example], name: str
) -> None:
    rows = rows_of(name, demonstrations, pairs)
    gradient, metrics = stepped(descent, name, rows, WHOLE, Layout.shared)
    assert any(g.abs().max() > 1e-3 for g in gradient.values())
    for cut, layout in ((CUT, Layout.shared), (PERMUTED, Layout.shared), (CUT, Layout.separate)):
        again, more = stepped(descent, name, rows, cut, layout)
        for key, value in gradient.items():
            scale = value.abs().max().item()
            torch.testing.assert_close(again[key], value, rtol=1e-5, atol=1e-5 * max(scale, 1e-6), msg=key)
        assert more == pytest.approx(metrics, rel=1e-5, abs=1e-6)


@pytest.mark.parametrize("layout", [Layout.shared, Layout.separate])
@pytest.mark.parametrize("name", OBJECTIVES)
def test_count_is_known_before_the_forward(
    descent: Callable[..., TorchEngine],
    demonstrations: list[Example],
    pairs: list[Example],
    name: str,
    layout: Layout,
) -> None:
    rows = rows_of(name, demonstrations, pairs)
    engine = descent(KINDS.get(name, "language"))
    for unit in units(name, rows, CUT, layout):
        objective = OBJECTIVES[name]
        assert objective(engine.model, unit).loss.count.item() == objective.count(unit) > 0


@pytest.mark.parametrize("name", ROWS)
def test_a_row_of_weight_two_is_the_row_twice(
    descent: Callable[..., TorchEngine], demonstrations: list[Example], pairs: list[Example], name: str
) -> None:
    """However the rows are cut, in loss and gradient."""
    rows = rows_of(name, demonstrations, pairs)
    weighted = [replace(row, weight=weight) for row, weight in zip(rows, (1.0, 2.0, 1.0, 3.0, 1.0, 1.0), strict=True)]
    twice = [[0, 1, 1, 2], [3, 3, 3, 4, 5]]
    wanted, repeated = stepped(descent, name, rows, twice, Layout.shared)
    plain, _ = stepped(descent, name, rows, CUT, Layout.shared)
    gradient, metrics = stepped(descent, name, weighted, CUT, Layout.shared)
    assert metrics["loss"] == pytest.approx(repeated["loss"], rel=1e-6)
    assert any((plain[key] - value).abs().max() > 1e-3 * value.abs().max() for key, value in wanted.items())
    for key, value in wanted.items():
        scale = value.abs().max().item()
        torch.testing.assert_close(gradient[key], value, rtol=1e-5, atol=1e-5 * max(scale, 1e-6), msg=key)


def test_loss_is_the_mean_over_all_tokens(descent: Callable[..., TorchEngine], demonstrations: list[Example]) -> None:
    """And not the mean of the micro-batches' means, nor of the completions' means."""
    engine = descent()
    batches = units("sft", demonstrations, CUT, Layout.shared)
    with torch.no_grad():
        logprobs = [token_logprobs(engine.model, batch) for batch in batches]
    want = -torch.cat(logprobs).mean().item()
    assert abs(want + sum(piece.mean().item() for piece in logprobs) / 3) > 1e-3
    assert train_step(engine, OBJECTIVES["sft"], batches).means()["loss"] == pytest.approx(want, rel=1e-6)


def test_accuracy_is_the_share_of_pairs(descent: Callable[..., TorchEngine], pairs: list[Example]) -> None:
    engine = descent("scalar")
    with torch.no_grad():
        (whole,) = units("reward", pairs, WHOLE, Layout.shared)
        chosen, rejected = sequence_scores(engine.model, whole).view(-1, 2).unbind(1)
    metrics = train_step(engine, OBJECTIVES["reward"], units("reward", pairs, CUT, Layout.shared)).means()
    assert metrics["rewards/accuracy"] == pytest.approx((chosen > rejected).double().mean().item())
    assert metrics["rewards/margin"] == pytest.approx((chosen - rejected).mean().item(), rel=1e-5)


def test_margins_reach_the_loss(descent: Callable[..., TorchEngine], pairs: list[Example]) -> None:
    engine = descent("scalar")
    (batch,) = units("reward", pairs, WHOLE, Layout.shared)
    with torch.no_grad():
        chosen, rejected = sequence_scores(engine.model, batch).view(-1, 2).unbind(1)
        margin = torch.tensor([example.margin for example in pairs])
        want = -torch.nn.functional.logsigmoid(chosen - rejected - margin).mean().item()
        assert RewardRanking(MarginRankingLoss())(engine.model, batch).loss.mean().item() == pytest.approx(want)


def test_evaluation_is_the_same_numbers_and_learns_nothing(
    descent: Callable[..., TorchEngine], pairs: list[Example]
) -> None:
    engine = descent()
    before = [p.detach().clone() for p in engine.model.parameters()]
    evaluated = evaluate_step(engine, OBJECTIVES["dpo"], EvenBatches(units("dpo", pairs, CUT, Layout.shared))).means()
    assert all(torch.equal(p, q) for p, q in zip(engine.model.parameters(), before, strict=True))
    assert all(p.grad is None for p in engine.model.parameters())
    trained = train_step(engine, OBJECTIVES["dpo"], units("dpo", pairs, WHOLE, Layout.shared)).means()
    del trained["grad_norm"]
    assert evaluated == pytest.approx(trained, rel=1e-5, abs=1e-6)


def test_clipping_scales_the_whole_gradient(descent: Callable[..., TorchEngine], demonstrations: list[Example]) -> None:
    """`grad_norm` is of the gradient before clipping; the step is of length `max_grad_norm`."""
    batches = units("sft", demonstrations, CUT, Layout.shared)
    gradient, metrics = stepped(descent, "sft", demonstrations, CUT, Layout.shared)
    norm = torch.stack([g.square().sum() for g in gradient.values()]).sum().sqrt().item()
    assert metrics["grad_norm"] == pytest.approx(norm, rel=1e-6)
    engine = descent(max_grad_norm=norm / 4)
    before = {key: p.detach().clone() for key, p in engine.model.named_parameters()}
    assert train_step(engine, OBJECTIVES["sft"], batches).means()["grad_norm"] == pytest.approx(norm, rel=1e-6)
    for key, parameter in engine.model.named_parameters():
        torch.testing.assert_close(before[key] - parameter.detach(), gradient[key] / 4, rtol=1e-5, atol=1e-9)


def test_a_step_leaves_no_gradient_behind(descent: Callable[..., TorchEngine], demonstrations: list[Example]) -> None:
    engine = descent()
    train_step(engine, OBJECTIVES["sft"], units("sft", demonstrations, CUT, Layout.shared))
    assert all(p.grad is None for p in engine.model.parameters())


def test_metrics_of_steps_add_up() -> None:
    def mean(total: float, count: int) -> Mean:
        return Mean(torch.tensor(total), torch.tensor(count))

    metrics = Metrics(a=mean(1.0, 1), b=mean(3.0, 2)) + {"a": mean(5.0, 3), "c": mean(0.0, 0)}
    assert metrics.means() == {"a": 1.5, "b": 1.5}  # what counted nothing is left out


def test_experience_moves_whole(demonstrations: list[Example]) -> None:
    (unit,) = units("actor", demonstrations, WHOLE, Layout.shared)
    moved = unit.to(torch.device("meta"))
    assert moved.batch.input_ids.device.type == "meta"
    tensors = [value for field in fields(moved) if isinstance(value := getattr(moved, field.name), Tensor)]
    assert len(tensors) == 5 and all(tensor.device.type == "meta" for tensor in tensors)


def test_extra_batches_are_run_and_not_counted(descent, demonstrations):
    engine, objective = descent(), SFT(CrossEntropyLoss())
    batches = [pack([row], [i], layout=Layout.shared, pad_id=0) for i, row in enumerate(demonstrations[:3])]
    alone = evaluate_step(engine, objective, EvenBatches(batches[:2]))
    with_extra = evaluate_step(engine, objective, EvenBatches(batches[:2], batches[2:]))
    assert with_extra.keys() == alone.keys()
    assert all(torch.equal(with_extra[name].total, alone[name].total) for name in alone)
    only_extra = evaluate_step(engine, objective, EvenBatches([], batches[2:]))
    assert only_extra.keys() == alone.keys() and all(mean.count == 0 for mean in only_extra.values())
