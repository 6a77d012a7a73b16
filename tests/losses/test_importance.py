"""Truncated importance weights against their equation, in float64."""

import pytest
import torch

from alignment.losses import truncated_importance


def test_the_weights_are_ratios_up_to_the_clip() -> None:
    old = torch.tensor([-1.0, -2.0, -0.5, -30.0, -1.0], dtype=torch.float64)
    drawn = torch.tensor([-1.0, -2.5, -3.0, -1.0, -90.0], dtype=torch.float64)
    found = truncated_importance(old, drawn, 2.0)
    wanted = torch.tensor([0.0, 0.5, 2.5, -29.0, 89.0], dtype=torch.float64).exp().clamp(max=2.0)
    torch.testing.assert_close(found, wanted, rtol=1e-12, atol=0)
    assert found.tolist()[:2] == [1.0, pytest.approx(1.6487212707001282)]
    assert found.tolist()[2] == found.tolist()[4] == 2.0
    assert truncated_importance(drawn, old, 2.0).tolist()[1] == pytest.approx(0.6065306597126334)  # the sign counts


def test_what_is_none_is_refused() -> None:
    old = torch.zeros(3)
    for clip in (0.0, -1.0, float("inf"), float("nan")):
        with pytest.raises(ValueError, match="clip must be > 0 and finite"):
            truncated_importance(old, old, clip)
    with pytest.raises(ValueError, match="drawn_logprobs"):
        truncated_importance(old, torch.zeros(2), 1.0)
