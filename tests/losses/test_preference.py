"""The metrics of all pair losses."""

import pytest
import torch

from alignment.losses import preference_metrics


def test_values_by_hand():
    # r_c - r_r = 1, -3, 0.  Two of three are not wins: a loss and a tie.
    metrics = preference_metrics(torch.tensor([2.0, -1.0, 5.0]), torch.tensor([1.0, 2.0, 5.0]))
    means = {name: metric.mean().item() for name, metric in metrics.items()}
    assert means == {
        "rewards/chosen": pytest.approx(6 / 3),
        "rewards/rejected": pytest.approx(8 / 3),
        "rewards/margin": pytest.approx(-2 / 3),
        "rewards/accuracy": pytest.approx(1 / 3),
    }
    assert all(metric.count.item() == 3 for metric in metrics.values())


def test_metrics_carry_no_graph():
    rewards = torch.ones(2, requires_grad=True)
    assert not any(metric.total.requires_grad for metric in preference_metrics(rewards, 2 * rewards).values())
