"""The alarm on made-up series: raised where the learned reward rises and gold falls, and by nothing less."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from alignment.config.alarm import ALARMS, AlarmConfig
from alignment.config.checkpoint import CheckpointConfig
from alignment.config.errors import ConfigError
from alignment.training.alarm import Alarm
from alignment.training.checkpoint import Checkpoints

NAME = "alarm/over_optimisation"


def series(reward: np.ndarray, gold: np.ndarray) -> list[dict[str, float]]:
    return [{"reward": float(r), "gold": float(g)} for r, g in zip(reward, gold, strict=True)]


def watched(alarm: Alarm, rows: list[dict[str, float]], first: int = 1) -> list[dict[str, float]]:
    """The metrics of each iteration, as numbers."""
    found = [alarm.watch(step, row) for step, row in enumerate(rows, start=first)]
    return [{name: mean.mean().item() for name, mean in each.items()} for each in found]


def raised_at(rows: list[dict[str, float]], **config: Any) -> list[int]:
    found = watched(Alarm(AlarmConfig(**config)), rows)
    return [step for step, row in enumerate(found, start=1) if row.get(NAME) == 1]


def test_raised_by_the_first_window_that_has_held_for_the_patience() -> None:
    rising = np.arange(30.0)
    assert raised_at(series(rising, -rising), window=10, patience=3) == list(range(12, 31))  # windows end at 10, 11, 12
    assert raised_at(series(rising, -rising), window=10, patience=1) == list(range(10, 31))


@pytest.mark.parametrize(
    ("reward", "gold"),
    [(1, 1), (-1, -1), (-1, 1), (0, -1), (1, 0)],
    ids=["both rise", "both fall", "gold rises", "gold falls", "reward rises"],
)
def test_nothing_else_raises_it(reward: int, gold: int) -> None:
    steps = np.arange(60.0)
    assert raised_at(series(reward * steps, gold * steps)) == []


def test_a_hump_of_gold_is_an_alarm_after_its_top() -> None:
    """Gold rises to its top at step 40 and falls, under noise; the window of 20 is past the top soon after 50."""
    rng = np.random.default_rng(0)
    steps = np.arange(1, 101)
    gold = 0.8 - 0.0002 * (steps - 40.0) ** 2 + rng.normal(0, 0.01, 100)
    reward = np.sqrt(steps) + rng.normal(0, 0.05, 100)
    raised = raised_at(series(reward, gold))
    assert 50 < raised[0] < 70
    assert raised == list(range(raised[0], 101))


def test_noise_does_not_raise_it() -> None:
    """A reward that surely rises beside a gold score that only varies: 40 runs of 250 iterations, none fooled."""
    fooled = 0
    for seed in range(40):
        rng = np.random.default_rng(seed)
        fooled += bool(raised_at(series(np.arange(250.0), rng.normal(0, 1, 250))))
    assert fooled == 0


def test_before_the_window_is_full_nothing_is_judged() -> None:
    steps = np.arange(20.0)
    assert [NAME in row for row in watched(Alarm(AlarmConfig()), series(steps, -steps))] == [False] * 19 + [True]
    assert watched(Alarm(AlarmConfig(window=5, patience=1)), [{"reward": 1.0}] * 9) == [{}] * 9


def test_the_first_time_is_said_once(capsys: pytest.CaptureFixture[str]) -> None:
    steps = np.arange(12.0)
    watched(Alarm(AlarmConfig(window=5, patience=2)), series(steps, -2 * steps))
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith("ALARM over_optimisation at step 6: the learned reward rises while the gold score falls (")
    assert "reward +1 ± 0, gold -2 ± 0 a step" in line


@pytest.mark.parametrize(
    ("name", "key", "limit", "metric", "good", "bad"),
    [
        ("kl", "max_kl", 10.0, "kl", 10.0, 10.5),
        ("entropy", "min_entropy", 0.5, "entropy", 0.5, 0.4),
        ("unfinished", "max_unfinished", 0.25, "finished", 0.75, 0.7),
        ("distinct_2", "min_distinct_2", 0.25, "distinct_2", 0.25, 0.2),
        ("mismatch", "max_mismatch", 0.5, "generation/mismatch", 0.5, 0.6),
    ],
)
def test_a_limit_is_for_the_mean_of_the_window(
    name: str, key: str, limit: float, metric: str, good: float, bad: float
) -> None:
    config = {"window": 5, "patience": 5}
    rows = [{metric: good}] * 7 + [{metric: bad}] + [{metric: good}] * 5
    found = [row.get(f"alarm/{name}") for row in watched(Alarm(AlarmConfig(**config, **{key: limit})), rows)]
    assert found == [None] * 4 + [0.0] * 3 + [1.0] * 5 + [0.0]  # in the windows that hold the bad one
    assert all(row == {} for row in watched(Alarm(AlarmConfig(**config, **{key: None})), rows))


def test_every_alarm_has_its_words() -> None:
    row = {"reward": 1.0, "gold": 1.0, "kl": 1.0, "entropy": 1.0, "finished": 1.0, "distinct_2": 1.0}
    row["generation/mismatch"] = 1.0
    config = AlarmConfig(window=5, max_kl=1, min_entropy=1, max_unfinished=0.5, min_distinct_2=0.5)
    assert [name.removeprefix("alarm/") for name in watched(Alarm(config), [row] * 5)[-1]] == list(ALARMS)


def hump(num_steps: int) -> list[dict[str, float]]:
    steps = np.arange(1, num_steps + 1)
    rng = np.random.default_rng(1)
    noise = rng.normal(0, 0.01, num_steps)
    return [row | {"kl": 0.2 * step} for step, row in enumerate(series(steps / 9, 1 - abs(steps - 15) / 40 + noise))]


@pytest.mark.parametrize("cut", [0, 3, 14, 22, 29, 39])
def test_resumed_it_gives_what_it_would_have_given(cut: int, tmp_path: Path) -> None:
    config, rows = AlarmConfig(window=8, patience=3, max_kl=5.0), hump(40)
    whole = Alarm(config)
    expected = watched(whole, rows)
    assert {row.get(NAME) for row in expected} == {None, 0.0, 1.0}
    first = Alarm(config)
    before = watched(first, rows[:cut])
    Checkpoints(tmp_path, CheckpointConfig(), {"alarm": first}).save(cut)
    second = Alarm(config)
    assert Checkpoints(tmp_path, CheckpointConfig(), {"alarm": second}).restore() == cut
    assert before + watched(second, rows[cut:], first=cut + 1) == expected
    assert second.state() == whole.state()
    assert second.summary(tmp_path / "none") == whole.summary(tmp_path / "none")


def test_its_state_is_plain_and_its_own() -> None:
    alarm = Alarm(AlarmConfig(window=5, patience=2))
    watched(alarm, hump(30))
    state = alarm.state()
    assert json.loads(json.dumps(state)) == state
    copied = json.dumps(state)
    watched(alarm, hump(30), first=31)
    assert json.dumps(state) == copied


def test_the_summary_says_since_when_and_where_to_go_back_to(tmp_path: Path) -> None:
    """Gold is highest over steps 13 to 17; the checkpoints kept are of steps 10, 15 and 20, and one torn at 16."""
    config = AlarmConfig(window=8, patience=5)
    rows = series(np.arange(1.0, 31), -abs(np.arange(1.0, 31) - 15))
    alarm = Alarm(config)
    steps = [step for step, row in enumerate(watched(alarm, rows), start=1) if row.get(NAME) == 1]
    none, where = alarm.summary(tmp_path)
    assert none == (
        "ALARM over_optimisation: the learned reward rises while the gold score falls; "
        f"since step {steps[0]}, at {len(steps)} of 23 judged steps"
    )
    assert where.startswith("the gold score was highest over steps 13 to 17 (mean -1.200): no checkpoint")
    for name in ("step-00000010", "step-00000015", "step-00000020", "step-00000016.partial"):
        (tmp_path / name).mkdir()
    assert alarm.summary(tmp_path)[1].endswith(f": go back to {tmp_path / 'step-00000015'}")


def test_a_run_without_alarms_says_what_was_watched(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    calm = Alarm(AlarmConfig(window=5, max_kl=1e6))
    calm.say_summary(tmp_path)
    watched(calm, hump(3))
    calm.say_summary(tmp_path)
    watched(calm, hump(12), first=4)
    calm.say_summary(tmp_path)
    short = "alarms: none could be judged (fewer than alarm.window=5 steps)"
    assert capsys.readouterr().out.splitlines() == [short, short, "alarms: none of over_optimisation, kl"]
    blind = Alarm(AlarmConfig(window=5))
    watched(blind, [{"reward": 1.0}] * 9)
    (line,) = blind.summary(tmp_path)
    assert line == "alarms: none could be judged (neither gold nor gold_model is set, and no limit of alarm.*)"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"window": 4}, "alarm.window must be >= 5, got 4"),
        ({"sigmas": 0.0}, "alarm.sigmas must be > 0, got 0.0"),
        ({"patience": 0}, r"alarm.patience must be in \[1, alarm.window\], got 0"),
        ({"patience": 21}, r"alarm.patience must be in \[1, alarm.window\], got 21"),
        ({"max_kl": 0.0}, "alarm.max_kl must be > 0, or null for none, got 0.0"),
        ({"min_entropy": -1.0}, "alarm.min_entropy must be > 0"),
        ({"max_unfinished": 1.0}, r"alarm.max_unfinished must be in \(0, 1\)"),
        ({"min_distinct_2": 0.0}, r"alarm.min_distinct_2 must be in \(0, 1\)"),
    ],
)
def test_bad_settings(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        AlarmConfig(**settings)


def test_a_row_of_several_iterations_holds_their_share() -> None:
    steps = np.arange(8.0)
    alarm = Alarm(AlarmConfig(window=5, patience=2))
    found = [alarm.watch(step, row) for step, row in enumerate(series(steps, -steps), start=1)]
    first, *more = [row[NAME] for row in found if NAME in row]  # of steps 5 to 8, raised from 6 on
    total = sum(more, start=first)
    assert torch.equal(total.count, torch.tensor(4)) and total.mean().item() == 0.75
