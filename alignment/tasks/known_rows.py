"""Whether models are asked about rows that they have learned from, as far as the runs that made them say."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from alignment.config.hub import OF_RUNS, located
from alignment.config.sources import SourceConfig
from alignment.config.tasks import EvaluateConfig
from alignment.runs.folder import RunFolder
from alignment.runs.settings import settings_of
from alignment.terminal import say


def warn_of_known_rows(config: EvaluateConfig) -> None:
    """A line for each file of rows that a model of the evaluation was trained on. A run that held a part of them out
    says so too, for which rows these were is not asked here."""
    models = [(path, config.data.eval) for path in config.runs.values()]
    if config.reward is not None:
        models += [(config.reward, config.pairs.eval), (config.reward, config.data.eval)]
    known: dict[str, list[str]] = {}
    unknown = [model for model, source in models if source.paths() and not _run_of(model).config.is_file()]
    if unknown:
        what = f"what {', '.join(dict.fromkeys(unknown))} learned from is not known here"
        say(f"{what}: if these rows were among it, its figures are too good")
    for model, source in models:
        for path in _both(source, model):
            known.setdefault(path, []).append(model)
    for path, names in known.items():
        what = f"{', '.join(dict.fromkeys(names))} learned from {path} (all but what was held out of it)"
        say(f"WARNING: {what}: models look better on rows that they know; take a file of rows that they do not")


def _both(source: SourceConfig, model: str) -> Iterator[str]:
    """What the evaluation reads and the model has learned from."""
    run = _run_of(model)
    data = settings_of(run.path).get("data") if run.config.is_file() else None
    train = data.get("train") if isinstance(data, dict) else None
    learned = {_place(each) for each in _paths(train)}
    yield from (path for path in source.paths() if _place(path) in learned)


def _run_of(model: str) -> RunFolder:
    """The folder of the run that has made it, if one has."""
    folder = located(model)
    return RunFolder(folder.parent if folder.name in OF_RUNS else folder)


def _paths(train: Any) -> Iterator[str]:
    """Of a source as config.yaml has it, its parts and what was joined to it."""
    match train:
        case str():
            yield train
        case list():
            for each in train:
                yield from _paths(each)
        case {"path": path}:
            yield from _paths(path)
            for key in ("join", "mix"):
                for each in (train.get(key) or {}).values():
                    yield from _paths(each)


def _place(path: str) -> str:
    """Of a file here, by whatever name; a set on the hub by its own, whose commit counts."""
    return str(Path(path).resolve()) if Path(path).exists() else path
