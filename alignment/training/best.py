"""Which weights a run leaves: the last ones, the best of its evaluations, or the best within `kl.limit`."""

import math
from pathlib import Path
from typing import Any, Protocol

from alignment.config.best import BestConfig, Mode
from alignment.config.errors import UserError
from alignment.terminal import say
from alignment.training.kept import Kept, Write, write_whole
from alignment.training.metrics import Metrics


class Keeper(Protocol):
    """Part of a checkpoint, for a run that goes on has the best model of the steps before."""

    reason: str | None
    """Why the run ends before its last step; None: it does not."""

    def before_update(self, step: int, measured: Metrics, write: Write) -> str | None:
        """`measured`: of the weights as step `step` finds them. Returns the reason."""
        ...

    def after_update(self, step: int, evaluated: dict[str, float], write: Write) -> None:
        """The weights have changed; `evaluated` is theirs, where they have been evaluated."""
        ...

    def leave(self, model: Path, write: Write) -> None:
        """The run is at its end: fill the folder of its model."""
        ...

    def state(self) -> dict[str, Any]: ...

    def load_state(self, state: dict[str, Any]) -> None: ...


def keeper_of(best: Path, config: BestConfig, kl_limit: float | None) -> Keeper:
    if kl_limit is not None:
        return BestWithinLimit(best, kl_limit)
    return LastModel() if config.metric is None else BestByMetric(best, config)


class LastModel:
    """No weights are better than those of the last step."""

    reason: str | None = None

    def before_update(self, step: int, measured: Metrics, write: Write) -> str | None:
        return None

    def after_update(self, step: int, evaluated: dict[str, float], write: Write) -> None:
        return

    def leave(self, model: Path, write: Write) -> None:
        write_whole(model, write)

    def state(self) -> dict[str, Any]:
        return {}

    def load_state(self, state: dict[str, Any]) -> None:
        return


class BestByMetric:
    """`best/` holds the weights whose evaluation was the best by `train.best.metric`, and so does `model/` at the end.

    The weights before the first step are among them. With `train.best.patience` the run ends once as many evaluations
    in a row were no better.
    """

    def __init__(self, folder: Path, config: BestConfig) -> None:
        assert config.metric is not None
        self.kept, self.metric, self.config = Kept(folder), config.metric, config
        self.reason: str | None = None
        self.step = 0
        self.score = -math.inf if config.mode is Mode.max else math.inf
        self.misses = 0  # evaluations since the best one

    def before_update(self, step: int, measured: Metrics, write: Write) -> str | None:
        return None

    def after_update(self, step: int, evaluated: dict[str, float], write: Write) -> None:
        """Raises:
        UserError: the evaluation has no such metric; names those it has. Known before the first step.
        """
        if not evaluated and step > 0:
            return
        if self.metric not in evaluated:
            raise UserError(f"train.best.metric must be one of {', '.join(sorted(evaluated))}, got {self.metric!r}")
        score = evaluated[self.metric]
        if score > self.score if self.config.mode is Mode.max else score < self.score:
            self.step, self.score, self.misses = step, score, 0
            self.kept.replace(step, write)
            return
        self.misses += 1
        if self.config.patience is not None and self.misses >= self.config.patience:
            self.reason = f"stopped at step {step}: {self.misses} evaluations without a better {self.metric}"
            say(self.reason)

    def leave(self, model: Path, write: Write) -> None:
        if math.isinf(self.score):  # its weights are lost, and there was no evaluation since
            say(f"the model is that of the last step, for the weights of the best by {self.metric} are lost")
            write_whole(model, write)
            return
        say(f"the model is that of step {self.step}, the best by {self.metric} ({self.score:.4g})")
        self.kept.leave(model)

    def state(self) -> dict[str, Any]:
        self.kept.saved = self.step
        found = {"step": self.step, "score": self.score, "misses": self.misses, "reason": self.reason}
        return {**found, **self._measure()}

    def load_state(self, state: dict[str, Any]) -> None:
        """One by another metric, or by none, says nothing of this one: the best is that of the steps to come then. A
        run that goes on with more patience is not at its end any more."""
        measure = self._measure()
        if "misses" not in state or any(state.get(name, value) != value for name, value in measure.items()):
            self.kept.forget()
            return
        if math.isinf(state["score"]):  # saved before there was one
            self.kept.forget()
            return
        if not self.kept.restore(state["step"]):
            say_lost(state["step"], f"the best by {self.metric}")
            return
        self.step, self.score, self.misses = state["step"], state["score"], state["misses"]
        is_over = self.config.patience is not None and self.misses >= self.config.patience
        self.reason = state["reason"] if is_over else None

    def _measure(self) -> dict[str, Any]:
        """What a score is compared by."""
        return {"metric": self.metric, "mode": None if self.config.mode is None else self.config.mode.value}


