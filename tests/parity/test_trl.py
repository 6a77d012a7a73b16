"""One training step is TRL's: same weights, same rows, same loss and the same gradient of every parameter.

TRL lays each completion out with its own copy of the prompt, padded; here a prompt is laid out once and the step is cut
into micro-batches. Both tokenize the rows themselves, and the ids are asserted to agree. Two things differ and are set:
ORPOTrainer puts a BOS before each prompt where the tokenizer has one (the chat template here has none, nor has ours),
and its NLL is a mean over the tokens of a micro-batch, which is ours, a mean of sequence means, when micro-batches hold
one pair.
"""

from collections.abc import Callable
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase, TrainerCallback
from trl import DPOConfig, DPOTrainer, KTOConfig, KTOTrainer, RewardConfig, RewardTrainer
from trl.experimental.orpo import ORPOConfig, ORPOTrainer

from alignment.config.parts import BatchConfig, DataConfig, DistributedConfig, MarginConfig, ModelConfig, SourceConfig
from alignment.config.vocabulary import Device, Format, Layout, MarginScale, Need
from alignment.data.batches import Batches
from alignment.data.load import Loaded, load_split
from alignment.distributed.engine import TorchEngine
from alignment.distributed.placement import WHOLE
from alignment.losses import DPOLoss, KTOLoss, KTOVariant, MarginRankingLoss, ORPOLoss, ORPONll
from alignment.models.load import load_language_model, load_scalar_model
from alignment.training.kto import KTO, with_replies_to_others
from alignment.training.objectives import DPO, ORPO, Objective, RewardRanking
from alignment.training.reference import reference_logprobs

PAIRS = 6
ON_CPU = {
    "num_train_epochs": 1,
    "max_grad_norm": 0.0,  # no clipping: the gradient itself is compared
    "learning_rate": 1e-9,
    "use_cpu": True,
    "bf16": False,
    "gradient_checkpointing": False,
    "report_to": "none",
    "disable_tqdm": True,
    "save_strategy": "no",
}
CONFIG: dict[type, dict[str, Any]] = {
    RewardConfig: {"max_length": None, "per_device_train_batch_size": PAIRS},
    DPOConfig: {"max_length": None, "beta": 0.3, "per_device_train_batch_size": PAIRS},
    KTOConfig: {
        "max_length": None,
        "beta": 0.3,
        "desirable_weight": 1.5,
        "undesirable_weight": 0.5,
        "per_device_train_batch_size": PAIRS,
        "train_sampling_strategy": "sequential",
    },
    ORPOConfig: {
        "max_length": 512,
        "beta": 0.3,
        "per_device_train_batch_size": 1,
        "gradient_accumulation_steps": PAIRS,
    },
}


class Gradients(TrainerCallback):
    """Keeps what the optimizer is about to see."""

    def __init__(self) -> None:
        self.found: dict[str, Tensor] = {}

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        assert not self.found, "one step only"
        self.found = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@pytest.fixture
def loaded(tokenizer: PreTrainedTokenizerBase) -> Loaded:
    """A few graded pairs of the embedded world."""
    config = DataConfig(
        format=Format.world,
        train=SourceConfig(limit=PAIRS),
        margin=MarginConfig(scale=MarginScale.large),
        max_prompt_length=128,
    )
    split = load_split("train", config, tokenizer, Need.pairs)
    assert split is not None and split.truncation.prompts == split.truncation.completions == 0
    assert len({example.margin for example in split.examples}) > 1
    return split


def dataset(loaded: Loaded) -> Dataset:
    """The records in TRL's conversational form."""
    return Dataset.from_list(
        [
            {
                "prompt": record.prompt,
                "chosen": record.completions[0],
                "rejected": record.completions[1],
                "margin": record.margin,
            }
            for record in loaded.records
        ]
    )


def trl_step(trainer: Any) -> tuple[float, dict[str, Tensor]]:
    gradients = Gradients()
    trainer.add_callback(gradients)
    return trainer.train().training_loss, gradients.found


