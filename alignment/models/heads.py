"""The two kinds of model that train: a language model and a model with a scalar head.

Each is a module whose forward does the whole read-out, so that an engine that shards weights sees every use of them.
A [tokens, vocabulary] tensor larger than a chunk never exists: logits are made chunk by chunk and made again in the
backward pass.
"""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel

from alignment.data.pack import PADDING, Batch
from alignment.distributed.placement import Placement
from alignment.distributed.sequence import sequence_group
from alignment.models import fused_head
from alignment.models.adapters import adapter_instead, adapter_off, use_adapter
from alignment.models.attention import attention_inputs, laid_out, use_grouped_attention
from alignment.models.fused_head import LogitScale
from alignment.models.last_layer import feed_forward_at
from alignment.models.last_layer import reads_apart as is_read_apart
from alignment.models.layer_kinds import check_branches
from alignment.models.logprobs import entropy_of, is_likeliest, logprobs_of
from alignment.models.one_run import in_one_run
from alignment.models.positions import max_positions
from alignment.models.routers import RouterLoads, router_loss
from alignment.models.scalar_head import scalar_head
from alignment.models.sequence import Part, part_inputs, part_of
from alignment.models.soft_prompt import (
    SoftPrompt,
    set_before,
    soft_prompt_as_it_was,
    soft_prompt_of,
    soft_prompt_off,
)
from alignment.models.weight_dtype import forwards_in_float32
from alignment.models.whole_modules import Originals

CHUNK = 2**25  # logits that exist at the same time: 128 MiB of float32


