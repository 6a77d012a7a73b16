"""TRL's side of the benchmark: its own trainers, collators and training step, driven one optimizer step at a time."""

from collections.abc import Callable
from copy import deepcopy
from typing import Any

import torch
from datasets import Dataset
from transformers import PreTrainedTokenizerBase
from trl import DPOConfig, DPOTrainer, RewardConfig, RewardTrainer, SFTConfig, SFTTrainer
from trl.experimental.orpo import ORPOConfig, ORPOTrainer

from alignment.data.loaded import Loaded

TRAINERS: dict[str, tuple[type, type]] = {
    "reward": (RewardConfig, RewardTrainer),
    "dpo": (DPOConfig, DPOTrainer),
    "orpo": (ORPOConfig, ORPOTrainer),
    "sft": (SFTConfig, SFTTrainer),
}


def trl_step(
    method: str, hf: Any, loaded: Loaded, tokenizer: PreTrainedTokenizerBase, folder: str, *, size: int, limit: int
) -> Callable[[int], None]:
    """A function that takes optimizer step `index`: collate, forward, backward, clip, update.

    SFT is packed, and a step is as many packed rows as hold the tokens of `size` demonstrations.
    """
    config_class, trainer_class = TRAINERS[method.partition(",")[0]]
    settings: dict[str, Any] = {"packing": True, "packing_strategy": "wrapped"} if method == "sft" else {}
    reference: dict[str, Any] = {"ref_model": deepcopy(hf)} if method.startswith("dpo") else {}
    config = config_class(
        output_dir=folder,
        per_device_train_batch_size=size,
        max_length=limit,
        use_cpu=not torch.cuda.is_available(),
        bf16=torch.cuda.is_available(),
        gradient_checkpointing=False,
        report_to="none",
        **settings,
    )
    trainer = trainer_class(
        model=hf, args=config, train_dataset=dataset(loaded, method), processing_class=tokenizer, **reference
    )
    trainer.create_optimizer_and_scheduler(num_training_steps=10_000)
    trainer.current_gradient_accumulation_steps = 1  # which train() would set
    trainer.model.train()
    rows = trainer.train_dataset
    per_step = size
    if method == "sft":
        tokens = sum(len(e.prompt_ids) + len(e.completion_ids[0]) for e in loaded.examples)
        per_step = max(1, round(tokens / (len(loaded.examples) / size) / limit))

    def step(index: int) -> None:
        places = range(index * per_step, (index + 1) * per_step)
        batch = trainer.data_collator([rows[place % len(rows)] for place in places])
        trainer.training_step(trainer.model, trainer._prepare_inputs(batch))
        torch.nn.utils.clip_grad_norm_(trainer.model.parameters(), 1.0)
        trainer.optimizer.step()
        trainer.optimizer.zero_grad()

    return step


def dataset(loaded: Loaded, method: str) -> Dataset:
    """The records in TRL's conversational form."""
    names = ["completion"] if method == "sft" else ["chosen", "rejected"]
    rows = [{"prompt": record.prompt, **dict(zip(names, record.completions, strict=True))} for record in loaded.records]
    return Dataset.from_list(rows)
