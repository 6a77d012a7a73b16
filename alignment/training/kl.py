"""The KL to the reference over a run: its weight, which may adapt, and the best model below its limit."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from alignment.config.ppo import KLConfig
from alignment.config.vocabulary import KLControl
from alignment.distributed.world import barrier, is_main
from alignment.losses import adaptive_kl_weight
from alignment.terminal import say
from alignment.training.manifest import sync_folder


class KLController:
    """beta: what `kl.weight` is in each iteration."""

    def __init__(self, config: KLConfig) -> None:
        self.config = config
        self.weight = config.weight

    def update(self, kl: float, count: int) -> None:
        """After an iteration of `count` replies, on all processes, whose KL was `kl` a reply (mean, nats)."""
        if self.config.controller is KLControl.adaptive:
            assert self.config.target is not None
            self.weight = adaptive_kl_weight(
                self.weight, kl, target=self.config.target, count=count, horizon=self.config.horizon
            )

    def state(self) -> dict[str, Any]:
        return {"weight": self.weight}

    def load_state(self, state: dict[str, Any]) -> None:
        self.weight = float(state["weight"])


class BestModel:
    """The folder `best/` of a run with `kl.limit`: the weights of the best iteration within it.

    An iteration measures its weights before it learns: their reward and KL on the replies to learn from, and, where the
    iteration before ended with an evaluation, their reward on held-out prompts. A held-out reward is compared with
    held-out ones only, and any of them goes before a reward in training, which is drawn from other prompts each time.
    """

    def __init__(self, folder: Path, limit: float | None) -> None:
        self.folder = folder
        self.limit = limit
        self.step = 0
        """The iteration whose weights are kept; 0: none yet."""
        self.score: tuple[bool, float] = (False, -float("inf"))  # held out?, reward
        self.held_out: float | None = None
        """Of the weights as they are now."""

    def exceeded(self, kl: float) -> bool:
        return self.limit is not None and kl > self.limit

    def evaluated(self, reward: float | None) -> None:
        """The weights have changed, and this is their reward on held-out prompts, where it is known."""
        self.held_out = reward

    def keep_if_best(self, step: int, reward: float, write: Callable[[Path], None]) -> None:
        """Iteration `step` is within the limit: `write` its weights into the folder it is given, if they are best.

        All processes call it and `write`, which gathers; the main one has the folder.
        """
        score = (False, reward) if self.held_out is None else (True, self.held_out)
        if self.limit is not None and score > self.score:
            self.step, self.score = step, score
            write_beside_and_rename(self.folder, write)

    def stop(self, step: int, kl: float, model: Path) -> str:
        """Put the best weights where the run's model belongs; returns, and says, why the run ends."""
        write_beside_and_rename(model, lambda new: _copy(self.folder, new))
        kind = "held-out" if self.score[0] else "training"
        reason = (
            f"stopped at step {step}: KL {kl:.4g} nats a reply is above kl.limit = {self.limit:g}; "
            f"the model is that of step {self.step} ({kind} reward {self.score[1]:.4g})"
        )
        say(reason)
        return reason

    def state(self) -> dict[str, Any]:
        return {"step": self.step, "score": list(self.score), "held_out": self.held_out}

    def load_state(self, state: dict[str, Any]) -> None:
        is_held_out, reward = state["score"]
        self.step, self.score, self.held_out = state["step"], (is_held_out, reward), state["held_out"]


def _copy(folder: Path, new: Path) -> None:
    if is_main():
        shutil.copytree(folder, new, dirs_exist_ok=True)


def write_beside_and_rename(folder: Path, write: Callable[[Path], None]) -> None:
    """Fill a folder under another name, then give it its own: it is there whole or not at all.

    All processes call it and `write`; the main one makes and names the folder.
    """
    beside = folder.with_name(folder.name + ".partial")
    if is_main():
        shutil.rmtree(beside, ignore_errors=True)
        beside.mkdir(parents=True)
    write(beside)
    if is_main():
        shutil.rmtree(folder, ignore_errors=True)
        beside.rename(folder)
        sync_folder(folder.parent)
    barrier()