def tokens_at_once(vocab_size: int) -> int:
    """Whose logits are one chunk."""
    return max(1, CHUNK // vocab_size)


class Trunk(nn.Module):
    """A transformer, of which the body is read; the head is the subclass's."""

    def __init__(
        self,
        hf: PreTrainedModel,
        placement: Placement,
        router_weight: float = 0.0,
        saved_in: torch.dtype = torch.float32,
        reads_apart: bool | None = None,
    ) -> None:
        """
        Args:
            saved_in: the dtype in which the weights are saved, whatever they are held in.
            reads_apart: whether the last feed-forward may be computed where it is read alone. None: the model is asked.
        """
        super().__init__()
        use_grouped_attention(hf)
        self.hf = hf
        self.placement = placement
        self.saved_in = saved_in
        self.router_weight = router_weight
        self.router_loss: Tensor | None = None  # of the last forward, weighted; a training step adds it to its loss
        self.router_loads = RouterLoads(hf)  # of forwards that learn
        if reads_apart is None:
            with forwards_in_float32(hf, placement):
                reads_apart = is_read_apart(hf)
        self.reads_apart = reads_apart
        self.adapter: str | None = None  # which one is this role's, where roles share a backbone
        self.originals: Originals | None = None  # of modules that train beside an adapter, where they are asked for
        self.has_soft_prompt = any(isinstance(module, SoftPrompt) for module in hf.modules())
        self.version = 0
        self.begins_adapted = False  # so that without its adapter it is not the model as it was when the run began
        self.keeps_base = True  # so that an adapter is one of the base that there was
        self.saves_whole = True  # and not its adapter alone

    def changed(self) -> None:
        """Its weights are others now: `version` says it to who has a copy of them elsewhere, such as a server. The
        training step calls it, and so must whatever else writes into the weights of a model that replies."""
        self.version += 1

    def activate(self) -> None:
        """Make this role's adapter the active one of a shared backbone; otherwise there is nothing to do."""
        if self.adapter is not None:
            use_adapter(self.hf, self.adapter)

    @contextmanager
    def as_it_was(self, adapter: str | None) -> Iterator[None]:
        """Inside, it computes with this one of its adapters, or its soft prompt as it was, or without any, and with the
        modules in `originals`; nothing is to be trained meanwhile."""
        own, self.adapter = self.adapter, None
        other = adapter_off(self.hf) if adapter is None else adapter_instead(self.hf, adapter)
        try:
            prompt = soft_prompt_off(self.hf) if adapter is None else soft_prompt_as_it_was(self.hf)
            with other, prompt, nullcontext() if self.originals is None else self.originals.in_place(self.hf):
                yield
        finally:
            self.adapter = own

    def trained(self) -> dict[str, nn.Parameter]:
        """The parameters that this role trains, by name."""
        self.activate()
        return {name: p for name, p in self.named_parameters() if p.requires_grad}

    def soft_prompt(self) -> SoftPrompt | None:
        """What stands before each text that it reads."""
        return soft_prompt_of(self.hf) if self.has_soft_prompt else None

    def most_tokens(self) -> int | None:
        """Of a text that it can read: its positions, less those of its soft prompt. None: its config names none."""
        limit, prompt = max_positions(self.hf.config).limit, self.soft_prompt()
        return limit if limit is None or prompt is None else limit - prompt.length

    def hidden(self, batch: Batch, positions: Tensor) -> Tensor:
        """[T, H], the last hidden states at `positions` [T] of a batch's rows laid end to end; where processes share
        rows, at those of them that are in this process's part."""
        self.activate()
        config = self.hf.config.get_text_config()
        if batch.shared:
            check_branches(self.hf)
        if (prompt := self.soft_prompt()) is not None and prompt.is_on:
            batch, moved = set_before(batch, prompt)
            positions = moved(positions)
        batch = laid_out(batch, config)
        inputs, ids, position_ids = attention_inputs(batch, config), batch.input_ids, batch.position_ids
        real = batch.groups != PADDING
        if (part := part_of(batch)) is not None:
            inputs = part_inputs(part, batch, config, inputs)
            ids, position_ids, (_, positions) = part.own(ids), part.own(position_ids), part.places(positions)
            real = part.own(real.long()) > 0
        balances = bool(self.router_weight) and torch.is_grad_enabled()
        if balances:
            inputs["output_router_logits"] = True
        is_partial = self.reads_apart and not balances  # every token's routers count in their loss
        counts = torch.is_grad_enabled() and self.router_loads.routers
        counting = self.router_loads.counting(real) if counts else nullcontext()
        with counting, feed_forward_at(self.hf, positions, ids.shape) if is_partial else nullcontext():
            output = self.hf.base_model(ids, position_ids=position_ids, use_cache=False, **inputs)
        if balances:
            logits = output.router_logits if part is None else tuple(map(part.of_tokens, output.router_logits))
            self.router_loss = self.router_weight * router_loss(config, logits, batch.groups != PADDING)
        return output.last_hidden_state.flatten(0, 1)[positions]

    def _part(self, batch: Batch) -> Part | None:
        """As `part_of` of the rows that `hidden` takes."""
        return part_of(laid_out(batch, self.hf.config.get_text_config()) if sequence_group() else batch)


class LanguageModel(Trunk):
    """A causal language model."""

    def forward(
        self,
        batch: Batch,
        positions: Tensor,
        targets: Tensor,
        temperature: float = 1.0,
        *,
        entropy: bool = False,
        greedy: bool = False,
    ) -> tuple[Tensor, ...]:
        """Log-probs (nats, float32 at least) of `targets` [T] at `positions` [T]; behind them, on request, the entropy
        there, [T], and whether each target is the likeliest token, [T], 1 or 0 in the log-probs' dtype.

        Neither of these carries a gradient.
        """
        read = partial(self._read, temperature=temperature, entropy=entropy, greedy=greedy)
        if (part := self._part(batch)) is None:
            return in_one_run(self._head(), read, self.hidden(batch, positions), targets)
        places, _ = part.places(positions)
        own = in_one_run(self._head(), read, self.hidden(batch, positions), targets[places])
        return part.together(torch.stack(own, dim=1), places, len(positions)).unbind(1)

    def _read(
        self, head: nn.Module, hidden: Tensor, targets: Tensor, *, temperature: float, entropy: bool, greedy: bool
    ) -> tuple[Tensor, ...]:
        """Log-probs, and what is asked for beside them, however many chunks it takes."""
        if fused_head.reads(head, hidden):
            asked: dict[str, Any] = {"temperature": temperature, "entropy": entropy, "greedy": greedy}
            return fused_head.read(head, hidden, targets, LogitScale.of(self.hf.config), **asked, most=CHUNK)
        size = tokens_at_once(self.hf.config.get_text_config().vocab_size)
        read = partial(self._read_chunk, head, temperature=temperature, entropy=entropy, greedy=greedy)
        if len(targets) <= size:  # what exists once need not be made twice
            return read(hidden, targets)
        pieces = zip(hidden.split(size), targets.split(size), strict=True)
        chunks = [checkpoint(read, h, t, use_reentrant=False) for h, t in pieces]
        return tuple(torch.cat(parts) for parts in zip(*chunks, strict=True))

    def _read_chunk(
        self, head: nn.Module, hidden: Tensor, targets: Tensor, *, temperature: float, entropy: bool, greedy: bool
    ) -> tuple[Tensor, ...]:
        logits = LogitScale.of(self.hf.config)(head(hidden))
        logprobs = logprobs_of(logits, targets, temperature)
        beside = [entropy_of(logits, temperature)] if entropy else []
        return (logprobs, *beside, *([is_likeliest(logits, targets).to(logprobs.dtype)] if greedy else []))

    def logits(self, hidden: Tensor) -> Tensor:
        """[..., H] -> [..., V], with the scales and the soft cap that some families put on their logits."""
        return LogitScale.of(self.hf.config)(self._head()(hidden))

    def _head(self) -> nn.Module:
        head: nn.Module = self.hf.get_output_embeddings()
        return head


class ScalarModel(Trunk):
    """A transformer body with a head of one number: a reward model or a critic."""

    def forward(self, batch: Batch, positions: Tensor) -> Tensor:
        """[T] float32, the scalar head at `positions` [T]."""
        hidden = self.hidden(batch, positions)
        with torch.autocast(hidden.device.type, enabled=False):  # bfloat16 would round scores to ties
            head = scalar_head(self.hf)
            scores = head(hidden.to(head.weight.dtype))[:, 0].float()
        if (part := self._part(batch)) is None:
            return scores
        return part.together(scores, part.places(positions)[0], len(positions))
