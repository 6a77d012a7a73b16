"""Which weights a run leaves: the best within the KL limit, the best of its evaluations; the end for want of better."""

from pathlib import Path
from typing import Any

import pytest
import torch

from alignment.config.best import BestConfig, Mode
from alignment.config.errors import ConfigError, UserError
from alignment.losses import Mean
from alignment.training.best import BestByMetric, BestWithinLimit, Keeper, LastModel, keeper_of
from alignment.training.kept import Write
from alignment.training.metrics import Metrics

LOSS = "eval/loss"


def of(kl: float, reward: float) -> Metrics:
    return {"kl": Mean.of(torch.tensor([kl])), "reward": Mean.of(torch.tensor([reward]))}


def named(step: int) -> Write:
    return lambda new: (new / "weights").write_text(str(step)) and None


def offer(best: Keeper, step: int, reward: float, held_out: float | None = None) -> None:
    """One iteration, as the loop tells it: the evaluation that ended the one before, then this one's reward."""
    best.after_update(step - 1, {} if held_out is None else {"eval/reward": held_out}, named(step - 1))
    assert best.before_update(step, of(1.0, reward), named(step)) is None


def kept(folder: Path) -> str:
    return (folder / "weights").read_text()


def test_the_best_by_training_reward_is_kept(tmp_path: Path) -> None:
    best = BestWithinLimit(tmp_path / "best", 5.0)
    for step, reward in enumerate([-2.0, 1.0, 0.5, 1.0], start=1):
        offer(best, step, reward)
    assert (best.step, kept(tmp_path / "best")) == (2, "2")


def test_a_held_out_reward_goes_before_any_in_training(tmp_path: Path) -> None:
    best = BestWithinLimit(tmp_path / "best", 5.0)
    offer(best, 1, 9.0)
    offer(best, 2, 0.0, held_out=-3.0)
    assert kept(tmp_path / "best") == "2"
    offer(best, 3, 99.0)
    offer(best, 4, 0.0, held_out=-4.0)
    assert kept(tmp_path / "best") == "2"
    offer(best, 5, 0.0, held_out=-1.0)
    assert kept(tmp_path / "best") == "5"


def test_without_a_limit_or_a_metric_the_last_model_stays_and_nothing_else_is_written(tmp_path: Path) -> None:
    best = keeper_of(tmp_path / "best", BestConfig(), None)
    assert isinstance(best, LastModel)
    offer(best, 1, 1.0)
    assert best.before_update(2, of(1e9, 0.0), named(2)) is None
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "model").mkdir()
    best.leave(tmp_path / "model", named(2))
    assert kept(tmp_path / "model") == "2"


def test_the_limit_itself_is_allowed(tmp_path: Path) -> None:
    best = keeper_of(tmp_path / "best", BestConfig(), 5.0)
    stopped = [best.before_update(step, of(kl, 0.0), named(step)) for step, kl in ((1, -1.0), (2, 5.0), (3, 5.001))]
    assert [reason is not None for reason in stopped] == [False, False, True]


def test_the_stop_says_why_and_leaves_the_best_as_the_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    best = BestWithinLimit(tmp_path / "best", 5.0)
    offer(best, 1, 0.25)
    reason = best.before_update(7, of(5.125, 9.0), named(7))
    best.leave(tmp_path / "model", named(7))
    assert kept(tmp_path / "model") == kept(tmp_path / "best") == "1"
    assert reason is not None and "step 7" in reason and "5.125" in reason
    assert "kl.limit = 5" in reason and "step 1" in reason
    assert " ".join(capsys.readouterr().out.split()) == reason == best.reason


def test_a_restored_run_knows_its_best(tmp_path: Path) -> None:
    best = BestWithinLimit(tmp_path / "best", 5.0)
    offer(best, 1, 0.0, held_out=2.0)
    best.after_update(1, {"eval/reward": 3.0}, named(1))  # before the checkpoint; step 2 will be told with it
    again = BestWithinLimit(tmp_path / "best", 5.0)
    again.load_state(best.state())
    again.before_update(2, of(1.0, -1.0), named(2))
    assert (again.step, again.score, kept(tmp_path / "best")) == (2, (True, 3.0), "2")


def test_the_best_by_a_metric_is_the_model_and_patience_ends_the_run(tmp_path: Path) -> None:
    """Of two runs, one goes on from what the other saved after step 4."""
    config = BestConfig(metric=LOSS, patience=2)
    first, second = BestByMetric(tmp_path / "best", config), BestByMetric(tmp_path / "best", config)
    losses = {0: 3.0, 2: 2.0, 4: 2.0, 6: 1.5, 8: 1.5, 10: 9.0}
    for step in range(11):
        best = first if step <= 4 else second
        if step == 5:
            second.load_state(first.state())
        assert best.reason is None
        best.after_update(step, {LOSS: losses[step], "eval/other": 0.0} if step in losses else {}, named(step))
    assert (second.step, second.score, kept(tmp_path / "best")) == (6, 1.5, "6")
    assert second.reason == f"stopped at step 10: 2 evaluations without a better {LOSS}"
    second.leave(tmp_path / "model", named(10))
    assert kept(tmp_path / "model") == "6"


def test_larger_may_be_better(tmp_path: Path) -> None:
    best = BestByMetric(tmp_path / "best", BestConfig(metric="eval/reward", mode=Mode.max))
    for step, reward in enumerate([0.5, 0.75, 0.25]):
        best.after_update(step, {"eval/reward": reward}, named(step))
    assert kept(tmp_path / "best") == "1" and best.reason is None


