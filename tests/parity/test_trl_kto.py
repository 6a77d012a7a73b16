"""A step of KTO is TRL's, as those of test_trl.py are."""

from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from torch import Tensor
from transformers import PreTrainedTokenizerBase, TrainerCallback
from trl import KTOConfig, KTOTrainer

from alignment.config.batch import BatchConfig, Layout
from alignment.config.data import DataConfig, ExampleKind, Format, TrainSource
from alignment.config.distributed import Device, DistributedConfig
from alignment.config.model import ModelConfig
from alignment.data.batches import Batches, Packer
from alignment.data.load import load_split
from alignment.distributed.engine import TorchEngine
from alignment.distributed.placement import WHOLE
from alignment.losses import KTOLoss, KTOVariant
from alignment.models.load import load_language_model
from alignment.training.kto import KTO, with_replies_to_others
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


class Gradients(TrainerCallback):
    """Keeps what the optimizer is about to see."""

    def __init__(self) -> None:
        self.found: dict[str, Tensor] = {}

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        self.found = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def build(tiny_init: dict[str, Any], tokenizer: PreTrainedTokenizerBase, seed: int) -> Any:
    torch.manual_seed(seed)
    return load_language_model(ModelConfig(init=tiny_init), tokenizer, WHOLE)


def engine_of(model: Any) -> TorchEngine:
    optimizer = torch.optim.SGD(model.parameters())
    scheduler = torch.optim.lr_scheduler.ConstantLR(optimizer)
    return TorchEngine(model, optimizer, scheduler, config=DistributedConfig(device=Device.cpu), max_grad_norm=1.0)


@pytest.mark.parametrize("variant", ["kto", "apo_zero_unpaired"])
def test_kto(tiny_init: dict[str, Any], tokenizer: PreTrainedTokenizerBase, tmp_path: Path, variant: str) -> None:
    """With a reference of other weights, and the KL of prompts with the replies to those before them, which is > 0."""
    config = DataConfig(format=Format.toy, train=TrainSource(limit=PAIRS), max_prompt_length=128)
    split = load_split("train", config, tokenizer, ExampleKind.labeled)
    assert split is not None
    chosen = [2 * place + place % 2 for place in range(PAIRS)]  # one reply to each prompt, good and bad in turn
    records, examples = [split.records[row] for row in chosen], [split.examples[row] for row in chosen]
    assert [record.labels for record in records] == [(True,), (False,)] * (PAIRS // 2)
    model = build(tiny_init, tokenizer, seed=1)
    reference = build(tiny_init, tokenizer, seed=0)
    args = KTOConfig(
        output_dir=str(tmp_path),
        max_length=None,
        beta=0.3,
        desirable_weight=1.5,
        undesirable_weight=0.5,
        loss_type=variant,
        per_device_train_batch_size=PAIRS,
        train_sampling_strategy="sequential",
        **ON_CPU,
    )
    trainer = KTOTrainer(
        model=deepcopy(model.hf),
        ref_model=deepcopy(reference.hf),
        args=args,
        train_dataset=Dataset.from_list(
            [{"prompt": r.prompt, "completion": r.completions[0], "label": r.labels[0]} for r in records]
        ),
        processing_class=tokenizer,
    )
    batches = Batches(examples, Packer(BatchConfig(size=PAIRS, max_tokens=200, layout=Layout.shared), 0), 0)
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
    gradients, count, total = Gradients(), len(examples), 0.0
    trainer.add_callback(gradients)
    wanted = trainer.train().training_loss
    for piece, _ in batches.once():
        output = objective(model, piece)
        (output.loss.total / count).backward()
        total += output.loss.total.item()
    assert total / count == pytest.approx(wanted, rel=1e-5)
    for name, want in gradients.found.items():
        found = dict(model.named_parameters())[f"hf.{name}"].grad
        assert want.abs().max() > 1e-4 and (found - want).abs().max() < 1e-5 * want.abs().max(), name
