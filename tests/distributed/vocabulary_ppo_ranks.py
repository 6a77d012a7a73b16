"""What one process of the test of a real vocabulary does for the tasks that draw replies: PPO, rejection sampling and
an evaluation, as in ppo_ranks.py, with 131,072 pieces, the logits of which take several chunks.

python vocabulary_ppo_ranks.py OUT STAGE ... with RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT set.
"""

import json
from typing import Any

import ppo_ranks
import ranks
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from alignment.config.parts import ModelConfig
from alignment.models import heads
from alignment.models.tokenizer import load_tokenizer

PIECES = 131_072
CHUNK = 16  # tokens: as many logits at a time as there are of many thousand tokens in a run
FEW = ["batch.size=4", "data.eval.limit=3", "generation.max_new_tokens=6", "model.path=FOLDER/first"]
PPO = ["ppo.epochs=1", "ppo.replies=1", "train.eval_every=8", "ptx.size=2"]


def tokenizer_of(settings: ModelConfig) -> PreTrainedTokenizerBase:
    """The small one, with words of its own for the pieces that it has not: no text is cut into them, all are drawn."""
    small = load_tokenizer(settings)
    written = json.loads(small.backend_tokenizer.to_str())
    vocabulary = written["model"]["vocab"]
    vocabulary |= {f"▁word{piece}": piece for piece in range(len(small), PIECES)}
    large = PreTrainedTokenizerFast.from_pretrained(small.name_or_path)
    large._tokenizer = type(small.backend_tokenizer).from_str(json.dumps(written))
    return large


def make_large() -> None:
    """Few weights beside those of the vocabulary, few tokens, and many chunks of them."""
    ranks.INIT |= {"vocab_size": PIECES, "hidden_size": 16, "intermediate_size": 24}
    heads.CHUNK = CHUNK * PIECES
    ppo_ranks.load_tokenizer = tokenizer_of
    del ppo_ranks.TASKS["shared"]
    for name, (recipe, overrides, run) in ppo_ranks.TASKS.items():
        more: list[Any] = [*FEW[:3], *(FEW[3:] if name != "evaluate" else []), *(PPO if name == "ppo" else [])]
        ppo_ranks.TASKS[name] = (recipe, [*overrides, *more], run)


if __name__ == "__main__":
    make_large()
    ppo_ranks.main()
