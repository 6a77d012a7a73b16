"""AOT: the pairs of a whole step are ranked, whatever the cut."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch

from alignment.config.batch import BatchConfig, Layout
from alignment.data.batches import Batches, EvenBatches, Packer
from alignment.data.tokenize import Example
from alignment.distributed.engine import TorchEngine
from alignment.losses import DPOLoss, DPOVariant
from alignment.models.readout import token_logprobs
from alignment.training.aot import AOT
from alignment.training.step import evaluate_step, train_step

LOSS = DPOLoss(beta=0.5, variant=DPOVariant.aot)


def batches_of(pairs: list[Example], max_tokens: int = 1000) -> Batches:
    config = BatchConfig(size=len(pairs), max_tokens=max_tokens, layout=Layout.shared)
    return Batches(pairs, Packer(config, 0), 0)


@pytest.fixture
def reference(pairs: list[Example]) -> torch.Tensor:
    return 3 * torch.randn(len(pairs), 2, dtype=torch.float64, generator=torch.Generator().manual_seed(2))


def test_each_pair_meets_the_reference_of_its_rank_in_the_step(
    descent: Callable[..., TorchEngine], pairs: list[Example], reference: torch.Tensor
) -> None:
    found = []
    for max_tokens in (30, 1000):
        engine, batches = descent(), batches_of(pairs, max_tokens)
        objective = AOT(LOSS, reference)
        micro_batches = batches.step(0)
        loss = train_step(engine, objective, micro_batches).means()["loss"]
        weights = [p.detach().clone() for p in engine.model.parameters()]
        found.append((len(micro_batches), loss, weights))
    (many, cut, cut_weights), (one, whole, weights) = found
    assert many > one and cut == pytest.approx(whole, rel=1e-9)
    assert all(torch.allclose(a, b, rtol=1e-7, atol=1e-9) for a, b in zip(cut_weights, weights, strict=True))

    engine, (batch, _) = descent(), next(iter(batches_of(pairs).once()))
    with torch.no_grad():
        chosen, rejected = batch.sum_by_completion(token_logprobs(engine.model, batch)).view(-1, 2).unbind(1)
    of_pairs = (chosen - rejected).sort().values - (reference[:, 0] - reference[:, 1]).sort().values
    assert whole == pytest.approx(-torch.nn.functional.logsigmoid(0.5 * of_pairs).mean().item(), rel=1e-6)


def test_where_the_policy_is_its_reference_the_loss_is_log_2_and_extra_batches_are_ranked_with_none(
    descent: Callable[..., TorchEngine], pairs: list[Example]
) -> None:
    engine, batches = descent(), batches_of(pairs, 30)
    table = torch.zeros(len(pairs), 2, dtype=torch.float64)
    with torch.no_grad():
        for batch, _ in batches.once():
            table[batch.rows] = batch.sum_by_completion(token_logprobs(engine.model, batch)).view(-1, 2).double()
    objective, counted = AOT(LOSS, table), batches.once().counted
    metrics = evaluate_step(engine, objective, EvenBatches(counted[1:], counted[:1])).means()
    assert metrics["loss"] == pytest.approx(0.6931472, abs=1e-5)
    ranked = {row for batch in counted[1:] for row in batch.rows.tolist()}
    assert objective.shifts.keys() == ranked and len(ranked) < len(pairs)


def test_pairs_of_no_weight_take_no_rank(
    descent: Callable[..., TorchEngine], pairs: list[Example], reference: torch.Tensor
) -> None:
    """Online DPO adds them for the processes to have equally many; the step is that of the others alone."""
    found = []
    for rows in (pairs[:4], [*pairs[:4], *(replace(pair, weight=0.0) for pair in pairs[4:])]):
        engine, objective = descent(), AOT(LOSS, reference)
        loss = train_step(engine, objective, batches_of(rows).step(0)).means()["loss"]
        assert objective.shifts.keys() == {0, 1, 2, 3}
        found.append((loss, [p.detach().clone() for p in engine.model.parameters()]))
    (loss, weights), (same_loss, same_weights) = found
    assert loss == pytest.approx(same_loss, rel=1e-9)
    assert all(torch.allclose(a, b, rtol=1e-7, atol=1e-9) for a, b in zip(weights, same_weights, strict=True))
