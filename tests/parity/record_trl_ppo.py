"""Writes trl_ppo.npz: what TRL 1.12's PPOTrainer, the last with PPO, makes of a few ragged batches. Run in its own
environment, which scripts/benchmark_ppo.py makes:

    .venv-trl/bin/python tests/parity/record_trl_ppo.py

The trainer trains a tiny random model for one iteration and is left as it is: its `empty_cache` and `backward`, which
it calls between its own lines, note what its variables hold. So the numbers are those of its lines, of which none are
repeated here.
"""

import itertools
import json
import sys
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from tokenizers import Tokenizer, models
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM, LlamaForSequenceClassification, PreTrainedTokenizerFast
from trl.experimental.ppo import PPOConfig, PPOTrainer, ppo_trainer

OUT = Path(__file__).with_name("trl_ppo.npz")
ROWS, TOKENS, PIECES, PAD, EOS = 8, 10, 13, 0, 1
CASES: dict[str, dict[str, Any]] = {
    "plain": {"kl_coef": 0.3, "gamma": 0.9, "lam": 0.8},
    "no discount": {"kl_coef": 0.3, "gamma": 1.0, "lam": 1.0},
    "k3, missing EOS": {"kl_coef": 0.2, "kl_estimator": "k3", "lam": 0.95, "missing_eos_penalty": 1.5},
    "whitened rewards": {"kl_coef": 0.1, "lam": 0.95, "whiten_rewards": True, "missing_eos_penalty": 0.5},
}
EXPERIENCE = ("scores", "logprobs", "ref_logprobs", "values", "kl", "non_score_reward", "rewards", "advantages")
EXPERIENCE += ("returns", "padding_mask", "padding_mask_p1", "contain_eos_token")
INNER = ("micro_batch_inds", "new_logprobs", "vpred", "pg_loss", "vf_loss", "vf_clipfrac")


class Notes:
    """What the trainer's variables held, by name; those of the inner steps stacked."""

    def __init__(self) -> None:
        self.found: dict[str, Tensor] = {}
        self.inner: dict[str, list[Tensor]] = {name: [] for name in INNER}
        self.logged: dict[str, float] = {}

    def empty_cache(self) -> None:
        held = sys._getframe(1).f_locals
        if isinstance(held.get("scores"), Tensor) and "raw_scores" not in self.found:
            self.found["raw_scores"] = held["scores"].clone()
        if "advantages" in held and "advantages" not in self.found:
            self.found |= {name: held[name].clone() for name in EXPERIENCE}

    def watch(self, trainer: PPOTrainer) -> None:
        backward = trainer.accelerator.backward

        def noting(loss: Tensor) -> None:
            held = sys._getframe(1).f_locals
            for name, values in self.inner.items():
                values.append(torch.as_tensor(held[name]).detach().clone())
            backward(loss)

        trainer.accelerator.backward = noting
        trainer.log = self.logged.update

    def arrays(self) -> dict[str, np.ndarray]:
        table = {name: value.numpy() for name, value in self.found.items()}
        table |= {f"inner/{name}": torch.stack(values).numpy() for name, values in self.inner.items()}
        numbers = {f"logged/{name}": np.asarray(value) for name, value in self.logged.items() if "/" in name}
        exact = {name: a.astype(np.float64) if a.dtype == np.float32 else a for name, a in table.items()}
        return {**exact, **numbers}


def main() -> None:
    torch.set_default_dtype(torch.float64)
    arrays = {f"{case}/{name}": a for case in CASES for name, a in record(case).items()}
    about = {
        "settings": CASES,
        "versions": {name: version(name) for name in ("trl", "transformers", "torch")},
    }
    np.savez_compressed(OUT, about=json.dumps(about), **arrays, **whitened())


def record(case: str) -> dict[str, np.ndarray]:
    """The first batch of its seeds that has replies of many lengths, some of them cut."""
    for seed in itertools.count(100 * list(CASES).index(case)):
        notes = train(case, seed)
        lengths = (~notes.found["padding_mask"]).sum(1)
        cut = ~notes.found["contain_eos_token"]
        if lengths.min() > 0 and len(lengths.unique()) >= 5 and cut.sum() >= 2:
            return notes.arrays()
    raise AssertionError


def train(case: str, seed: int) -> Notes:
    """One iteration of the trainer."""
    torch.manual_seed(seed)
    notes = Notes()
    ppo_trainer.empty_cache = notes.empty_cache
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.WordLevel({f"<{i}>": i for i in range(PIECES)}, "<2>")),
        pad_token=f"<{PAD}>",
        eos_token=f"<{EOS}>",
        padding_side="left",
    )
    prompts = [torch.randint(2, PIECES, (length,)).tolist() for length in torch.randint(2, 6, (ROWS,)).tolist()]
    with TemporaryDirectory() as folder:
        settings = PPOConfig(
            output_dir=folder,
            total_episodes=ROWS,
            per_device_train_batch_size=ROWS // 2 if "whiten_rewards" not in CASES[case] else ROWS,
            gradient_accumulation_steps=2 if "whiten_rewards" not in CASES[case] else 1,
            num_ppo_epochs=3,
            response_length=TOKENS,
            stop_token="eos",
            temperature=0.8,
            learning_rate=0.03,
            num_sample_generations=0,
            use_cpu=True,
            bf16=False,
            report_to="none",
            save_strategy="no",
            disable_tqdm=True,
            **CASES[case],
        )
        trainer = PPOTrainer(
            args=settings,
            processing_class=tokenizer,
            model=policy(),
            ref_model=policy(),
            reward_model=scalar(),
            value_model=scalar(),
            train_dataset=Dataset.from_dict({"input_ids": prompts}),
            eval_dataset=Dataset.from_dict({"input_ids": prompts}),
        )
        notes.watch(trainer)
        trainer.train()
    return notes


def config() -> LlamaConfig:
    size = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    ids = {"vocab_size": PIECES, "pad_token_id": PAD, "eos_token_id": EOS, "bos_token_id": None}
    return LlamaConfig(num_labels=1, initializer_range=0.2, **size, **ids)


def policy() -> Any:
    """Ends a reply after ten tokens or so and never draws the pad token."""
    model = LlamaForCausalLM(config()).double()
    model.lm_head = nn.Linear(16, PIECES)
    nn.init.normal_(model.lm_head.weight, std=0.2)
    nn.init.zeros_(model.lm_head.bias)
    with torch.no_grad():
        model.lm_head.bias[PAD], model.lm_head.bias[EOS] = -50.0, 0.3
    return model


def scalar() -> Any:
    model = LlamaForSequenceClassification(config()).double()
    nn.init.normal_(model.score.weight, std=0.5)
    return model


def whitened() -> dict[str, np.ndarray]:
    """TRL's function alone, on values far from zero."""
    torch.manual_seed(100)
    values = 3.0 + 2.0 * torch.randn(5, 7)
    mask = torch.arange(7) < torch.randint(1, 8, (5, 1))
    both = {name: ppo_trainer.masked_whiten(values, mask, shift_mean=zero) for name, zero in ZERO_MEAN.items()}
    return {f"whiten/{name}": t.numpy() for name, t in {"values": values, "mask": mask, **both}.items()}


ZERO_MEAN = {"zero_mean": True, "mean_kept": False}


if __name__ == "__main__":
    main()
