"""What one process of the test of a real vocabulary does for a task that replies, as in ppo_ranks.py, with 131,072
pieces, the logits of which take several chunks.

python vocabulary_ppo_ranks.py OUT TASK/STAGE with RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT set.
"""

import json
import sys
from pathlib import Path

import ppo_ranks
import ranks
import torch
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from alignment.config.model import ModelConfig
from alignment.distributed.placement import WHOLE
from alignment.models import heads
from alignment.models.load import load_language_model, save_model
from alignment.models.tokenizer import load_tokenizer

PIECES = 131_072
CHUNK = 16  # tokens: as many logits at a time as there are of many thousand tokens in a run
FEW = ["data.eval.limit=2", "generation.max_new_tokens=4"]
TEN = [
    *FEW,
    "train.max_steps=10",
    "train.eval_every=0",
    "batch.size=4",
    "data.train.limit=8",
    "model.path=FOLDER/first",
]
TRAINING = [*TEN, "ppo.epochs=1"]
WITHOUT = ["ptx.weight=0", "ptx.size=64", "ptx.data.format=native", "ptx.data.train.limit=null", "ppo.ema=null"]
WITHOUT += ["kl.limit=null"]
SETTINGS = {  # of each task, behind those of ppo_ranks
    "ppo": [*TRAINING, *WITHOUT, "num_samples=1"],
    "grpo": TRAINING,
    "online_dpo": TEN,
    # One reply in two has such a sign in its words' numbers, and so an end.
    "rejection": [*FEW, "data.train.limit=8", "model.path=FOLDER/first", "generation.stop=['1','22']"],
    "evaluate": [*FEW, "runs={first:FOLDER/first,other:FOLDER/other}", "pairs.eval.limit=3"],
}


def tokenizer_of(settings: ModelConfig) -> PreTrainedTokenizerBase:
    """The small one, with words of its own for the pieces that it has not: no text is cut into them, all are drawn."""
    small = load_tokenizer(settings)
    written = json.loads(small.backend_tokenizer.to_str())
    vocabulary = written["model"]["vocab"]
    vocabulary |= {f"▁word{piece}": piece for piece in range(len(small), PIECES)}
    large = PreTrainedTokenizerFast.from_pretrained(small.name_or_path)
    large._tokenizer = type(small.backend_tokenizer).from_str(json.dumps(written))
    return large


def make_models(folder: Path) -> None:
    """Those of ppo_ranks, and another policy, for an evaluation without what PPO has made."""
    ppo_ranks.make_models(folder)
    settings = ModelConfig(init=ranks.INIT)
    tokenizer = tokenizer_of(settings)
    torch.manual_seed(7)
    save_model(load_language_model(settings, tokenizer, WHOLE), tokenizer, folder / "other")


def make_large(task: str) -> None:
    """Few weights beside those of the vocabulary, few tokens, and many chunks of them."""
    ranks.INIT |= {"vocab_size": PIECES, "hidden_size": 16, "intermediate_size": 24}
    heads.CHUNK = CHUNK * PIECES
    ppo_ranks.load_tokenizer = tokenizer_of
    recipe, overrides, run = ppo_ranks.TASKS[task]
    overrides = [word for word in overrides if not word.startswith("runs=")]  # which would be added to
    ppo_ranks.TASKS.clear()
    ppo_ranks.TASKS[task] = (recipe, [*overrides, *SETTINGS[task]], run)


if __name__ == "__main__":
    make_large(sys.argv[2].split("/")[0])
    ppo_ranks.main(make_models)
