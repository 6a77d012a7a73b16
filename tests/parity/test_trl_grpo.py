"""The losses of GRPO and RLOO are TRL's: same weights, same ragged replies, same loss and gradient of every parameter.

TRL computes its loss itself, on rows padded as it pads them; nothing is drawn.
"""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset
from torch import Tensor
from transformers import PreTrainedTokenizerBase
from trl import GRPOConfig, GRPOTrainer, RLOOConfig, RLOOTrainer

from alignment.config.batch import Layout
from alignment.config.model import ModelConfig
from alignment.data.pack import pack
from alignment.data.records import Source
from alignment.data.tokenize import Example
from alignment.distributed.placement import WHOLE
from alignment.losses import ImportanceRatio, KLEstimator, Normalization, PolicyLoss, grpo_advantages, rloo_advantages
from alignment.models.load import load_language_model
from alignment.models.readout import token_logprobs
from alignment.rl.experience import Experience
from alignment.rl.objectives import Actor

TEMPERATURE, LENGTH, BETA = 0.7, 9, 0.3
CASES: dict[str, tuple[dict[str, Any], PolicyLoss]] = {
    "grpo": ({"loss_type": "grpo"}, PolicyLoss(normalization=Normalization.sequence)),
    "clip higher": (
        {"loss_type": "bnpo", "epsilon_high": 0.28},  # of one micro-batch: the mean over its tokens, DAPO's
        PolicyLoss(clip_high=0.28),
    ),
    "dr_grpo": ({"loss_type": "dr_grpo"}, PolicyLoss(normalization=Normalization.constant, length=LENGTH)),
    "gspo": (
        {"loss_type": "grpo", "importance_sampling_level": "sequence"},
        PolicyLoss(ratio=ImportanceRatio.sequence, normalization=Normalization.sequence),
    ),
}


@pytest.fixture(scope="module")
def rows() -> list[Example]:
    """Three prompts with two replies each, none as long as another."""
    rng = np.random.default_rng(0)
    made = []
    for lengths in ((3, 5, 2), (6, 1, 9), (2, 7, 4)):
        prompt, *replies = (rng.integers(3, 2000, n).astype(np.int32) for n in lengths)
        made.append(Example(prompt, tuple(replies), None, Source("rows", 1), (True, True)))
    return made


def padded(runs: list[np.ndarray], *, left: bool) -> tuple[Tensor, Tensor]:
    """Ids and mask, [rows, longest]."""
    longest = max(map(len, runs))
    ids, mask = torch.zeros(len(runs), longest, dtype=torch.long), torch.zeros(len(runs), longest, dtype=torch.long)
    for row, run in enumerate(runs):
        place = slice(longest - len(run), None) if left else slice(0, len(run))
        ids[row, place], mask[row, place] = torch.from_numpy(run.astype(np.int64)), 1
    return ids, mask


def as_trl_pads(rows: list[Example]) -> dict[str, Tensor]:
    prompts = padded([row.prompt_ids for row in rows for _ in row.completion_ids], left=True)
    completions = padded([ids for row in rows for ids in row.completion_ids], left=False)
    names = ("prompt_ids", "prompt_mask", "completion_ids", "completion_mask")
    return dict(zip(names, (*prompts, *completions), strict=True))


def model_of(tiny_init: dict[str, Any], tokenizer: PreTrainedTokenizerBase) -> Any:
    torch.manual_seed(0)
    return load_language_model(ModelConfig(init=tiny_init), tokenizer, WHOLE).double()  # in float32 processors differ


def experience(model: Any, rows: list[Example], advantages: Tensor) -> Experience:
    """The policy has gone on from the one that replied, so that some ratios are clipped; the reference is another."""
    batch = pack(rows, range(len(rows)), layout=Layout.shared, pad_id=0)
    with torch.no_grad():
        now = token_logprobs(model, batch, temperature=TEMPERATURE)
    noise = torch.randn(2, batch.num_tokens, generator=torch.Generator().manual_seed(1))
    of_tokens = advantages.flatten()[:, None].expand_as(batch.completion_mask())[batch.completion_mask()]
    return Experience(batch, now + 0.4 * noise[0], now + 0.5 * noise[1], of_tokens, None, None)


