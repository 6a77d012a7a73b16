"""A loss or a gradient that is no number: the run stops, or leaves the step out, before the weights are touched."""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from alignment.config.errors import UserError
from alignment.config.train import OnNonFinite
from alignment.data.batches import Batches
from alignment.distributed.collectives import is_main
from alignment.runs.written import whole_file
from alignment.terminal import say
from alignment.training.metrics import Metrics

MOST_IDLE = 10  # steps at a run's start with nothing learned, before it is clear that nothing will be
KEPT = "the last checkpoint, if any, is kept (train.on_nonfinite=skip leaves such steps out)"
ROLES = {  # what each gives to PPO's experience, and where to look when it is no number
    "actor": ("log-probs of the actor", "a lower train.learning_rate keeps it from that"),
    "reference": (
        "log-probs of the reference",
        "it is the model as it came: look there for weights that are none, or compute in distributed.precision=float32",
    ),
    "critic": (
        "values of the critic",
        "a lower critic.learning_rate keeps it from that, if the model that it began as gave numbers",
    ),
}


@dataclass(frozen=True, slots=True)
class NonFiniteStep:
    """A step that was not taken."""

    objective: str
    """Whose loss: DPO, or PPO's Actor or Critic."""
    loss: float
    grad_norm: float

    def __str__(self) -> str:
        return f"the loss of {self.objective} is {self.loss}, the norm of its gradient {self.grad_norm}"


@contextmanager
def step_in_errors(step: int) -> Iterator[None]:
    """Inside, a user's mistake that only now shows is told with the step that met it."""
    try:
        yield
    except UserError as error:
        raise UserError(f"step {step}: {error}") from error


def stop(broken: NonFiniteStep) -> None:
    raise UserError(f"{broken}; the weights are as they were")


class NonFiniteGuard:
    """What a run does about such a step, as `train.on_nonfinite` says; the file at `path` tells its rows."""

    def __init__(self, path: Path, choice: OnNonFinite, data: Batches) -> None:
        self.path = path
        self.choice = choice
        self.data = data
        self.met: list[dict[str, Any]] = []
        self.num_idle = 0  # steps from the first on in which nothing was learned

    def record(self, step: int, broken: NonFiniteStep) -> None:
        """Write down step `step` (from 1) with its rows.

        Raises:
            UserError: `train.on_nonfinite` is stop.
        """
        numbers = {name: str(value) for name, value in asdict(broken).items()}  # JSON has no word for nan
        self._note(step, numbers)
        if self.choice is OnNonFinite.stop:
            raise UserError(f"step {step}: {broken}; its rows are in {self.path}; {KEPT}")
        if is_main():
            say(f"step {step}: {broken}; left out")

    def record_roles(self, step: int, broken: Mapping[str, int]) -> None:
        """Tell whose numbers in PPO's experience are none, before they break the steps that learn from them: the loss
        of the actor has the values of the critic and the log-probs of the reference in it.

        Args:
            broken: a role of `ROLES` -> how many of its numbers.

        Raises:
            UserError: there are any, and `train.on_nonfinite` is stop.
        """
        if not broken:
            return
        found = [f"{count} {ROLES[role][0]} are no finite numbers ({ROLES[role][1]})" for role, count in broken.items()]
        if self.choice is OnNonFinite.stop:
            self._note(step, {"roles": dict(broken)})
            raise UserError(f"step {step}: {'; '.join(found)}; its rows are in {self.path}; {KEPT}")
        if is_main():
            say(f"step {step}: {'; '.join(found)}; what learns from them is left out")

    def require_learning(self, step: int, learned: Metrics, *, num_steps: int) -> None:
        """Called after step `step` (from 1) of `num_steps`. Warns where no step so far had anything to learn from,
        after `MOST_IDLE` steps or the last.

        Raises:
            UserError: no update of the run was taken in its first `MOST_IDLE` steps, or in all of them: steps may be
                skipped, but not each one; nor may each overflow float16 to the last.
        """
        if self.num_idle < step - 1 or any(name.endswith("grad_norm") for name in learned):
            return
        self.num_idle += 1
        overflows = any(name.endswith("precision/skipped") for name in learned)
        if overflows and step == num_steps:
            rule = "distributed.initial_loss_scale must be lower, or the run longer"
            why = "no step of it was taken, for each gradient overflows float16 at a loss scale that each halves"
            raise UserError(f"step {step}: {rule}: {why}")
        if self.num_idle != min(MOST_IDLE, num_steps):
            return
        if len({each["step"] for each in self.met}) == step:
            raise UserError(
                f"step {step}: no step so far could be taken: the model as it came gives no finite loss or gradient on "
                f"any of their rows, which are in {self.path} (the first: {self.met[0]['objective']}, loss "
                f"{self.met[0]['loss']}); its weights are numbers, perhaps too large ones"
            )
        why = (
            "had anything to learn from, the weights are as they came: the replies to each prompt all score alike, or "
        )
        why += "are the same"
        if overflows:
            way = "a lower distributed.initial_loss_scale spares a run that"
            why = f"was taken, for each gradient overflows float16 at a loss scale that is halved every time; {way}"
        if is_main():
            say(f"step {step}: no step so far {why}")

    def _note(self, step: int, what: dict[str, Any]) -> None:
        rows = [{"row": row, "source": str(self.data.examples[row].source)} for row in self.data.step_rows(step - 1)]
        self.met.append({"step": step, **what, "rows": rows})
        if is_main():
            with whole_file(self.path) as beside:
                beside.write_text(json.dumps(self.met, indent=1))

    def metrics(self) -> dict[str, float]:
        """`skipped_steps`, how many optimizer steps were left out so far, where that is asked for."""
        return {"skipped_steps": float(len(self.met))} if self.choice is OnNonFinite.skip else {}

    def state(self) -> dict[str, Any]:
        return {"met": self.met, "num_idle": self.num_idle}

    def load_state(self, state: dict[str, Any]) -> None:
        self.met, self.num_idle = state["met"], state.get("num_idle", 0)  # which older checkpoints have not
