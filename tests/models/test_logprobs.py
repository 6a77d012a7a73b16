"""Log-probs and entropy of logits in pieces: closed form, derivatives, dtypes."""

import pytest
import torch
from torch import Tensor

from alignment.models import logprobs
from alignment.models.logprobs import entropy_of, is_likeliest, logprobs_of

NUM_ROWS, VOCABULARY = 7, 5


@pytest.fixture
def logits() -> Tensor:
    return torch.randn(NUM_ROWS, VOCABULARY, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).mul(3)


@pytest.fixture
def targets() -> Tensor:
    return torch.tensor([0, 4, 2, 2, 1, 3, 0])


@pytest.fixture(params=[1, 2, 3, 7, 100], autouse=True)
def rows_a_piece(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logprobs, "ROWS", request.param)


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_closed_form(logits: Tensor, targets: Tensor, temperature: float) -> None:
    """log p = z / t - log sum exp(z / t); H = -sum p log p."""
    before, scaled = logits.clone(), logits / temperature
    want = scaled[torch.arange(NUM_ROWS), targets] - scaled.exp().sum(-1).log()
    torch.testing.assert_close(logprobs_of(logits, targets, temperature), want, rtol=1e-12, atol=1e-14)
    p = scaled.exp() / scaled.exp().sum(-1, keepdim=True)
    torch.testing.assert_close(entropy_of(logits, temperature), -(p * p.log()).sum(-1), rtol=1e-12, atol=1e-14)
    assert torch.equal(logits, before)


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_derivatives(logits: Tensor, targets: Tensor, temperature: float) -> None:
    """The derivative of z_target / t - log sum exp(z / t) as autograd takes it, whatever comes behind it."""
    logits.requires_grad_()
    scaled = logits / temperature
    want = scaled[torch.arange(NUM_ROWS), targets] - scaled.exp().sum(-1).log()
    (expected,) = torch.autograd.grad(want.square().sum(), logits)
    (got,) = torch.autograd.grad(logprobs_of(logits * 1, targets, temperature).square().sum(), logits)
    torch.testing.assert_close(got, expected, rtol=1e-12, atol=1e-13)


def test_of_bfloat16_logits(logits: Tensor, targets: Tensor) -> None:
    """Read in float32; the gradient is rounded once, to the logits' own dtype."""
    rounded = logits.bfloat16().requires_grad_()
    read = logprobs_of(rounded * 1, targets, 0.7)
    assert read.dtype == torch.float32
    read.square().sum().backward()
    whole = logits.bfloat16().float().requires_grad_()
    want = torch.log_softmax(whole / 0.7, -1)[torch.arange(NUM_ROWS), targets]
    torch.testing.assert_close(read, want)
    want.square().sum().backward()
    assert rounded.grad is not None and whole.grad is not None and rounded.grad.dtype == torch.bfloat16
    torch.testing.assert_close(rounded.grad, whole.grad.bfloat16(), rtol=2**-7, atol=1e-6)


def test_the_gradient_takes_the_logits_place(logits: Tensor, targets: Tensor) -> None:
    """So it can be taken once, and a node that had kept the logits for its own derivative says that they are gone."""
    leaf = logits.requires_grad_()
    made = leaf * 1
    read = logprobs_of(made, targets, 0.7).sum()
    seen: list[Tensor] = []
    made.register_hook(seen.append)
    read.backward(retain_graph=True)
    assert seen[0].data_ptr() == made.data_ptr() and leaf.grad is not None and leaf.grad.any()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        read.backward()
    kept = leaf.exp()  # whose derivative is itself
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        logprobs_of(kept, targets, 0.7).sum().backward()


def test_of_nothing() -> None:
    nothing = torch.empty(0, VOCABULARY, requires_grad=True)
    read = logprobs_of(nothing * 1, torch.empty(0, dtype=torch.long), 1.0)
    read.sum().backward()
    assert read.shape == (0,) and nothing.grad is not None and entropy_of(nothing, 1.0).shape == (0,)


def test_the_likeliest_token_is_that_of_the_largest_logit_and_one_of_two_alike(logits: Tensor) -> None:
    largest = logits.argmax(-1)
    assert is_likeliest(logits, largest).all() and not is_likeliest(logits, (largest + 1) % VOCABULARY).any()
    alike = torch.zeros(1, VOCABULARY, dtype=torch.bfloat16)
    assert sum(is_likeliest(alike, torch.tensor([token])).item() for token in range(VOCABULARY)) == 1
