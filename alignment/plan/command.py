"""What `alignment plan` shows."""

from collections.abc import Iterator
from contextlib import contextmanager

from alignment.config.distributed import Device
from alignment.config.errors import ConfigError, UserError
from alignment.config.run import RunConfig
from alignment.models.files import one_line
from alignment.plan.estimate import plan_of, planned
from alignment.plan.hardware import Hardware, named, this_machine
from alignment.plan.page import another_number_of, fewest_of, gb, lines_of, sum_of, unused_of, ways_of
from alignment.plan.roles import Counts, Planned
from alignment.plan.search import fewest, ways_to_fit
from alignment.plan.work import MFU
from alignment.tasks.max_tokens import UNCOUNTED


def planned_lines(recipe: str, config: RunConfig, wanted: str | None, mfu: float | None) -> list[str]:
    """The plan of a run.

    Args:
        wanted: the devices, as `hardware.named` reads them; None: this machine's.
        mfu: the share of a device's best at which it computes; None: `MFU`.

    Raises:
        ConfigError: there is no such model or device, or a model that cannot be counted.
    """
    config = planned(config)
    hardware = this_machine(config) if wanted is None else named(wanted)
    with _counting():
        lines = list(_lines(recipe, config, hardware, MFU if mfu is None else mfu))
    if wanted is not None and config.distributed.device is Device.cpu:
        lines.append(
            f"distributed.device=cpu is left aside: the plan is for {wanted} (without --for, for this machine)"
        )
    return lines


def planned_most(config: RunConfig) -> str:
    """What one process of a run on this machine is planned to take at the most, and for what.

    Raises:
        as `planned_lines`.
    """
    config = planned(config)
    with _counting():
        phase = plan_of(config, this_machine(config), Counts()).highest
    return f"{gb(phase.total)} GB were planned, at the most {phase.name} ({sum_of(phase)}), "


@contextmanager
def _counting() -> Iterator[None]:
    try:
        yield
    except UserError:
        raise
    except UNCOUNTED as error:
        raise ConfigError(f"a model's code cannot be counted: {type(error).__name__}: {one_line(error)}") from error


def _lines(recipe: str, config: Planned, hardware: Hardware, mfu: float) -> Iterator[str]:
    counts = Counts()
    plan = plan_of(config, hardware, counts)
    yield from lines_of(recipe, plan, mfu)
    yield from another_number_of(config, plan.hardware)
    yield from unused_of(plan, hardware)
    if not plan.fits:
        yield ""
        yield from ways_of(ways_to_fit(config, hardware, counts), config)
    if not hardware.is_here:
        yield fewest_of(fewest(config, hardware, counts), hardware.name, config)
