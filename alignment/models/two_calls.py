"""Attention to a prompt in a call of its own, so that no key is copied: the other way of varlen.py.

The first call takes the row as it is: a prompt with its first completion is one causal sequence, and each other
completion is one of its own tokens alone. The second gives these others their prompt: a sequence is a prompt's keys and
the queries of all its completions but the first, none of which the mask hides. Of two parts o, whose scores have the
log-sum-exps s, the whole is (Milakov and Gimelshein, arXiv:1805.02867)

    s = log(exp(s1) + exp(s2))        o = exp(s1 - s) o1 + exp(s2 - s) o2

merged in float32 and rounded once more. A kernel's gradients (Dao et al. arXiv:2205.14135, algorithm 4) are made of the
probabilities exp(score - s) and of the sum of do * o, both of which are the whole's for every part of the keys: given
the merged o and s each call gives its part's share, keys' and values' where they lie, and the queries' are added up.
torch's `varlen_attn` takes no gradient of s, which this way has no need of: its backward operator is called itself.

What a window hides of a prompt depends on the completion's token: layers that slide gather (varlen.py).
"""

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.attention.varlen import AuxRequest, varlen_attn

from alignment.data.pack import Batch

CAUSAL, ALL = (-1, 0), (-1, -1)  # windows, as the kernel counts them


@dataclass(frozen=True, slots=True)
class Runs:
    """Sequences, whose queries and keys lie end to end."""

    query_ends: Tensor  # [S + 1] int32, where each sequence's queries begin, and the end
    key_ends: Tensor  # [S + 1] int32, likewise of keys
    longest: tuple[int, int]  # queries and keys of a sequence


@dataclass(frozen=True, slots=True)
class Parts:
    """The sequences of both calls, and where those of the second lie in the row [L]."""

    own: Runs  # the row as it is
    prompt: Runs  # one sequence a prompt
    later: Tensor  # [T] int64, the tokens of all completions but the first
    prompts: Tensor  # [U] int64, the prompts' tokens


def parts_of(batch: Batch) -> Parts:
    """Those of a batch in the shared layout with two completions a prompt or more, on its device, to which all indices
    go in one copy."""
    lengths = np.array(batch.branch_lengths)  # [G, 1 + n]
    sequences = np.concatenate([lengths[:, :1] + lengths[:, 1:2], lengths[:, 2:]], 1)  # [G, n]
    later = sequences[:, 1:].sum(1)
    branch = np.repeat(np.tile(np.arange(lengths.shape[1]), len(lengths)), lengths.ravel())  # [L]
    own, prompt_ends, later_ends = _begins(sequences.ravel()), _begins(lengths[:, 0]), _begins(later)
    pieces = [own, prompt_ends, later_ends, np.flatnonzero(branch > 1), np.flatnonzero(branch == 0)]
    together = torch.from_numpy(np.concatenate(pieces).astype(np.int32)).to(batch.input_ids.device, non_blocking=True)
    ends, of_prompts, of_later, places, prompts = together.split([len(piece) for piece in pieces])
    longest = int(sequences.max())
    return Parts(
        Runs(ends, ends, (longest, longest)),
        Runs(of_later, of_prompts, (int(later.max()), int(lengths[:, 0].max()))),
        places.long(),
        prompts.long(),
    )


def _begins(lengths: np.ndarray) -> np.ndarray:
    return np.concatenate([[0], np.cumsum(lengths)])


def merged_attention(query: Tensor, key: Tensor, value: Tensor, parts: Parts, scale: float) -> Tensor:
    """query [L, heads, D], key and value [L, heads of keys, D], a row -> [L, heads, D]. Kept for the backward pass are
    these four and the log-sum-exp, [heads, L] float32."""
    merged: Tensor = _Merged.apply(query, key, value, parts, scale)
    return merged


class _Merged(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, parts: Parts, scale: float) -> Tensor:
        later = parts.later
        out, lse = _call(_Inputs(query, key, value), parts.own, scale, CAUSAL)
        other, other_lse = _call(_of_prompts(query, key, value, parts), parts.prompt, scale, ALL)
        first, first_lse = out.index_select(0, later), lse.index_select(1, later)
        both = torch.logaddexp(first_lse, other_lse)
        exact = torch.promote_types(out.dtype, torch.float32)
        shares = [(each - both).exp_().T.unsqueeze(-1).to(exact) for each in (first_lse, other_lse)]
        whole = (first * shares[0]).addcmul_(other, shares[1])
        out.index_copy_(0, later, whole.to(out.dtype))
        lse.index_copy_(1, later, both)
        ctx.save_for_backward(query, key, value, out, lse)
        ctx.parts, ctx.scale = parts, scale
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, out, lse = ctx.saved_tensors
        parts, later = ctx.parts, ctx.parts.later
        found = _gradients((gradient, out, lse), _Inputs(query, key, value), parts.own, ctx.scale, CAUSAL)
        of_later = gradient.index_select(0, later), out.index_select(0, later), lse.index_select(1, later)
        others = _gradients(of_later, _of_prompts(query, key, value, parts), parts.prompt, ctx.scale, ALL)
        for whole, part, places in zip(found, others, (later, parts.prompts, parts.prompts), strict=True):
            whole.index_copy_(0, places, whole.index_select(0, places) + part)  # index_add would be in no fixed order
        return *found, None, None


class _Inputs(NamedTuple):
    query: Tensor
    key: Tensor
    value: Tensor


def _of_prompts(query: Tensor, key: Tensor, value: Tensor, parts: Parts) -> _Inputs:
    """What the second call takes of the row."""
    keys, values = (part.index_select(0, parts.prompts) for part in (key, value))
    return _Inputs(query.index_select(0, parts.later), keys, values)


def _call(inputs: _Inputs, runs: Runs, scale: float, window: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """[T, heads, D], and the log-sum-exps [heads, T]."""
    heads, of_keys = inputs.query.shape[1], inputs.key.shape[1]
    out, lse = varlen_attn(
        *inputs,
        runs.query_ends,
        runs.key_ends,
        *runs.longest,
        return_aux=AuxRequest(lse=True),
        scale=scale,
        window_size=window,
        enable_gqa=heads != of_keys,
    )
    assert lse.shape == (heads, len(out))  # as the kernels have it; the documentation has it the other way round
    return out, lse


def _gradients(
    of_output: tuple[Tensor, Tensor, Tensor], inputs: _Inputs, runs: Runs, scale: float, window: tuple[int, int]
) -> tuple[Tensor, Tensor, Tensor]:
    """Of queries, keys and values, by the output's gradient, the output and its log-sum-exps."""
    gradient, out, lse = of_output
    no_dropout = torch.zeros(2, dtype=torch.uint64, device=out.device)
    ends = runs.query_ends, runs.key_ends, *runs.longest
    backward = torch.ops.torch_attn._varlen_attn_backward
    of_queries, of_keys, of_values = backward(
        gradient, *inputs, out, lse, *ends, window == CAUSAL, no_dropout, scale, list(window)
    )
    return of_queries, of_keys, of_values
