"""trl's kernels on a GPU: the log-probs, entropies and gradients of a head whose logits are made."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from alignment.models import heads
from alignment.models.fused_head import LogitScale, read, reads
from alignment.models.logprobs import entropy_of, is_likeliest, logprobs_of

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no GPU"),
]


@pytest.mark.parametrize("scale", [LogitScale(None, None, None), LogitScale(3.0, 0.5, 2.0)])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_they_read_and_learn_as_from_logits(dtype: torch.dtype, bias: bool, scale: LogitScale) -> None:
    generator = torch.Generator("cuda").manual_seed(0)
    head = nn.Linear(64, 20_000, bias=bias, device="cuda")
    hidden = torch.randn(5000, 64, device="cuda", generator=generator, requires_grad=True)
    targets = torch.randint(0, 20_000, (5000,), device="cuda", generator=generator)
    weights = torch.randn(5000, device="cuda", generator=generator)
    assert reads(head, hidden)
    asked: dict[str, Any] = {"temperature": 0.7, "entropy": True, "greedy": True, "most": heads.CHUNK}
    found: list[list[Tensor]] = []
    for is_fused in (True, False):
        with torch.autocast("cuda", dtype=torch.bfloat16, enabled=dtype == torch.bfloat16):
            if is_fused:
                parts = read(head, hidden, targets, scale, **asked)
            else:
                logits = scale(head(hidden))
                entropy, hits = entropy_of(logits, 0.7), is_likeliest(logits, targets)
                parts = (logprobs_of(logits, targets, 0.7), entropy, hits.float())
        gradients = torch.autograd.grad((parts[0] * weights).sum(), [hidden, *head.parameters()])
        found.append([*(part.detach() for part in parts[:2]), *gradients])
    for got, want in zip(*found, strict=True):
        assert got.dtype == want.dtype
        assert (got - want).norm() < (1e-4 if dtype == torch.float32 else 0.02) * want.norm()
