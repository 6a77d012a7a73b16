"""The alarm: says when a run's numbers turn bad, above all when the policy exploits its reward model."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from alignment.config.alarm import ALARMS, AlarmConfig
from alignment.distributed.collectives import is_main
from alignment.losses import Mean
from alignment.runs.folder import step_folder, steps_in
from alignment.terminal import say
from alignment.training.trend import trend

MISMATCH = "generation/mismatch"


@dataclass(frozen=True, slots=True)
class Limit:
    """A metric's mean over the window against a limit: above it is bad, or (sign -1) below it."""

    metric: str
    limit: float | None
    sign: int

    def is_broken(self, mean: float) -> bool:
        return self.limit is not None and self.sign * (mean - self.limit) > 0


class Alarm:
    """Watches every iteration of a run. All that it knows is in `state()`: a resumed run gives the same alarms."""

    def __init__(self, config: AlarmConfig) -> None:
        self.config = config
        self.limits = {
            "kl": Limit("kl", config.max_kl, 1),
            "entropy": Limit("entropy", config.min_entropy, -1),
            "unfinished": Limit("unfinished", config.max_unfinished, 1),
            "distinct_2": Limit("distinct_2", config.min_distinct_2, -1),
            "mismatch": Limit(MISMATCH, config.max_mismatch, 1),
        }
        self.history: dict[str, list[float]] = {}  # by metric, the newest `window` values
        self.judged: dict[str, int] = {}  # by alarm, how many iterations it could be judged at
        self.raised: dict[str, list[int]] = {}  # by alarm, the iteration it was first raised at, and at how many it was
        self.in_a_row = 0  # iterations at which over-optimisation has held, up to the newest
        self.best: list[float] = []  # the last iteration of the stretch whose gold score is highest, and that mean

    def state(self) -> dict[str, Any]:
        return {
            "history": {metric: list(values) for metric, values in self.history.items()},
            "judged": dict(self.judged),
            "raised": {name: list(numbers) for name, numbers in self.raised.items()},
            "in_a_row": self.in_a_row,
            "best": list(self.best),
        }

    def load_state(self, state: dict[str, Any]) -> None:
        self.history = {metric: list(values) for metric, values in state["history"].items()}
        self.judged = dict(state["judged"])
        self.raised = {name: list(numbers) for name, numbers in state["raised"].items()}
        self.in_a_row = state["in_a_row"]
        self.best = list(state["best"])

    def watch(self, step: int, row: dict[str, float]) -> dict[str, Mean]:
        """`alarm/<name>` of one iteration, 0 or 1, from its means over all processes; the first 1 is said.

        As means, so that a row of several iterations holds the share of them; one that cannot be judged yet, or has
        nothing to look at, is left out.
        """
        self._remember(step, row)
        found: dict[str, Mean] = {}
        for name, verdict in {"over_optimisation": self._over_optimisation(), **self._broken_limits()}.items():
            if verdict is None:
                continue
            holds, numbers = verdict
            self.judged[name] = self.judged.get(name, 0) + 1
            if holds and name not in self.raised:
                self.raised[name] = [step, 0]
                _say(f"ALARM {name} at step {step}: {ALARMS[name]} ({numbers})")
            if holds:
                self.raised[name][1] += 1
            found[f"alarm/{name}"] = Mean.of(torch.tensor([float(holds)]))
        return found

    def say_summary(self, checkpoints: Path) -> None:
        """The last lines that a run prints; `checkpoints` is the folder that holds its own."""
        for line in self.summary(checkpoints):
            _say(line)

    def summary(self, checkpoints: Path) -> list[str]:
        """Which alarms were raised, since when, and where to go back to."""
        if not self.raised:
            watched = ", ".join(name for name in ALARMS if name in self.judged)
            return [f"alarms: none of {watched}" if watched else f"alarms: none could be judged ({self._why_not()})"]
        lines = [
            f"ALARM {name}: {ALARMS[name]}; since step {since}, at {times} of {self.judged[name]} judged steps"
            for name, (since, times) in self.raised.items()
        ]
        if self.best:
            last, mean = int(self.best[0]), self.best[1]
            stretch = f"steps {last - self.config.patience + 1} to {last} (mean {mean:.3f})"
            lines.append(f"the gold score was highest over {stretch}: {_checkpoint_until(last, checkpoints)}")
        return lines

    def _remember(self, step: int, row: dict[str, float]) -> None:
        seen = {**row, **({"unfinished": 1 - row["finished"]} if "finished" in row else {})}
        for metric in ("reward", "gold", *(limit.metric for limit in self.limits.values())):
            if metric in seen:
                self.history[metric] = [*self.history.get(metric, []), seen[metric]][-self.config.window :]
        newest = self.history.get("gold", [])[-self.config.patience :]
        if len(newest) == self.config.patience:
            mean = sum(newest) / len(newest)
            if not self.best or mean > self.best[1]:
                self.best = [step, mean]

    def _over_optimisation(self) -> tuple[bool, str] | None:
        """Both slopes are beyond noise, at `patience` iterations in a row.

        b_reward > sigmas se(b_reward)  and  b_gold < -sigmas se(b_gold)
        """
        if not (self._is_full("reward") and self._is_full("gold")):
            return None
        reward, gold = trend(self.history["reward"]), trend(self.history["gold"])
        holds = reward.rises(self.config.sigmas) and gold.falls(self.config.sigmas)
        self.in_a_row = self.in_a_row + 1 if holds else 0
        slopes = ", ".join(f"{n} {t.slope:+.2g} ± {t.error:.1g}" for n, t in (("reward", reward), ("gold", gold)))
        is_raised = self.in_a_row >= self.config.patience
        return is_raised, f"slopes over the last {self.config.window} steps: {slopes} a step"

    def _broken_limits(self) -> dict[str, tuple[bool, str] | None]:
        verdicts: dict[str, tuple[bool, str] | None] = {}
        for name, limit in self.limits.items():
            if limit.limit is not None and self._is_full(limit.metric):
                mean = sum(self.history[limit.metric]) / self.config.window
                words = f"mean over the last {self.config.window} steps {mean:.3g}, limit {limit.limit:g}"
                verdicts[name] = limit.is_broken(mean), words
        return verdicts

    def _is_full(self, metric: str) -> bool:
        return len(self.history.get(metric, [])) == self.config.window

    def _why_not(self) -> str:
        drawn = MISMATCH in self.history  # which has a limit from the start, and only where another engine draws
        asked = [limit for limit in self.limits.values() if limit.metric != MISMATCH or drawn]
        is_limited = any(limit.limit is not None for limit in asked)
        if "gold" in self.history or is_limited:
            return f"fewer than alarm.window={self.config.window} steps"
        return "neither gold nor gold_model is set, and no limit of alarm.*"


def _checkpoint_until(step: int, checkpoints: Path) -> str:
    """Words on the newest checkpoint of at most `step` steps."""
    kept = [saved for saved in steps_in(checkpoints) if saved <= step]
    if not kept:
        return "no checkpoint from there is kept (checkpoint.every, checkpoint.keep)"
    return f"go back to {step_folder(checkpoints, kept[-1])}"


def _say(text: str) -> None:
    if is_main():
        say(text)
