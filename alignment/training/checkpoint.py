"""Checkpoints: written beside and renamed, hashed and checked, so that a kill at any byte leaves the last good one."""

import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch

from alignment import preempt
from alignment.config.checkpoint import CheckpointConfig, Resume
from alignment.config.errors import UserError
from alignment.distributed.collectives import any_over_ranks, is_main, rank, size
from alignment.runs.disk import not_written
from alignment.runs.folder import RunFolder, step_folder, steps_in
from alignment.runs.written import PARTIAL, begin_folder, filled_beside
from alignment.terminal import say
from alignment.training.generators import rng_state, set_rng_state
from alignment.training.manifest import Manifest, load_part, map_part, part_name
from alignment.training.restore import newest_good
from alignment.training.writing import Writing, by_main, copied, publish, together

CPU = torch.device("cpu")
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
        self,
        folder: Path,
        config: CheckpointConfig,
        parts: Mapping[str, Stateful],
        *,
        zero: int | None = None,
        device: torch.device = CPU,
    ) -> None:
        """`parts`: everything that a run going on must find as it was; the random generators are seen to here.

        `zero`: the run's `distributed.zero`, which the engines among the parts save by. `device`: where they train.
        """
        self.folder = folder
        self.config = config
        self.parts = parts
        self.zero = zero
        self.saved_at = time.monotonic()
        self.took = 0.0  # seconds that training has waited for the last save; 0 before the first
        self.in_background = config.is_in_background(device.type)
        self.writing: Writing | None = None
        self.has_said = False
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
            UserError: it cannot be written, or the one before cannot, which was written in the meantime.
        """
        due = (self.config.every > 0 and step % self.config.every == 0) or (is_last and self.config.save_last)
        late = is_main() and self._is_late(time.monotonic() - self.saved_at)  # the main process's clock decides
        is_busy = self.writing is not None and self.writing.is_alive()
        asked, late, is_busy = any_over_ranks(preempt.requested(), late, is_busy)
        if not is_busy:
            self.finish()
        if due or late or asked:
            self.begin(step)
        if asked or is_last or not self.in_background:
            self.finish()
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
        self.begin(step)
        self.finish()

    def begin(self, step: int) -> None:
        """Begin to save the parts as they are now, once the save before is finished: whatever happens to them from
        here on, if it is done in the background. All ranks together."""
        self.finish()
        began, folder = time.monotonic(), step_folder(self.folder, step)
        state = {"step": step, "parts": {name: part.state() for name, part in self.parts.items()}, "rng": rng_state()}
        with self._left_as_it_was(folder):
            by_main(lambda: self._make_room(folder))
        self.writing = Writing(step, copied(state) if self.in_background else state, filled_beside(folder))
        if self.in_background:
            self.writing.start()
        self.saved_at = time.monotonic()
        self.took = max(self.saved_at - began, MOMENT)

    def finish(self) -> None:
        """The checkpoint that was begun is in its place. All ranks together; nothing where none was begun.

        Raises:
            UserError: as `save`.
        """
        writing, self.writing = self.writing, None
        if writing is None:
            return
        began, folder = time.monotonic(), step_folder(self.folder, writing.step)
        with self._left_as_it_was(folder):
            files = together(writing.result)
            named = {part_name(number): file for number, file in enumerate(files)}
            manifest = Manifest(writing.step, size(), self.zero, named)
            by_main(lambda: publish(folder, manifest))
        if is_main():
            for old in steps_in(self.folder)[: -self.config.keep]:
                shutil.rmtree(step_folder(self.folder, old))
        self.saved_at = time.monotonic()
        self.took += self.saved_at - began
        if not self.has_said and is_main():
            num_bytes = sum(file.size for file in files)
            kept = f"the newest {self.config.keep} are kept (checkpoint.keep)"
            how = ", for which training waited" if self.in_background else " in"
            say(f"saved {folder}: {shown_size(num_bytes)}{how} {self.took:.1f} s; {kept}")
        self.has_said = True

    def before(self, write: Callable[[Path], None]) -> Callable[[Path], None]:
        """`write`, of the model as it is, once the checkpoint that was begun is in its place: what is kept beside the
        checkpoints is of the newest one, or of later."""

        def writing(folder: Path) -> None:
            self.finish()
            write(folder)

        return writing

    @contextmanager
    def finished(self) -> Iterator[None]:
        """Around the steps of a run: what was begun in there is in its place in the end. After an error of the user's
        or the disk's too where there is one process; of several each may be at another place. A disk that was filled by
        the checkpoint may refuse something small first, and the checkpoint is what is told."""
        try:
            yield
        except (UserError, OSError):
            if size() == 1:
                self.finish()
            elif self.writing is not None:
                try:
                    self.writing.result()
                except OSError as error:
                    raise not_written(step_folder(self.folder, self.writing.step), error) from error
            raise
        self.finish()

    @contextmanager
    def _left_as_it_was(self, folder: Path) -> Iterator[None]:
        """Raises:
        UserError: for what the system cannot write inside; what has been written of `folder` goes.
        """
        try:
            yield
        except OSError as error:
            by_main(lambda: shutil.rmtree(filled_beside(folder), ignore_errors=True))  # before a rank ends, and all do
            raise not_written(folder, error) from error

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
