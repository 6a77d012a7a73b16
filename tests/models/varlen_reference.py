"""The flash kernels below torch's varlen attention, for a CPU: plain, sequence by sequence, and as strict as they are.

All that is above them is torch's own: `varlen_attn`, its operators and their autograd formula.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor


def check(query: Tensor, keys: tuple[Tensor, Tensor], ends: tuple[Tensor, Tensor], longest: tuple[int, int]) -> None:
    """What the kernels ask of their inputs, halves excepted."""
    for part, at, most in ((query, ends[0], longest[0]), *((part, ends[1], longest[1]) for part in keys)):
        assert part.dtype == query.dtype and part.stride(-1) == 1
        assert part.shape[-1] == query.shape[-1] <= 256 and part.shape[-1] % 8 == 0
        assert at.dtype == torch.int32 and at.is_contiguous() and at[0] == 0 and at[-1] == len(part)
        assert at.diff().min() > 0 and at.diff().max() == most
    assert query.shape[1] % keys[0].shape[1] == 0


def scores(query: Tensor, key: Tensor, scale: float, window: tuple[int, int]) -> Tensor:
    """[heads, queries, keys] of one sequence, -inf where a query does not see: `window` keys to the left and right of
    the key that stands as far from the end as the query does, -1 for all."""
    groups = query.shape[1] // key.shape[1]
    made = torch.einsum("qhd,khd->hqk", query, key.repeat_interleave(groups, 1)) * scale
    last = torch.arange(len(query))[:, None] + len(key) - len(query)
    distance = last - torch.arange(len(key))[None, :]
    left, right = window
    hidden = torch.zeros_like(distance, dtype=torch.bool)
    hidden = hidden | (distance < -right) if right >= 0 else hidden
    hidden = hidden | (distance > left) if left >= 0 else hidden
    return made.masked_fill(hidden, -torch.inf)


def pieces(*parts: tuple[Tensor, Tensor]) -> Iterator[tuple[Tensor, ...]]:
    """Each sequence's of the parts, given with where its sequences end."""
    return zip(*(part.split(ends.diff().tolist()) for part, ends in parts), strict=True)


def forward(
    query: Tensor, key: Tensor, value: Tensor, q_ends: Tensor, k_ends: Tensor, max_q: int, max_k: int, *rest: Any,
    scale: float, window_size_left: int, window_size_right: int, **settings: Any,
) -> tuple[Tensor, ...]:  # fmt: skip
    check(query, (key, value), (q_ends, k_ends), (max_q, max_k))
    assert not any(value is not None for value in settings.values())
    assert rest[1] == ((window_size_left, window_size_right) == (-1, 0))  # that it is causal
    outputs, sums = [], []
    for q, k, v in pieces((query, q_ends), (key, k_ends), (value, k_ends)):
        made = scores(q, k, scale, (window_size_left, window_size_right))
        sums.append(made.logsumexp(-1))
        probabilities = (made - sums[-1][..., None]).exp()
        outputs.append(torch.einsum("hqk,khd->qhd", probabilities, v.repeat_interleave(q.shape[1] // v.shape[1], 1)))
    nothing = query.new_empty(0)
    return torch.cat(outputs), torch.cat(sums, 1), nothing, nothing.clone(), nothing.clone()


def backward(
    gradient: Tensor, query: Tensor, key: Tensor, value: Tensor, out: Tensor, lse: Tensor, q_ends: Tensor,
    k_ends: Tensor, max_q: int, max_k: int, *rest: Any, scale: float, window_size_left: int, window_size_right: int,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """Dao et al. 2205.14135, algorithm 4, of whole sequences."""
    check(query, (key, value), (q_ends, k_ends), (max_q, max_k))
    assert rest[1] == ((window_size_left, window_size_right) == (-1, 0))
    found = []
    of_queries = [(part, q_ends) for part in (gradient, query, out, lse.T)]
    for d, q, o, s, k, v in pieces(*of_queries, (key, k_ends), (value, k_ends)):
        made, groups = scores(q, k, scale, (window_size_left, window_size_right)), q.shape[1] // k.shape[1]
        p = (made - s.T[..., None]).exp()
        dp = torch.einsum("qhd,khd->hqk", d, v.repeat_interleave(groups, 1))
        ds = p * (dp - (d * o).sum(-1).T[..., None]) * scale
        dk, dv = torch.einsum("hqk,qhd->khd", ds, q), torch.einsum("hqk,qhd->khd", p, d)
        dq = torch.einsum("hqk,khd->qhd", ds, k.repeat_interleave(groups, 1))
        found.append((dq, *(part.unflatten(1, (-1, groups)).sum(2) for part in (dk, dv))))
    dq, dk, dv = (torch.cat(parts) for parts in zip(*found, strict=True))
    return dq, dk, dv


@contextmanager
def on_a_cpu() -> Iterator[None]:
    """Inside, torch's varlen attention runs on a CPU."""
    library = torch.library.Library("aten", "IMPL")
    library.impl("_flash_attention_forward", forward, "CPU")
    library.impl("_flash_attention_backward", backward, "CPU")
    try:
        yield
    finally:
        library._destroy()
