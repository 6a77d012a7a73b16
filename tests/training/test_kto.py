"""KTO's baseline: of a whole step, whatever the cut, from prompts with replies to other ones."""

from collections.abc import Callable
from dataclasses import replace
from itertools import cycle, groupby
from typing import Any

import numpy as np
import pytest
import torch

from alignment.config.batch import BatchConfig, Layout
from alignment.config.data import DataConfig, TrainSource
from alignment.config.errors import UserError
from alignment.config.model import ModelConfig
from alignment.config.supervised import KTOConfig
from alignment.config.train import TrainConfig
from alignment.data.batches import Batches, EvenBatches, Packer
from alignment.data.tokenize import Example
from alignment.distributed.engine import TorchEngine
from alignment.losses import KTOLoss
from alignment.tasks.kto import objective
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

    engine, objective = moved(descent(), batches_of(demonstrations))
    assert log_ratios(engine, objective).mean().item() == pytest.approx(whole, rel=1e-4)


def moved(engine: TorchEngine, batches: Batches) -> tuple[TorchEngine, KTO]:
    """A policy that is no longer the reference."""
    objective = objective_of(engine, batches)
    with torch.no_grad():
        for parameter in engine.model.parameters():
            parameter.mul_(1.05)
    return engine, objective


def log_ratios(engine: TorchEngine, objective: KTO) -> torch.Tensor:
    """[examples], of the mismatched replies, by the model alone."""
    ratios: list[Any] = []
    for row, other in enumerate(objective.mismatched.examples):
        ids = torch.from_numpy(np.concatenate([other.prompt_ids, other.completion_ids[0]]).astype(np.int64))[None]
        with torch.no_grad():
            logits = engine.model.hf(ids).logits[0, len(other.prompt_ids) - 1 : -1].log_softmax(-1)
        logprob = logits.gather(-1, ids[0, len(other.prompt_ids) :, None]).sum()
        ratios.append(logprob - objective.mismatched_reference[row, 0])
    return torch.stack(ratios)


def test_rows_count_in_the_baseline_by_their_weights_and_those_that_fill_up_do_not(
    descent: Callable[..., TorchEngine], demonstrations: list[Example]
) -> None:
    weighted = [replace(row, weight=1.0 + place % 3) for place, row in enumerate(demonstrations)]
    engine, objective = moved(descent(), batches_of(weighted, 20))
    counted = batches_of(weighted, 20).once().counted
    objective.prepare(engine, EvenBatches(counted[1:], counted[:1]))
    rows = [row for batch in counted[1:] for row in batch.rows.tolist()]
    weights = torch.tensor([weighted[row].weight for row in rows])
    ratios = log_ratios(engine, objective)[rows]
    assert 0 < len(rows) < len(weighted) and ratios.std() > 0
    assert objective.baseline.item() == pytest.approx(((weights * ratios).sum() / weights.sum()).item(), rel=1e-4)


def one_by_one(prompts: list[int]) -> list[int]:
    """The row whose reply each meets, as the rule is said."""
    groups = [list(group) for _, group in groupby(range(len(prompts)), key=prompts.__getitem__)]
    found = []
    for number, group in enumerate(groups):
        before = (groups[number - back] for back in range(1, len(groups)))
        others = next(each for each in before if prompts[each[0]] != prompts[group[0]])
        found += [other for _, other in zip(group, cycle(others), strict=False)]
    return found


@pytest.mark.parametrize("seed", range(20))
def test_whom_a_prompt_meets_is_the_rule_row_by_row(seed: int, demonstrations: list[Example]) -> None:
    """Few prompts, often behind one another, also at both ends."""
    prompts = np.random.default_rng(seed).integers(0, 3, 12).tolist()
    prompts[0], prompts[1], prompts[-1] = 0, 1, seed % 2
    rows = [replace(demonstrations[0], prompt_ids=np.array([prompt], dtype=np.int32)) for prompt in prompts]
    assert with_replies_to_others(rows, 1000).others.tolist() == one_by_one(prompts)


def test_both_replies_of_a_pair_meet_their_like(demonstrations: list[Example]) -> None:
    """Chosen replies meet chosen ones: z would else be of rejected replies alone, which training makes less likely."""
    pairs = [
        replace(row, completion_ids=(ids,), labels=(label,))
        for row in demonstrations[:4]
        for label, ids in ((True, row.completion_ids[0]), (False, row.completion_ids[0][::-1]))
    ]
    others = with_replies_to_others(pairs, 1000)
    for place, other in enumerate(others):
        met = pairs[(place - 2) % len(pairs)]
        assert np.array_equal(other.completion_ids[0], met.completion_ids[0]) and other.labels == met.labels


def test_the_task_holds_each_reply_against_its_own_reference(
    descent: Callable[..., TorchEngine], demonstrations: list[Example]
) -> None:
    """Before the first step the log-ratios are 0, also of the mismatched replies, whose mean below 0 is read as 0."""
    engine, batches = descent(), batches_of(demonstrations)
    config = KTOConfig(
        model=ModelConfig(path="."), data=DataConfig(train=TrainSource("rows")), train=TrainConfig(max_steps=1)
    )
    built = objective(config, batches, lambda each: reference_logprobs(engine, each, range(len(each.examples))))
    built.prepare(engine, EvenBatches(batches.step(0)))
    assert abs(built.baseline.item()) < 1e-4
    assert built.reference.abs().min() > 0 and not torch.equal(built.reference, built.mismatched_reference)


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
