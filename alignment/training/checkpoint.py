"""Checkpoints: written beside and renamed, hashed and checked, so that a kill at any byte leaves the last good one."""

import errno
import random
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, TypeVar, runtime_checkable

import numpy as np
import torch

from alignment import preempt
from alignment.config.checkpoint import CheckpointConfig, Resume
from alignment.config.errors import UserError
from alignment.distributed.collectives import any_over_ranks, gathered, is_main, rank, size
from alignment.runs.folder import RunFolder, step_folder, steps_in
from alignment.runs.written import PARTIAL, begin_folder, filled_beside, publish_folder
from alignment.terminal import say
from alignment.training.manifest import (
    Manifest,
    load_part,
    map_part,
    part_name,
    write_manifest,
    write_part,
)
from alignment.training.restore import newest_good

Result = TypeVar("Result")
REST = 49  # times as long as it took to save the clock waits before it saves again: 2% of the time is spent on it
MOMENT = 1e-3  # seconds that any save takes


class Stateful(Protocol):
    """A part of a run that changes as it goes on: an engine, a controller, a counter."""

    def state(self) -> dict[str, Any]:
        """Tensors, numbers, strings, lists and dicts only; of this rank, where the ranks differ."""
        ...

    def load_state(self, state: dict[str, Any]) -> None: ...


@runtime_checkable
class ShardedState(Stateful, Protocol):
    """A part of which each rank has a share of its own. Of any other, all ranks have the same."""

    def load_resharded(self, saved: Sequence[dict[str, Any]]) -> None:
        """Take this rank's share of what ranks 0, 1, ... saved, which were other ones in number or in ZeRO stage."""
        ...


class Checkpoints:
    """The folder `checkpoints/` of a run: `step-00000100/` holds `rank-00000.pt` and so on, and `manifest.json`."""

    def __init__(
        self, folder: Path, config: CheckpointConfig, parts: Mapping[str, Stateful], *, zero: int | None = None
    ) -> None:
        """`parts`: everything that a run going on must find as it was; the random generators are seen to here.

        `zero`: the run's `distributed.zero`, which the engines among the parts save by.
        """
        self.folder = folder
        self.config = config
        self.parts = parts
        self.zero = zero
        self.saved_at = time.monotonic()
        self.took = 0.0  # seconds, of the last save; 0 before the first
        if is_main():
            folder.mkdir(parents=True, exist_ok=True)

    def restore(self) -> int:
        """Load the newest good checkpoint, if there is one to resume from; returns the steps it had done.

        A run that never resumes clears away what an earlier one left: those would count as newer than its own. From
        here on a request to stop waits for the end of a step.

        Raises:
            ConfigError: there are checkpoints and none is good.
        """
        if self.config.resume is Resume.never and is_main():
            shutil.rmtree(self.folder, ignore_errors=True)
        found = newest_good(self.folder)
        if found is not None:
            self._load(*found)
        preempt.hold()
        if any_over_ranks(preempt.requested())[0]:
            raise preempt.Preempted(f"{preempt.reason()} before its first step")
        return 0 if found is None else found[1].step

    def _load(self, folder: Path, manifest: Manifest) -> None:
        """To as many ranks under the same stage each its own, bit for bit; to others what the saved ones had together.

        What the generators are asked for from here on is LoRA's dropout alone, for rows, replies and mini-batches are
        drawn by the seed and their own number. A run's ranks all begin with the same generators; one that there was not
        before takes those of an earlier rank.
        """
        same = (manifest.world_size, manifest.zero) == (size(), self.zero)
        if same:
            states = [load_part(folder / part_name(rank()))]
        else:
            states = [map_part(folder / part_name(number)) for number in range(manifest.world_size)]
        if states[0]["parts"].keys() != self.parts.keys():
            raise ValueError(f"{folder} is of another kind of run: {sorted(states[0]['parts'])}")
        for name, part in self.parts.items():
            if isinstance(part, ShardedState) and not same:
                part.load_resharded([state["parts"][name] for state in states])
            else:
                part.load_state(states[0]["parts"][name])
        set_rng_state(states[rank() % len(states)]["rng"])
        if is_main():
            RunFolder(self.folder.parent).note(going_on_from=manifest.step, processes=size(), zero=self.zero)
            say(f"going on from {folder}" + ("" if same else f" ({_by(manifest)})"))

    def save_if_due(self, step: int, *, is_last: bool = False) -> None:
        """After `step` steps: save every `checkpoint.every` of them, every `checkpoint.every_minutes`, and the last.

        Raises:
            Preempted: a process was asked to stop; the step is saved.
            UserError: it cannot be written.
        """
        due = (self.config.every > 0 and step % self.config.every == 0) or (is_last and self.config.save_last)
        late = is_main() and self._is_late(time.monotonic() - self.saved_at)  # the main process's clock decides
        asked, late = any_over_ranks(preempt.requested(), late)
        if due or late or asked:
            self.save(step)
        if asked:
            never = self.config.resume is Resume.never
            rule = " (checkpoint.resume=never would start over: say checkpoint.resume=auto)" if never else ""
            raise preempt.Preempted(f"{preempt.reason()} after step {step}, which is saved{rule}")

    def _is_late(self, seconds: float) -> bool:
        """Whether the clock asks for a save, so long after the last one."""
        return 0 < self.config.every_minutes * 60 <= seconds and seconds >= REST * self.took

    def save(self, step: int) -> None:
        """All ranks together. Older checkpoints are deleted only when the new one is in its place.

        Raises:
            UserError: a rank cannot write its part; the checkpoints that were there are left as they are.
        """
        began, folder = time.monotonic(), step_folder(self.folder, step)
        beside = filled_beside(folder)
        state = {"step": step, "parts": {name: part.state() for name, part in self.parts.items()}, "rng": rng_state()}
        try:
            _by_main(lambda: self._make_room(folder))
            files = _together(lambda: write_part(state, beside / part_name(rank())))
            named = {part_name(number): file for number, file in enumerate(files)}
            manifest = Manifest(step, size(), self.zero, named)
            _by_main(lambda: _publish(folder, manifest))
        except OSError as error:
            _by_main(lambda: shutil.rmtree(beside, ignore_errors=True))  # before a rank ends, and the others with it
            why = f"{error.strerror} ({errno.errorcode.get(error.errno or 0, error.errno)})"
            raise UserError(f"{folder} cannot be written: {why}; what was saved before is kept") from error
        if is_main():
            for old in steps_in(self.folder)[: -self.config.keep]:
                shutil.rmtree(step_folder(self.folder, old))
        is_first, self.saved_at = self.took == 0, time.monotonic()
        self.took = max(self.saved_at - began, MOMENT)
        if is_first and is_main():
            num_bytes = sum(file.size for file in files)
            kept = f"the newest {self.config.keep} are kept (checkpoint.keep)"
            say(f"saved {folder}: {shown_size(num_bytes)} in {self.took:.1f} s; {kept}")

    def _make_room(self, folder: Path) -> None:
        for left in self.folder.glob(f"*{PARTIAL}"):
            shutil.rmtree(left)
        begin_folder(folder)


