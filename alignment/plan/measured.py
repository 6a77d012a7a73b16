"""A plan beside the run that it is of: `alignment plan` is held to the tensors that are alive in runs."""

from dataclasses import dataclass

from alignment.config.run import RunConfig
from alignment.models.allocations import Allocations
from alignment.plan.estimate import Plan, plan_of, planned
from alignment.plan.hardware import this_machine
from alignment.plan.roles import Counts
from alignment.tasks.run import execute


@dataclass(frozen=True, slots=True)
class Measured:
    plan: Plan
    alive: int
    """Bytes of this process's tensors, when it had most."""

    @property
    def ratio(self) -> float:
        return self.plan.total / self.alive


def measure(config: RunConfig, counts: Counts) -> Measured:
    """Plan a run and run it in this process, one of as many as it asks for; every tensor is counted as it is made and
    as it goes, which takes about as long again.

    Raises:
        ConfigError: the run is of a task that has no plan.
        and as `execute`.
    """
    plan = plan_of(planned(config), this_machine(config), counts)  # first: DeepSpeed has its own linear layers
    with Allocations([]) as counted:
        execute(config)
    return Measured(plan, counted.highest)
