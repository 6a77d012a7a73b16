"""Replies to prompts: the interface, and the generator that is transformers' own."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from itertools import product
from typing import Any, Protocol

import numpy as np
import torch
from transformers import GenerationConfig as HFGenerationConfig
from transformers import PreTrainedModel, PreTrainedTokenizerBase, StopStringCriteria

from alignment.config.errors import ConfigError
from alignment.config.generation import Gather, GenerationConfig
from alignment.data.ends import end_of_turn
from alignment.distributed.engine import Engine
from alignment.distributed.frozen import FrozenEngine
from alignment.generation.cache import FixedCaches
from alignment.generation.decode import Rules, decode, uniforms
from alignment.models.fp8 import plain_products
from alignment.models.heads import LanguageModel
from alignment.terminal import progress


@dataclass(frozen=True, slots=True)
class Reply:
    """What was sampled for a prompt."""

    ids: np.ndarray  # [t] int32; with the end token, or the tokens of the stop string, where `finished`
    finished: bool
    text: str  # without special tokens, cut before the stop string; as it stands behind the prompt, blanks included
    drawn_logprobs: np.ndarray | None = None
    """[t] float32, nats: of each token where it was drawn, by an engine that is not this model's own forward."""


@dataclass(frozen=True, slots=True)
class Generated:
    """The replies, [prompts][replies], and the tokens that were computed for them, those of ended rows included."""

    replies: list[list[Reply]]
    computed: int


class Generator(Protocol):
    """The weights that it replies with are the model's at each call."""

    @property
    def config(self) -> GenerationConfig: ...

    @property
    def model(self) -> LanguageModel: ...

    @property
    def keeps_logprobs(self) -> bool:
        """Whether its replies have the log-probs that they were drawn with."""
        ...

    def reading(self, engine: Engine | FrozenEngine) -> AbstractContextManager[None]:
        """The context in which `generate` is called: the engine's weights as the generator reads them."""
        ...

    def generate(
        self,
        prompts: Sequence[np.ndarray],
        *,
        keys: Sequence[int],
        replies: int,
        seed: int,
        describe: str | None = None,
    ) -> Generated:
        """`replies` samples for each prompt. `keys`: what tells a prompt's draws from another's, its place in the
        whole batch. `describe` names the progress bar; None shows none."""
        ...


