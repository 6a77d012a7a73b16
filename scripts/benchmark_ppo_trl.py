"""TRL 1.12's side of the PPO benchmark, run in its own environment: its trainer as it is, one iteration a turn."""

import json
import sys
from pathlib import Path
from typing import Any

from benchmark_turns import Turns
from datasets import Dataset
from torch.utils.data import DataLoader
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    TrainerCallback,
)
from trl.experimental.ppo import PPOConfig, PPOTrainer


class OneTurn(TrainerCallback):
    """Stops the trainer's loop between two iterations until its turn comes."""

    def __init__(self, turns: Turns) -> None:
        self.turns = turns

    def on_train_begin(self, *args: Any, **kwargs: Any) -> None:
        self.turns.wait()

    def on_step_end(self, *args: Any, **kwargs: Any) -> None:
        self.turns.wait()


def main(folder: Path) -> None:
    setting = json.loads((folder / "prompts.json").read_text())
    turns, is_gpu = Turns(setting["device"]), setting["device"] == "cuda"
    prompts, size = [ids for step in setting["steps"] for ids in step], len(setting["steps"][0])
    tokenizer = AutoTokenizer.from_pretrained(folder / "policy", padding_side="left")
    config = PPOConfig(
        output_dir=str(folder / "trl"),
        total_episodes=len(prompts),
        per_device_train_batch_size=size,
        gradient_accumulation_steps=1,
        stop_token="eos",
        num_sample_generations=0,
        use_cpu=not is_gpu,
        bf16=is_gpu,
        gradient_checkpointing=False,
        report_to="none",
        save_strategy="no",
        disable_tqdm=True,
        **setting["config"],
    )
    scalars = [AutoModelForSequenceClassification.from_pretrained(folder / "reward") for _ in range(2)]
    data = Dataset.from_dict({"input_ids": prompts})
    trainer = PPOTrainer(
        args=config,
        processing_class=tokenizer,
        model=AutoModelForCausalLM.from_pretrained(folder / "policy"),
        ref_model=None,
        reward_model=scalars[0],
        value_model=scalars[1],
        train_dataset=data,
        eval_dataset=data,
        callbacks=[OneTurn(turns)],
    )
    trainer.dataloader = DataLoader(data, batch_size=size, collate_fn=trainer.data_collator)  # the order that ours has
    trainer.train()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