def shown_size(num_bytes: int) -> str:
    """As people read it: 1.2 GB, 35 MB."""
    unit, name = (1e9, "GB") if num_bytes >= 1e9 else (1e6, "MB")
    return f"{num_bytes / unit:.1f} {name}"


def _by(manifest: Manifest) -> str:
    processes = "1 process" if manifest.world_size == 1 else f"{manifest.world_size} processes"
    return f"saved by {processes} under distributed.zero={'null' if manifest.zero is None else manifest.zero}"


def _publish(folder: Path, manifest: Manifest) -> None:
    """The manifest makes it a checkpoint, the name makes it the run's."""
    write_manifest(filled_beside(folder), manifest)
    publish_folder(folder)


def _together(part: Callable[[], Result]) -> list[Result]:
    """What each rank's part gave. Where one fails, all do, so that no rank waits for one that cannot go on.

    Raises:
        OSError: that of the first rank that could not read or write.
    """
    failed: OSError | None = None
    result: Any = None
    try:
        result = part()
    except OSError as error:
        failed = error
    everybody = gathered((result, failed))
    for _, why in everybody:
        if why is not None:
            raise why
    return [result for result, _ in everybody]


def _by_main(part: Callable[[], None]) -> None:
    _together(lambda: part() if is_main() else None)


def rng_state() -> dict[str, Any]:
    """Every generator that a run may draw from: torch on CPU and GPUs, numpy, Python."""
    kind, keys, position, has_gauss, cached = np.random.get_state(legacy=True)
    return {
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
        "numpy": [kind, torch.from_numpy(np.asarray(keys).astype(np.int64)), position, has_gauss, cached],
        "python": random.getstate(),
    }


def set_rng_state(state: dict[str, Any]) -> None:
    torch.set_rng_state(state["torch"])
    for device, generator in zip(range(torch.cuda.device_count()), state["cuda"], strict=False):  # of GPUs in both runs
        torch.cuda.set_rng_state(generator, device)
    kind, keys, position, has_gauss, cached = state["numpy"]
    np.random.set_state((kind, keys.numpy().astype(np.uint32), position, has_gauss, cached))
    version, numbers, gauss = state["python"]
    random.setstate((version, tuple(numbers), gauss))


def seed_everything(seed: int) -> None:
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)