def trainer_of(kind: Any, config: Any, folder: Path, model: Any, tokenizer: Any, **settings: Any) -> Any:
    arguments = config(
        output_dir=str(folder),
        per_device_train_batch_size=6,
        num_generations=2,
        max_completion_length=LENGTH,
        temperature=TEMPERATURE,
        use_cpu=True,
        bf16=False,
        gradient_checkpointing=False,
        report_to="none",
        beta=0.0,  # so that no second model is loaded
        **settings,
    )
    prompts = Dataset.from_list([{"prompt": "a"}] * 3)
    made = kind(
        model=model.hf,
        reward_funcs=lambda completions, **_: [0.0] * len(completions),
        args=arguments,
        train_dataset=prompts,
        processing_class=tokenizer,
    )
    made.current_gradient_accumulation_steps = 1
    return made


def ours(model: Any, actor: Actor, made: Experience) -> tuple[float, dict[str, Tensor]]:
    model.zero_grad()
    output = actor(model, made)
    assert output.loss.count.item() == actor.count(made)
    loss = output.loss.total / output.loss.count
    loss.backward()
    return loss.item(), gradients(model)


def theirs(trainer: Any, model: Any, inputs: dict[str, Tensor]) -> tuple[float, dict[str, Tensor]]:
    model.zero_grad()
    model.hf.train()
    loss = trainer._compute_loss(model.hf, inputs)
    loss.backward()
    return loss.item(), gradients(model)


def gradients(model: Any) -> dict[str, Tensor]:
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def assert_same(one: tuple[float, dict[str, Tensor]], other: tuple[float, dict[str, Tensor]]) -> None:
    assert one[0] == pytest.approx(other[0], rel=1e-5) and one[1].keys() == other[1].keys()
    for name, want in other[1].items():
        assert want.abs().max() > 1e-5, name
        assert (one[1][name] - want).abs().max() < 1e-5 * want.abs().max(), name


SCORES = torch.tensor([[1.0, -2.0], [0.5, 3.0], [-1.0, 2.0]])


@pytest.mark.parametrize(
    ("name", "beta", "bias_correction"),
    [
        *((name, beta, False) for name in CASES for beta in (0.0, BETA)),
        *((name, BETA, True) for name in CASES if name != "gspo"),  # TRL's there, of a whole reply's ratio, is biased
    ],
)
def test_grpo(
    name: str,
    beta: float,
    bias_correction: bool,
    rows: list[Example],
    tiny_init: dict[str, Any],
    tokenizer: PreTrainedTokenizerBase,
    tmp_path: Path,
) -> None:
    settings, loss = CASES[name]
    model = model_of(tiny_init, tokenizer)
    advantages = grpo_advantages(SCORES, eps=1e-4)
    made = experience(model, rows, advantages)
    found = ours(model, Actor(loss, TEMPERATURE, beta, KLEstimator.k3, bias_correction), made)
    settings = {**settings, "use_bias_correction_kl": bias_correction}
    trainer = trainer_of(GRPOTrainer, GRPOConfig, tmp_path, model, tokenizer, **settings)
    trainer.beta = beta
    inputs = {
        **as_trl_pads(rows),
        "advantages": advantages.flatten(),
        "old_per_token_logps": made.batch.by_completion(made.old_logprobs),
        "ref_per_token_logps": made.batch.by_completion(made.ref_logprobs),
    }
    assert_same(found, theirs(trainer, model, inputs))


def test_rloo(
    rows: list[Example], tiny_init: dict[str, Any], tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    model = model_of(tiny_init, tokenizer)
    advantages = rloo_advantages(SCORES)
    made = experience(model, rows, advantages)
    loss = PolicyLoss(ratio=ImportanceRatio.product, normalization=Normalization.sequence)
    found = ours(model, Actor(loss, TEMPERATURE), made)
    trainer = trainer_of(RLOOTrainer, RLOOConfig, tmp_path, model, tokenizer)
    inputs = {
        **as_trl_pads(rows),
        "advantages": advantages.flatten(),
        "old_logps": made.batch.sum_by_completion(made.old_logprobs),
    }
    assert_same(found, theirs(trainer, model, inputs))
