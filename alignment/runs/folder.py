"""What lies in a run's folder: every file of it has its name here."""

import json
import re
import time
from pathlib import Path
from typing import Any

from alignment.config.errors import UserError
from alignment.runs.disk import naming
from alignment.runs.notes import read_history


def step_folder(parent: Path, step: int) -> Path:
    """What is kept of one step lies in a folder of this name."""
    return parent / f"step-{step:08d}"


def steps_in(parent: Path) -> list[int]:
    """The steps that have such a folder, in order; the names of those being written, or put aside, go on."""
    found = [re.fullmatch(r"step-(\d{8,})", path.name) for path in parent.glob("step-*")]
    return sorted(int(match[1]) for match in found if match)


STEP = ".step"  # in a folder of weights: how many steps they have taken


def note_step(folder: Path, step: int) -> None:
    (folder / STEP).write_text(f"{step}\n")


def noted_step(folder: Path) -> int | None:
    """None where it is not noted, as for the weights of a run's last step.

    Raises:
        UserError: the note is damaged.
    """
    file = folder / STEP
    text = file.read_bytes().decode(errors="replace").strip() if file.is_file() else None
    if text is not None and not text.isdecimal():
        raise UserError(f"{file} must hold the number of a step, got {text!r}; without {folder} the run goes on")
    return None if text is None else int(text)


class RunFolder:
    def __init__(self, path: Path | str) -> None:
        self.path = path = Path(path)
        self.config = path / "config.yaml"  # the run as a recipe
        self.started, self.finished = path / "started.json", path / "finished.json"  # what its run is of
        self.history = path / "history.jsonl"
        self.progress = path / "progress.json"  # how many steps the run has in all
        self.owner = path / "owner.json"  # the process that writes it
        self.rows = path / "rows"  # what `alignment.run` was given in memory: the run reads it
        self.metrics, self.samples = path / "metrics.jsonl", path / "samples.jsonl"
        self.nonfinite = path / "nonfinite.json"  # the steps whose loss or gradient was no finite number
        self.checkpoints = path / "checkpoints"
        self.best = path / "best"  # the weights of the best evaluation so far
        self.best_earlier = path / "best_earlier"  # those that the newest checkpoint knows as the best
        self.model = path / "model"  # in Hugging Face form, as those in `best` and `exported`
        self.model_ema = path / "model_ema"  # the moving average of the actor's weights
        self.exported = path / "exported"
        self.selected = path / "selected.jsonl"  # rejection's rows
        self.summary, self.report = path / "summary.json", path / "report.html"  # an evaluation's
        self.scores = path / "scores.jsonl"  # what it found prompt by prompt (runs/scores.py)
        self.script, self.submitted, self.logs = path / "job.sbatch", path / "submitted.json", path / "logs"  # Slurm's

    def names(self) -> list[Path]:
        """All of the above that a run writes: a file's name has an ending, a folder's has none."""
        return [path for path in vars(self).values() if path not in (self.path, self.rows)]

    @property
    def server_log(self) -> Path:
        """What a vLLM server has said that the run started."""
        return self.logs / "vllm.txt"

    def read_elsewhere(self) -> tuple[Path, Path]:
        """What other runs read of this one."""
        return self.model, self.metrics

    def is_run(self) -> bool:
        """Whether a run that trains has left its model here."""
        return self.config.is_file() and self.model.is_dir()

    def left(self) -> list[str]:
        """Where what a run has made lies, in words."""
        adapter = [path for path in [self.model / "adapter"] if path.is_dir()]
        made = [
            ("model, its adapter merged" if adapter else "model", [self.model] if self.model.is_dir() else []),
            ("adapter alone", adapter),
            ("moving average of its weights", [self.model_ema] if self.model_ema.is_dir() else []),
            *(
                (name, [path] if path.exists() else [])
                for name, path in (("rows", self.selected), ("report", self.report))
            ),
            ("logs", [path for path in (self.metrics, self.samples, self.scores, self.summary) if path.exists()]),
        ]
        return [f"{name}: {', '.join(map(str, paths))}" for name, paths in made if paths]

    def newest_step(self) -> int | None:
        """Of the checkpoints, as their names have it."""
        return max(steps_in(self.checkpoints), default=None)

    def note(self, **what: Any) -> None:
        """A line of the run's history: when it went on from which step, where it was made longer, what was changed. It
        takes the place of a torn last one."""
        line = json.dumps({"time": time.strftime("%Y-%m-%d %H:%M:%S"), **what}) + "\n"
        with naming(self.history), self.history.open("ab+") as file:
            file.seek(0)
            file.truncate(file.read().rfind(b"\n") + 1)
            file.write(line.encode())

    def noted(self) -> list[dict[str, Any]]:
        """The lines of the history.

        Raises:
            UserError: as `read_history`.
        """
        return read_history(self.history)