@pytest.mark.parametrize("found", [{"eval/kl": 1.0, "eval/reward": 2.0}, {}])
def test_a_metric_that_there_is_not_is_told_before_the_first_step(tmp_path: Path, found: dict[str, Any]) -> None:
    best = BestByMetric(tmp_path / "best", BestConfig(metric=LOSS))
    with pytest.raises(UserError, match=f"^train.best.metric must be one of .*{', '.join(found)}.*, got 'eval/loss'$"):
        best.after_update(0, found, named(0))


def test_a_metric_that_is_no_loss_says_which_values_are_better():
    """Taken for one, the best accuracy would be the lowest."""
    rule = "train.best.mode must be min or max for eval/rewards/accuracy, which is no loss, got null"
    with pytest.raises(ConfigError, match=f"^{rule}$"):
        BestConfig(metric="eval/rewards/accuracy")
    assert BestConfig(metric="eval/rewards/accuracy", mode=Mode.max).mode is Mode.max
    assert BestConfig(metric="eval/policy/loss").mode is None
    with pytest.raises(ConfigError, match=r"^train\.best\.mode needs train\.best\.metric, got"):
        BestConfig(mode=Mode.min)


def keeper(folder: Path, kind: str, patience: int | None = None) -> Keeper:
    """By the loss, or within a limit of the KL; as a run has it when it begins, also anew."""
    config = BestConfig(metric=LOSS, patience=patience) if kind == "metric" else BestConfig()
    return keeper_of(folder / "best", config, None if kind == "metric" else 5.0)


def see(best: Keeper, kind: str, step: int, score: float) -> None:
    """A step whose weights have that score."""
    if kind == "metric":
        best.after_update(step, {LOSS: -score}, named(step))
    else:
        assert best.before_update(step, of(1.0, score), named(step)) is None


@pytest.mark.parametrize("kind", ["metric", "limit"])
def test_a_run_that_goes_on_has_the_best_weights_that_its_checkpoint_knows(tmp_path: Path, kind: str) -> None:
    """And not better ones of later steps, to which it may not come again with other settings."""
    best = keeper(tmp_path, kind)
    see(best, kind, 1, 1.0)
    see(best, kind, 5, 2.0)
    state = best.state()  # a checkpoint, behind which two are better, and the run is killed
    see(best, kind, 12, 3.0)
    see(best, kind, 14, 4.0)
    assert kept(tmp_path / "best") == "14"
    again = keeper(tmp_path, kind)
    again.load_state(state)
    assert kept(tmp_path / "best") == "5"
    see(again, kind, 12, 1.5)
    if kind == "limit":
        assert again.before_update(13, of(9.0, 0.0), named(13)) is not None
    again.leave(tmp_path / "model", named(20))
    assert kept(tmp_path / "model") == "5"
    assert not (tmp_path / "best_earlier").exists()


@pytest.mark.parametrize("kind", ["metric", "limit"])
def test_where_the_best_that_an_older_checkpoint_knows_is_lost_no_later_one_stays(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], kind: str
) -> None:
    """As where the newest checkpoint is damaged: the run goes on from the one before, with other settings, in which the
    weights of later steps never come about."""
    best = keeper(tmp_path, kind, patience=2)
    see(best, kind, 10, 1.0)
    older = best.state()
    see(best, kind, 20, 2.0)
    best.state()  # the checkpoint that will be damaged
    see(best, kind, 30, 3.0)
    assert (kept(tmp_path / "best"), kept(tmp_path / "best_earlier")) == ("30", "20")
    again = keeper(tmp_path, kind, patience=2)
    again.load_state(older)
    assert not (tmp_path / "best").exists() and not (tmp_path / "best_earlier").exists()
    assert "WARNING: the weights of step 10, the best " in " ".join(capsys.readouterr().out.split())
    see(again, kind, 12, 0.5)  # no better than the one that is lost, and the best that there is
    see(again, kind, 14, 0.25)
    assert kept(tmp_path / "best") == "12" and again.reason is None
    if kind == "limit":
        assert again.before_update(16, of(9.0, 0.0), named(16)) is not None
    again.leave(tmp_path / "model", named(20))
    assert kept(tmp_path / "model") == "12"


@pytest.mark.parametrize("kind", ["metric", "limit"])
def test_a_run_that_goes_on_from_before_its_first_best_has_none_of_later_steps(tmp_path: Path, kind: str) -> None:
    """Nor one by another measure, whose checkpoint says nothing of this one."""
    best = keeper(tmp_path, kind)
    before = best.state()
    see(best, kind, 5, 1.0)
    best.state()  # the checkpoint that will be damaged
    see(best, kind, 8, 2.0)
    assert (kept(tmp_path / "best"), kept(tmp_path / "best_earlier")) == ("8", "5")
    for state in (before, LastModel().state()):
        (tmp_path / "best").mkdir(exist_ok=True)
        again = keeper(tmp_path, kind)
        again.load_state(state)
        assert list(tmp_path.iterdir()) == []
    see(again, kind, 6, 0.5)
    assert kept(tmp_path / "best") == "6"


def test_a_best_folder_that_is_gone_leaves_the_last_model(tmp_path: Path) -> None:
    best = BestByMetric(tmp_path / "best", BestConfig(metric=LOSS))
    best.after_update(4, {LOSS: 1.0}, named(4))
    (tmp_path / "best").rename(tmp_path / "taken")
    again = BestByMetric(tmp_path / "best", BestConfig(metric=LOSS))
    again.load_state(best.state())
    again.leave(tmp_path / "model", named(9))
    assert kept(tmp_path / "model") == "9"