@dataclass(frozen=True, slots=True)
class TransformersGenerator:
    """Samples in this process: a pure function of weights, prompt, seed, key and the reply's number (see `decode`)."""

    model: LanguageModel
    tokenizer: PreTrainedTokenizerBase
    config: GenerationConfig
    watch: Callable[[torch.Tensor], None] | None = None
    """Told the tokens, [B, t], that the replies that are generated together have so far, after each token."""

    @property
    def keeps_logprobs(self) -> bool:
        """They would be the model's own, which the trainer computes anyway."""
        return False

    @contextmanager
    def reading(self, engine: Engine | FrozenEngine) -> Iterator[None]:
        """Whole, as `generation.gather` says, and computed with in the engine's precision. Not in 8 bits, to which all
        weights would be rounded for each token; one copy in bfloat16 serves all of them."""
        where = engine.by_layer() if self.config.gather is Gather.layer else engine.gathered()
        with where, engine.precision(), plain_products(self.model):
            yield

    @torch.no_grad()
    def generate(
        self,
        prompts: Sequence[np.ndarray],
        *,
        keys: Sequence[int],
        replies: int,
        seed: int,
        describe: str | None = None,
    ) -> Generated:
        """Prompts of similar length are generated together, `generation.batch_size` replies at a time."""
        self.model.activate()
        model, config, steps = self.model, self.config, self.config.max_new_tokens
        assert len(keys) == len(prompts)
        if (soft := model.soft_prompt()) is not None and soft.is_on:
            prompts = [np.concatenate([soft.ids(), ids]) for ids in prompts]
        device = next(model.parameters()).device
        together = min(replies, config.batch_size)  # of one prompt
        at_once = min(config.batch_size // together, max(len(prompts), 1))
        order = sorted(range(len(prompts)), key=lambda i: (len(prompts[i]), i))
        jobs = [
            Job(order[i : i + at_once], range(first, min(first + together, replies)))
            for i in range(0, len(order), at_once)
            for first in range(0, replies, together)
        ]
        sampled: list[list[Reply]] = [[] for _ in prompts]
        computed = 0
        rules = Rules(config, end_ids(model.hf, self.tokenizer), self.tokenizer.pad_token_id, self._stop(), self.watch)
        fixed = FixedCaches(model.hf) if config.compile else None
        was_training = model.training
        model.eval()
        with _no_generation_config(model.hf):
            for own in jobs if describe is None else progress(jobs, describe):
                job = own if fixed is None else own.filled_up(at_once, together)
                width = max(len(prompts[i]) for i in job.prompts)
                width = width if fixed is None else fixed.width(width)
                ids, mask = _left_padded([prompts[i] for i in job.prompts], width, self.tokenizer.pad_token_id)
                drawn = np.stack([uniforms(seed, keys[i], number, steps) for i, number in job.replies()])
                lots = torch.from_numpy(drawn).to(device)
                rows, cost = decode(model.hf, ids.to(device), mask.to(device), lots, rules, fixed)
                computed += cost
                places = product(range(len(job.prompts)), job.numbers)
                for (place, number), (row, finished) in zip(places, rows, strict=True):
                    if place >= len(own.prompts) or number not in own.numbers:
                        continue
                    index = own.prompts[place]
                    by_token = int(row[-1]) in rules.end_ids
                    by_string = config.stop if finished and not by_token else []
                    before = int(prompts[index][-1])
                    reply = reply_of(row, self.tokenizer, before=before, by_token=by_token, by_string=by_string)
                    sampled[index].append(reply)
        model.train(was_training)
        return Generated(sampled, computed)

    def _stop(self) -> StopStringCriteria | None:
        if not self.config.stop:
            return None
        try:
            return StopStringCriteria(self.tokenizer, self.config.stop)
        except ValueError as error:
            raise ConfigError(
                f"generation.stop must be made of the tokenizer's pieces, got {self.config.stop}"
            ) from error


def end_ids(hf: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """The tokens that end a reply: the tokenizer's, those that the model's own generation config lists, and the one
    with which the chat template closes a turn, which is how a reply ends that was trained on."""
    own: Any = hf.generation_config
    theirs = own.eos_token_id
    listed = theirs if isinstance(theirs, list) else [] if theirs is None else [theirs]
    turn = end_of_turn(tokenizer)
    return list(dict.fromkeys([tokenizer.eos_token_id, *listed, *([] if turn is None else [turn])]))


def reply_of(
    ids: np.ndarray,
    tokenizer: PreTrainedTokenizerBase,
    *,
    before: int,
    by_token: bool,
    by_string: Sequence[str],
    drawn_logprobs: np.ndarray | None = None,
) -> Reply:
    """How it ended: by an end token, by one of these stop strings, or neither. (Stop strings that special tokens, which
    the text does without, hold apart do not end a reply and stay in its text.)

    Args:
        before: the prompt's last token, behind which some tokenizers write a blank that they leave out at a beginning.
    """
    own = ids[:-1] if by_token else ids
    head = str(tokenizer.decode([before], skip_special_tokens=True))
    whole = str(tokenizer.decode([before, *own.tolist()], skip_special_tokens=True))
    text = whole.removeprefix(head) if whole.startswith(head) else str(tokenizer.decode(own, skip_special_tokens=True))
    cuts = [text.rfind(string) for string in by_string if string in text]
    return Reply(ids, by_token or bool(by_string), text[: min(cuts, default=len(text))], drawn_logprobs)


@dataclass(frozen=True, slots=True)
class Job:
    """What is drawn at the same time: of each of these prompts the replies with these numbers."""

    prompts: list[int]
    numbers: range

    def replies(self) -> list[tuple[int, int]]:
        return [(prompt, number) for prompt in self.prompts for number in self.numbers]

    def filled_up(self, prompts: int, replies: int) -> "Job":
        """With the last prompt again, and with further replies, so that it has as many rows as the others."""
        last = self.prompts[-1:] * (prompts - len(self.prompts))
        return Job(self.prompts + last, range(self.numbers.start, self.numbers.start + replies))


def _left_padded(prompts: Sequence[np.ndarray], width: int, pad_id: int) -> tuple[torch.Tensor, torch.Tensor]:
    table = np.full((len(prompts), width), pad_id, dtype=np.int64)
    mask = np.zeros((len(prompts), width), dtype=np.int64)
    for row, ids in enumerate(prompts):
        table[row, width - len(ids) :], mask[row, width - len(ids) :] = ids, 1
    return torch.from_numpy(table), torch.from_numpy(mask)


@contextmanager
def _no_generation_config(hf: PreTrainedModel) -> Iterator[None]:
    """generate fills what a config leaves open from the model's own, such as a repetition penalty that the log-probs of
    the training forward know nothing of. Nor are the routers' logits wanted, of which transformers makes their loss at
    every step, with a mask that is as long as prompt and reply and not as the one token."""
    before, hf.generation_config = hf.generation_config, HFGenerationConfig()
    config: Any = hf.config.get_text_config()
    routers = config.output_router_logits if "output_router_logits" in config.to_dict() else None
    if routers:
        config.output_router_logits = False
    try:
        yield
    finally:
        hf.generation_config = before
        if routers:
            config.output_router_logits = routers
