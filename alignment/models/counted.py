"""A model before it is there: what it is of a run, the rows it reads, and what was counted of it."""

import re
from dataclasses import dataclass
from enum import IntEnum
from math import gcd

import numpy as np
from transformers import PreTrainedConfig

from alignment.config.model import ModelConfig
from alignment.config.train import TrainConfig
from alignment.models.held import States

SMALL = 100_000
"""Numbers of a weight that DeepSpeed's ZeRO 3, where it is not told otherwise, leaves whole in each process."""


@dataclass(frozen=True, slots=True)
class Rows:
    """The longest rows that a run's limits admit: a prompt and `count` completions, which go into one pass together."""

    prompt: int
    completion: int
    count: int = 1

    @property
    def longest(self) -> int:
        """Tokens of the prompt with one completion."""
        return self.prompt + self.completion

    @property
    def together(self) -> int:
        """Tokens of the prompt with all its completions."""
        return self.prompt + self.count * self.completion


@dataclass(frozen=True, slots=True)
class Role:
    """A model of a run, before it is loaded."""

    key: str
    """By which its user knows it."""
    settings: ModelConfig
    is_scalar: bool = False
    """Whether its head is one number."""
    is_trained: bool = False
    train: TrainConfig | None = None
    """Whose optimizer trains it. None: AdamW."""
    is_in_ppo: bool = False
    """Whether PPO's update reads it: the entropy of each token beside its log-prob, or a value for each token."""
    copies: int = 0
    """Further float32 copies of the weights that train, such as their moving average."""

    @property
    def is_even(self) -> bool:
        """Whether its layers are as large as each other: a pattern of adapters that is no plain name may fit some."""
        lora = self.settings.lora
        return all(re.fullmatch(r"[A-Za-z_.]*", name) for name in (*lora.rank_pattern, *lora.alpha_pattern))


class Phase(IntEnum):
    """Of a pass. What one takes rises evenly with tokens and layers, what the highest of them takes need not."""

    forward = 0
    read_out = 1
    backward_of_read_out = 2
    backward = 3
    backward_of_first_layer = 4
    """The last of the layers', when the gradients of all others are there: the most of it with these."""
    backward_of_embeddings = 5
    """Where these train: their gradient is as large as they are, however few the tokens."""


class Part(IntEnum):
    """What a tensor of a pass is for."""

    copies = 0
    """Of the weights, in the lower precision that autocast has products compute in."""
    attention = 1
    layers = 2
    """All else between the layers' inputs and outputs, these included."""
    logits = 3
    """And what is made of them, forward and backward."""
    gradients = 4
    """Of the weights, whole and kept for the step: in a step's first pass there are as many as its backward pass has
    come to, in each further one all of them. They are beside what a phase is the highest of."""
    on_host = 5
    """In the memory of the CPU, of all of a pass: what its layers keep there until its backward pass."""


def of_pass(parts: np.ndarray) -> np.ndarray:
    """[..., Part] to [...]: their sum, without the gradients that are kept."""
    total: np.ndarray = parts[..., : Part.gradients].sum(-1)
    return total


@dataclass(frozen=True, slots=True)
class Counted:
    """A model, as it is before any process has it."""

    trained: float
    """Bytes of its weights that train."""
    frozen: float
    """And of the others."""
    num_trained: int
    num_frozen: int
    num_fp8: int
    """Numbers in the weights that multiply in 8 bits."""
    states: States
    """What the optimizer keeps of those that train."""
    layer: float
    """Bytes of the weights of one layer."""
    small: float
    """Bytes of the weights of up to `SMALL` elements."""
    scales: float
    """Of the frozen bytes, what unpacks the packed weights: each process has all of it."""
    num_shared: int
    """Elements that DeepSpeed's ZeRO 3 shares out; of packed weights each byte is one."""
    num_whole: int
    """Of the numbers that train those outside an adapter: modules that are trained whole beside it, a scalar head."""
    num_merged: int
    """Of those that do not, the ones that are made anew where the model is saved whole: with an adapter, or packed."""
    num_largest: int
    """In the largest of these weights."""
    num_unpacked: int
    """And in that one, where it is held in fewer bits than float32."""
    num_narrow: int
    """Of the rest of these, which are saved as they are, those that are held in half precision."""
    num_in_adapter: int
    """Numbers that are saved as the adapter: all that train, a weight of two names twice."""
    num_cached: int
    """Numbers that are kept of each token of a text that is drawn: keys and values."""
    heads: tuple[int, int, int]
    """Of a layer's queries and of its keys, and the numbers of one."""
    num_pieces: int
    """Of the vocabulary."""
    row: int
    """Tokens of the longest row as it is laid out, which go into one pass together."""
    passes: np.ndarray
    """[2, Phase, Part] bytes of a pass in each of its phases: whatever its tokens, and for each of its tokens."""
    few: np.ndarray
    """The same of one whose logits are one chunk, which is not made twice; where the vocabulary is small, of one of no
    more tokens than `passes` is counted of."""
    chunk: int
    """How many tokens that has at the most."""

    @property
    def shared(self) -> float:
        """Bytes of the weights that ZeRO 3 shares out."""
        return self.trained + self.frozen - self.scales

    def exchanged(self, sharing: int, itemsize: int) -> float:
        """Bytes, for each token of its own, of what processes that share rows send each other before a layer's
        attention, all heads of queries, keys and values, where it is laid together, where it comes, and as it came to
        be laid together; `itemsize` of a number in a product."""
        queries, keys, size = self.heads
        keys *= sharing // gcd(sharing, keys)  # repeated, where they are no multiple
        return 3.0 * itemsize * size * (queries + 2 * keys) if sharing > 1 else 0.0

    def own_part(self, per_token: float, sharing: int, itemsize: int) -> float:
        """Of what a token of a pass takes, what it takes in each of the processes that share rows."""
        return (per_token + self.exchanged(sharing, itemsize)) / sharing

    def during(self, tokens: int, *, is_only: bool = False, begins: Phase = Phase.forward) -> np.ndarray:
        """[Part] bytes in the phase of a pass of so many tokens that has most, of those from `begins` on.

        Args:
            is_only: whether it is all of a step, so that no gradients are there as it begins, and those that it has
                made when it has most are counted; otherwise they are beside it, all of them.
        """
        fixed, per_token = self.few if tokens <= self.chunk else self.passes
        phases = fixed + per_token * tokens
        totals = of_pass(phases).clip(min=0)  # which rise evenly, as parts need not: of few tokens one may come to none
        phases = phases.clip(min=0)
        phases[:, : Part.gradients] *= (totals / of_pass(phases).clip(min=1))[:, None]
        if not is_only:
            phases[:, Part.gradients] = 0
        highest: np.ndarray = max(phases[begins:], key=lambda parts: parts[: Part.on_host].sum())
        return highest


def num_cached(config: PreTrainedConfig) -> int:
    """The keys and values of a token in all layers."""
    _, keys, size = heads_of(config)
    return 2 * int(config.get_text_config().num_hidden_layers) * keys * size


def heads_of(config: PreTrainedConfig) -> tuple[int, int, int]:
    """`Counted.heads`, as most families have them: those of keys may be fewer than the queries'."""
    text = config.get_text_config()
    fields = text.to_dict()
    keys = fields.get("num_key_value_heads") or text.num_attention_heads
    size = fields.get("head_dim") or text.hidden_size // text.num_attention_heads
    return int(text.num_attention_heads), int(keys), int(size)
