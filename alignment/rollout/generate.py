"""Sampling replies with transformers' generate."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from transformers import GenerationConfig as HFGenerationConfig
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from alignment.config.parts import GenerationConfig
from alignment.models.heads import LanguageModel
from alignment.terminal import progress


@dataclass(frozen=True, slots=True)
class Reply:
    """What was sampled for a prompt."""

    ids: np.ndarray  # [t] int32; ends with EOS where `finished`
    finished: bool
    text: str


@torch.no_grad()
def generate(
    model: LanguageModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[np.ndarray],
    *,
    config: GenerationConfig,
    replies: int,
    seed: int,
    describe: str | None = None,
) -> list[list[Reply]]:
    """`replies` samples for each prompt, a pure function of weights, prompts and seed.

    Prompts of similar length are generated together. `describe` names the progress bar; None shows none.
    """
    hf: Any = model.hf  # generate is a mix-in that the type of a pre-trained model does not show
    device = next(model.parameters()).device
    order = sorted(range(len(prompts)), key=lambda i: (len(prompts[i]), i))
    at_once = max(1, config.batch_size // replies)
    pieces = [order[i : i + at_once] for i in range(0, len(order), at_once)]
    sampled: list[list[Reply]] = [[] for _ in prompts]
    was_training = model.training
    model.eval()
    with (
        torch.random.fork_rng([device] if device.type == "cuda" else []),
        _generation_config(model.hf, tokenizer, config, replies) as settings,
    ):
        torch.manual_seed(seed)
        for piece in pieces if describe is None else progress(pieces, describe):
            ids, mask = _left_padded([prompts[i] for i in piece], tokenizer.pad_token_id)
            output = hf.generate(ids.to(device), attention_mask=mask.to(device), generation_config=settings)
            rows = output[:, ids.shape[1] :].cpu().numpy().reshape(len(piece), replies, -1)
            for index, row in zip(piece, rows, strict=True):
                sampled[index] = [_reply(ids, tokenizer) for ids in row]
    model.train(was_training)
    return sampled


def _reply(ids: np.ndarray, tokenizer: PreTrainedTokenizerBase) -> Reply:
    """Up to and with the first EOS; what generate put behind it is padding, whatever its id."""
    ends = np.flatnonzero(ids == tokenizer.eos_token_id)
    kept = ids[: ends[0] + 1] if len(ends) else ids
    return Reply(kept.astype(np.int32), bool(len(ends)), str(tokenizer.decode(kept, skip_special_tokens=True)).strip())


def _left_padded(prompts: Sequence[np.ndarray], pad_id: int) -> tuple[torch.Tensor, torch.Tensor]:
    width = max(len(ids) for ids in prompts)
    table = np.full((len(prompts), width), pad_id, dtype=np.int64)
    mask = np.zeros((len(prompts), width), dtype=np.int64)
    for row, ids in enumerate(prompts):
        table[row, width - len(ids) :], mask[row, width - len(ids) :] = ids, 1
    return torch.from_numpy(table), torch.from_numpy(mask)


@contextmanager
def _generation_config(
    hf: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, config: GenerationConfig, replies: int
) -> Iterator[HFGenerationConfig]:
    """Ours alone: generate fills what a config leaves open from the model's own, such as a repetition penalty that the
    log-probs of the training forward know nothing of."""
    settings = HFGenerationConfig(
        max_new_tokens=config.max_new_tokens,
        do_sample=True,
        temperature=config.temperature,
        top_k=config.top_k,
        top_p=config.top_p,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        num_return_sequences=replies,
        use_cache=True,
    )
    before, hf.generation_config = hf.generation_config, settings
    try:
        yield settings
    finally:
        hf.generation_config = before
