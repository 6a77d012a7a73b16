"""The moving average of the weights, against its closed form in float64."""

from collections.abc import Callable

import torch
from torch import Tensor

from alignment.distributed.engine import TorchEngine
from alignment.rl.moving_average import MovingAverage

DECAY, STEPS = 0.9, 6


def weights(engine: TorchEngine) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in engine.model.named_parameters()}


def shake(engine: TorchEngine, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in engine.model.parameters():
            p.add_(torch.randn(p.shape, generator=generator, dtype=p.dtype))


def test_the_average_after_n_updates(descent: Callable[..., TorchEngine]) -> None:
    """m_n = d^n w_0 + (1 - d) sum_k d^(n - k) w_k: no update is lost, and the start counts as the average so far."""
    engine = descent()
    average = MovingAverage(engine.model, DECAY)
    seen = [weights(engine)]
    for step in range(1, STEPS + 1):
        shake(engine, step)
        average.update()
        seen.append(weights(engine))
    shares = [DECAY**STEPS, *((1 - DECAY) * DECAY ** (STEPS - k) for k in range(1, STEPS + 1))]
    assert abs(sum(shares) - 1) < 1e-12
    for name, found in average.weights.items():
        want = sum(share * w[name] for share, w in zip(shares, seen, strict=True))
        torch.testing.assert_close(found, want, rtol=1e-12, atol=1e-12)


def test_weights_that_stay_are_their_own_average_to_the_bit(descent: Callable[..., TorchEngine]) -> None:
    engine = descent()
    average = MovingAverage(engine.model, 0.7)
    for _ in range(5):
        average.update()
    assert all(torch.equal(average.weights[name], w) for name, w in weights(engine).items())


def test_it_is_lent_to_the_model_and_taken_back(descent: Callable[..., TorchEngine]) -> None:
    engine = descent()
    average = MovingAverage(engine.model, DECAY)
    shake(engine, 1)
    average.update()
    own = weights(engine)
    with average.in_place():
        assert all(torch.equal(w, average.weights[name]) for name, w in weights(engine).items())
        assert not torch.equal(weights(engine)["hf.lm_head.weight"], own["hf.lm_head.weight"])
    assert all(torch.equal(w, own[name]) for name, w in weights(engine).items())


def test_what_is_frozen_is_not_averaged(descent: Callable[..., TorchEngine]) -> None:
    engine = descent()
    engine.model.hf.base_model.requires_grad_(False)
    assert set(MovingAverage(engine.model, DECAY).weights) == {"hf.lm_head.weight"}


def test_a_restored_average_goes_on_as_the_one_that_was_saved(descent: Callable[..., TorchEngine]) -> None:
    engine = descent()
    average = MovingAverage(engine.model, DECAY)
    shake(engine, 1)
    average.update()
    restored = MovingAverage(engine.model, DECAY)
    restored.load_state({"weights": {name: w.clone() for name, w in average.state()["weights"].items()}})
    shake(engine, 2)
    for each in (average, restored):
        each.update()
    assert all(torch.equal(restored.weights[name], w) for name, w in average.weights.items())
