"""The weight of the KL over a run."""

from dataclasses import replace

import pytest

from alignment.config.ppo import KLConfig, KLControl
from alignment.rl.kl_control import KLController

ADAPTIVE = KLConfig(weight=0.3, controller=KLControl.adaptive, target=6.0, horizon=1000)


def test_a_fixed_weight_stays() -> None:
    controller = KLController(KLConfig(weight=0.3))
    controller.update(1000.0, 64)
    assert controller.weight == 0.3


def test_an_adaptive_weight_by_hand() -> None:
    controller = KLController(ADAPTIVE)
    controller.update(6.6, 100)  # e = 0.1, K = 0.1
    controller.update(0.0, 500)  # e = -0.2, K = 0.5
    assert controller.weight == pytest.approx(0.3 * 1.01 * 0.9, rel=1e-12)


@pytest.mark.parametrize("kl", [float("nan"), float("inf")])
def test_a_kl_that_is_no_number_changes_nothing(kl: float) -> None:
    """As of an iteration whose steps `train.on_nonfinite=skip` has left out."""
    controller = KLController(ADAPTIVE)
    controller.update(kl, 100)
    assert controller.weight == 0.3


def test_a_restored_controller_goes_on() -> None:
    whole, first, second = KLController(ADAPTIVE), KLController(ADAPTIVE), KLController(ADAPTIVE)
    for kl in (1.0, 9.0):
        whole.update(kl, 100)
        first.update(kl, 100)
    second.load_state(first.state())
    for kl in (6.3, 2.0):
        whole.update(kl, 100)
        second.update(kl, 100)
    assert second.weight == whole.weight != ADAPTIVE.weight


def test_a_run_that_goes_on_with_another_weight_adapts_from_that_one() -> None:
    """And where it is interrupted once more, from what that one had become by then."""
    first, second = KLController(ADAPTIVE), KLController(replace(ADAPTIVE, weight=0.1))
    first.update(6.6, 100)
    second.load_state(first.state())
    assert second.weight == 0.1
    second.update(6.6, 100)  # e = 0.1, K = 0.1
    third = KLController(replace(ADAPTIVE, weight=0.1))
    third.load_state(second.state())
    assert third.weight == second.weight == pytest.approx(0.1 * 1.01, rel=1e-12)


def test_another_target_or_horizon_keeps_what_the_weight_has_become() -> None:
    first, second = KLController(ADAPTIVE), KLController(replace(ADAPTIVE, target=3.0, horizon=500))
    first.update(6.6, 100)
    second.load_state(first.state())
    second.update(3.3, 100)  # e = 0.1, K = 0.2
    assert second.weight == pytest.approx(0.3 * 1.01 * 1.02, rel=1e-12)


def test_a_controller_that_does_not_adapt_any_more_has_the_weight_of_its_config() -> None:
    first, second = KLController(ADAPTIVE), KLController(KLConfig(weight=0.3))
    first.update(6.6, 100)
    second.load_state(first.state())
    assert second.weight == 0.3
