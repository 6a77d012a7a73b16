"""The cheapest changes of a config with which a run fits, and on how few devices it does."""

from dataclasses import dataclass, replace

from alignment.config.errors import ConfigError
from alignment.plan.changes import OF_PASSES, Change, changed, combinations
from alignment.plan.estimate import Plan, plan_of
from alignment.plan.hardware import Hardware
from alignment.plan.roles import Counts, Planned
from alignment.tasks.max_tokens import SHARE

WAYS = 3  # that are shown
MOST = 1024  # devices that are asked about


@dataclass(frozen=True, slots=True)
class Way:
    """Changes with which a run fits, none of which can be left out."""

    changes: tuple[Change, ...]
    plan: Plan


def ways_to_fit(config: Planned, hardware: Hardware, counts: Counts, *, most: int = WAYS) -> list[Way]:
    """Up to so many, the cheapest first."""
    found: list[Way] = []
    hopeless: list[tuple[Change, ...]] = []
    for changes in combinations(config, hardware):
        if any(all(change in changes for change in way.changes) for way in found):
            continue
        holding = tuple(change for change in changes if not set(OF_PASSES).issuperset(change.keys))
        if holding in hopeless or (plan := _planned(config, hardware, changes, counts)) is None:
            continue
        if plan.fits:
            found.append(Way(changes, plan))
            if len(found) == most:
                break
        elif plan.least > SHARE * hardware.memory:
            hopeless.append(holding)
    return found


def fewest(config: Planned, hardware: Hardware, counts: Counts) -> Way | None:
    """On the fewest of these devices that it fits on, by powers of two, as it is or with the cheapest changes; None
    where it fits on none."""
    number = 1
    while number <= MOST:
        ways = ways_to_fit(config, replace(hardware.with_processes(number)), counts, most=1)
        if ways:
            return ways[0]
        number *= 2
    return None


def _planned(config: Planned, hardware: Hardware, changes: tuple[Change, ...], counts: Counts) -> Plan | None:
    keys = {key: value for change in changes for key, value in change.keys.items()}
    try:
        return plan_of(changed(config, keys), hardware, counts)
    except ConfigError:  # of settings that do not go together
        return None