def arguments(config: type, folder: Path) -> Any:
    return config(output_dir=str(folder), **ON_CPU, **CONFIG[config])


def our_step(model: nn.Module, objective: Objective, batches: Batches) -> tuple[float, dict[str, Tensor]]:
    """As `train_step` takes it, micro-batch by micro-batch, but for the update."""
    pieces = batches.once()
    assert len(pieces) > 1 and all(piece.shared for piece in pieces)
    count, total = sum(objective.count(piece) for piece in pieces), 0.0
    for piece in pieces:
        output = objective(model, piece)
        (output.loss.total / count).backward()
        total += output.loss.total.item()
    return total / count, {n.removeprefix("hf."): p.grad for n, p in model.named_parameters() if p.grad is not None}


def assert_same(ours: tuple[float, dict[str, Tensor]], theirs: tuple[float, dict[str, Tensor]]) -> None:
    """Losses, and gradients relative to the largest entry of each parameter's."""
    assert ours[0] == pytest.approx(theirs[0], rel=1e-5)
    assert ours[1].keys() == theirs[1].keys()
    for name, want in theirs[1].items():
        scale = want.abs().max()
        assert scale > 1e-4, name
        assert (ours[1][name] - want).abs().max() < 1e-5 * scale, name


def batches_of(loaded: Loaded) -> Batches:
    return Batches(loaded.examples, BatchConfig(size=PAIRS, max_tokens=200, layout=Layout.shared), 0, pad_id=0)


def build(load: Callable[..., Any], tiny_init: dict[str, Any], tokenizer: PreTrainedTokenizerBase, seed: int) -> Any:
    torch.manual_seed(seed)
    return load(ModelConfig(init=tiny_init), tokenizer, WHOLE)


@pytest.mark.parametrize("center", [0.0, 0.1])
def test_reward_with_margins(
    tiny_init: dict[str, Any], tokenizer: PreTrainedTokenizerBase, loaded: Loaded, tmp_path: Path, center: float
) -> None:
    model = build(load_scalar_model, tiny_init, tokenizer, seed=0)
    args = arguments(RewardConfig, tmp_path)
    args.center_rewards_coefficient = center or None
    trainer = RewardTrainer(
        model=deepcopy(model.hf), args=args, train_dataset=dataset(loaded), processing_class=tokenizer
    )
    for row, example in zip(trainer.train_dataset, loaded.examples, strict=True):
        prompt = example.prompt_ids.tolist()
        assert row["chosen_ids"] == prompt + example.completion_ids[0].tolist()
        assert row["rejected_ids"] == prompt + example.completion_ids[1].tolist()
        assert row["margin"] == example.margin
    ours = our_step(model, RewardRanking(MarginRankingLoss(center=center)), batches_of(loaded))
    assert_same(ours, trl_step(trainer))


def test_dpo(tiny_init: dict[str, Any], tokenizer: PreTrainedTokenizerBase, loaded: Loaded, tmp_path: Path) -> None:
    """With a reference of other weights, so that no log ratio is 0."""
    model = build(load_language_model, tiny_init, tokenizer, seed=0)
    reference = build(load_language_model, tiny_init, tokenizer, seed=1)
    trainer = DPOTrainer(
        model=deepcopy(model.hf),
        ref_model=deepcopy(reference.hf),
        args=arguments(DPOConfig, tmp_path),
        train_dataset=dataset(loaded),
        processing_class=tokenizer,
    )
    for row, example in zip(trainer.train_dataset, loaded.examples, strict=True):
        ids = [row["prompt_ids"], row["chosen_ids"], row["rejected_ids"]]
        assert ids == [example.prompt_ids.tolist(), *(c.tolist() for c in example.completion_ids)]
    batches = batches_of(loaded)
    table = reference_logprobs(engine_of(reference), batches, range(PAIRS))
    assert_same(our_step(model, DPO(DPOLoss(beta=0.3), table), batches), trl_step(trainer))


