"""KTO's baseline: of a whole step, whatever the cut, from prompts with replies to other ones."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from alignment.config.batch import BatchConfig, Layout
from alignment.config.errors import UserError
from alignment.data.batches import Batches, EvenBatches, Packer
from alignment.data.tokenize import Example
from alignment.distributed.engine import TorchEngine
from alignment.losses import KTOLoss
from alignment.training.kto import KTO, with_replies_to_others
from alignment.training.reference import reference_logprobs
from alignment.training.step import evaluate_step, train_step


def batches_of(rows: list[Example], max_tokens: int = 1000) -> Batches:
    labeled = [replace(row, labels=(place % 3 > 0,)) for place, row in enumerate(rows)]
    return Batches(labeled, Packer(BatchConfig(size=len(rows), max_tokens=max_tokens, layout=Layout.shared), 0), 0)


def objective_of(engine: TorchEngine, batches: Batches, tables: list[torch.Tensor] | None = None) -> KTO:
    mismatched = replace(batches, examples=with_replies_to_others(batches.examples, 100))
    everything = range(len(batches.examples))
    tables = tables or [reference_logprobs(engine, each, everything) for each in (batches, mismatched)]
    return KTO(KTOLoss(beta=0.5), tables[0], mismatched, tables[1])


def test_every_prompt_meets_the_reply_to_another_one(demonstrations: list[Example]) -> None:
    rows = [demonstrations[place] for place in (0, 1, 1, 2)]  # the second prompt twice
    others = with_replies_to_others(rows, 1000)
    sources = [2, 0, 0, 1]  # for the twin of the second prompt, the nearest that is another
    for place, (row, other) in enumerate(zip(rows, others, strict=True)):
        own = rows[[3, 0, 0, 2][place]]
        assert np.array_equal(other.prompt_ids, row.prompt_ids), sources
        assert np.array_equal(other.completion_ids[0], own.completion_ids[0])
    longest = max(len(row.prompt_ids) for row in rows) + 1
    assert all(len(o.prompt_ids) + len(o.completion_ids[0]) <= longest for o in with_replies_to_others(rows, longest))
    with pytest.raises(UserError, match="must have two prompts or more, got one in 2 rows, first "):
        with_replies_to_others(rows[1:3], 1000)


def test_the_baseline_is_the_mean_log_ratio_of_those_and_does_not_depend_on_the_cut(
    descent: Callable[..., TorchEngine], demonstrations: list[Example]
) -> None:
    found = []
    for max_tokens in (20, 1000):
        engine = descent()
        batches = batches_of(demonstrations, max_tokens)
        objective = objective_of(engine, batches)
        with torch.no_grad():
            for parameter in engine.model.parameters():
                parameter.mul_(1.05)
        micro_batches = batches.step(0)
        metrics = train_step(engine, objective, micro_batches).means()
        found.append((len(micro_batches), objective.baseline.item(), metrics))
    (many, baseline, cut), (one, whole, uncut) = found
    assert many > one and baseline == pytest.approx(whole, rel=1e-4) and baseline != 0
    assert cut == pytest.approx(uncut, rel=1e-4, abs=1e-6) and cut["kl"] == pytest.approx(max(0.0, baseline), rel=1e-6)

    engine = descent()
    batches = batches_of(demonstrations)
    objective = objective_of(engine, batches)
    with torch.no_grad():
        for parameter in engine.model.parameters():
            parameter.mul_(1.05)
    ratios: list[Any] = []
    for row, other in enumerate(objective.mismatched.examples):
        ids = torch.from_numpy(np.concatenate([other.prompt_ids, other.completion_ids[0]]).astype(np.int64))[None]
        with torch.no_grad():
            logits = engine.model.hf(ids).logits[0, len(other.prompt_ids) - 1 : -1].log_softmax(-1)
        logprob = logits.gather(-1, ids[0, len(other.prompt_ids) :, None]).sum()
        ratios.append(logprob - objective.mismatched_reference[row, 0])
    assert torch.stack(ratios).mean().item() == pytest.approx(whole, rel=1e-4)


def test_before_the_first_step_every_loss_is_a_half_and_an_evaluation_has_a_baseline_of_its_own(
    descent: Callable[..., TorchEngine], demonstrations: list[Example]
) -> None:
    engine = descent()
    batches = batches_of(demonstrations, 20)
    objective = objective_of(engine, batches)
    engine.model.train()
    counted = batches.once().counted
    metrics = evaluate_step(engine, objective, EvenBatches(counted, counted[:1])).means()
    assert metrics["loss"] == pytest.approx(0.5, abs=1e-5) and abs(objective.baseline.item()) < 1e-4