class BestWithinLimit:
    """`best/` holds the weights of the best step within `kl.limit`; a step beyond it ends the run with them.

    A step measures its weights before it updates them: reward and KL of the replies that it learns from, and the
    held-out reward where the step before ended with an evaluation. Held-out rewards are compared with each other only,
    and any of them is preferred to a reward in training, whose prompts differ from step to step.
    """

    def __init__(self, folder: Path, limit: float) -> None:
        self.kept = Kept(folder)
        self.limit = limit
        self.reason: str | None = None
        self.step = 0
        """The step whose weights are kept; 0: none yet."""
        self.score: tuple[bool, float] = (False, -math.inf)  # held out?, reward
        self.held_out: float | None = None
        """Of the weights as they are now."""

    def before_update(self, step: int, measured: Metrics, write: Write) -> str | None:
        now = Metrics({name: measured[name] for name in ("kl", "reward")}).means()
        if now["kl"] > self.limit and self.step == 0:  # where the run goes on with another limit
            raise UserError(
                f"kl.limit must be above the KL of the model that goes on ({now['kl']:.4g}), got {self.limit:g}"
            )
        if now["kl"] > self.limit:
            kind = "held-out" if self.score[0] else "training"
            self.reason = (
                f"stopped at step {step}: KL {now['kl']:.4g} nats a reply is above kl.limit = {self.limit:g}; "
                f"the model is that of step {self.step} ({kind} reward {self.score[1]:.4g})"
            )
            say(self.reason)
            return self.reason
        score = (False, now["reward"]) if self.held_out is None else (True, self.held_out)
        if score > self.score:
            self.step, self.score = step, score
            self.kept.replace(step - 1, write)
        return None

    def after_update(self, step: int, evaluated: dict[str, float], write: Write) -> None:
        self.held_out = evaluated.get("eval/reward")

    def leave(self, model: Path, write: Write) -> None:
        if self.reason is None:
            write_whole(model, write)
        else:
            self.kept.leave(model)

    def state(self) -> dict[str, Any]:
        self.kept.saved = self.step - 1
        return {"step": self.step, "score": list(self.score), "held_out": self.held_out, "limit": self.limit}

    def load_state(self, state: dict[str, Any]) -> None:
        """The best within a higher limit may be beyond this one, and where there was none nothing was kept: it is that
        of the steps to come then."""
        if "held_out" not in state or state.get("limit", self.limit) > self.limit:
            self.kept.forget()
            return
        self.held_out = state["held_out"]
        if state["step"] == 0:
            self.kept.forget()
            return
        if not self.kept.restore(state["step"] - 1):
            say_lost(state["step"], "the best within kl.limit")
            return
        is_held_out, reward = state["score"]
        self.step, self.score = state["step"], (is_held_out, reward)


def say_lost(step: int, what: str) -> None:
    say(
        f"WARNING: the weights of step {step}, {what} so far, made room for later ones: it is that of the steps to come"
    )