def engine_of(model: Any) -> TorchEngine:
    optimizer = torch.optim.SGD(model.parameters())
    scheduler = torch.optim.lr_scheduler.ConstantLR(optimizer)
    return TorchEngine(model, optimizer, scheduler, config=DistributedConfig(device=Device.cpu), max_grad_norm=1.0)


@pytest.mark.parametrize("variant", ["kto", "apo_zero_unpaired"])
def test_kto(tiny_init: dict[str, Any], tokenizer: PreTrainedTokenizerBase, tmp_path: Path, variant: str) -> None:
    """With a reference of other weights, and the KL of prompts with the replies to those before them, which is > 0."""
    config = DataConfig(format=Format.world, train=SourceConfig(limit=PAIRS), max_prompt_length=128)
    split = load_split("train", config, tokenizer, Need.labeled)
    assert split is not None
    chosen = [2 * place + place % 2 for place in range(PAIRS)]  # one reply to each prompt, good and bad in turn
    records, examples = [split.records[row] for row in chosen], [split.examples[row] for row in chosen]
    assert [record.label for record in records] == [True, False] * (PAIRS // 2)
    model = build(load_language_model, tiny_init, tokenizer, seed=0)
    reference = build(load_language_model, tiny_init, tokenizer, seed=1)
    args = arguments(KTOConfig, tmp_path)
    args.loss_type = variant
    trainer = KTOTrainer(
        model=deepcopy(model.hf),
        ref_model=deepcopy(reference.hf),
        args=args,
        train_dataset=Dataset.from_list(
            [{"prompt": r.prompt, "completion": r.completions[0], "label": r.label} for r in records]
        ),
        processing_class=tokenizer,
    )
    batches = Batches(examples, BatchConfig(size=PAIRS, max_tokens=200, layout=Layout.shared), 0, pad_id=0)
    mismatched = replace(batches, examples=with_replies_to_others(examples, config.max_length))
    for row, example, other in zip(trainer.train_dataset, examples, mismatched.examples, strict=True):
        assert row["prompt_ids"] == example.prompt_ids.tolist()
        assert row["completion_ids"] == example.completion_ids[0].tolist()
        if variant == "kto":
            assert row["KL_completion_ids"] == other.completion_ids[0].tolist()
    tables = [reference_logprobs(engine_of(reference), each, range(PAIRS)) for each in (batches, mismatched)]
    loss = KTOLoss(beta=0.3, desirable_weight=1.5, undesirable_weight=0.5, variant=KTOVariant(variant))
    objective = KTO(loss, tables[0], mismatched, tables[1])
    objective.prepare(engine_of(model), batches.once())
    assert variant != "kto" or objective.baseline > 0.01
    assert_same(our_step(model, objective, batches), trl_step(trainer))


def test_orpo(tiny_init: dict[str, Any], tokenizer: PreTrainedTokenizerBase, loaded: Loaded, tmp_path: Path) -> None:
    model = build(load_language_model, tiny_init, tokenizer, seed=0)
    without_bos = deepcopy(tokenizer)
    without_bos.bos_token = None
    trainer = ORPOTrainer(
        model=deepcopy(model.hf),
        args=arguments(ORPOConfig, tmp_path),
        train_dataset=dataset(loaded),
        processing_class=without_bos,
    )
    for row, example in zip(trainer.train_dataset, loaded.examples, strict=True):
        prompt = example.prompt_ids.tolist()
        for side, completion in zip(("chosen", "rejected"), example.completion_ids, strict=True):
            assert row[f"{side}_input_ids"] == prompt + completion.tolist()
            assert row[f"{side}_labels"] == [-100] * len(prompt) + completion.tolist()
    objective = ORPO(ORPOLoss(weight=0.3, nll=ORPONll.sequence))
    assert_same(our_step(model, objective, batches_of(loaded)), trl_step(trainer))
