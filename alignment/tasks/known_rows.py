"""Whether models are asked about rows that they have learned from, as far as the runs that made them say."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from alignment.config.errors import UserError
from alignment.config.evaluate import EvaluateConfig
from alignment.config.hub import OF_RUNS, Kind, located, pinned_name
from alignment.config.sources import SourceConfig
from alignment.data.read import files_of
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
    learned = _learned(model)
    yield from (path for path in source.paths() if _files(path) & learned)


def _learned(model: str) -> set[str]:
    """The files that its run has read, and those of the runs that it went on from."""
    files, seen = set[str](), set[Path]()
    begun: str | None = model
    while begun is not None and (run := _run_of(begun)).path not in seen and run.config.is_file():
        seen.add(run.path)
        try:
            settings = settings_of(run.path)
        except UserError:  # whoever reads it for more will tell
            return files
        for part in (settings, settings.get("ptx")):
            data = part.get("data") if isinstance(part, dict) else None
            for path in _paths(data.get("train") if isinstance(data, dict) else None):
                files |= _files(path)
        own = settings.get("model")
        before = [own.get(key) for key in ("adapter", "path")] if isinstance(own, dict) else []
        begun = next((each for each in before if isinstance(each, str)), None)
    return files


def _run_of(model: str) -> RunFolder:
    """The folder of the run that has made it, if one has."""
    folder = located(model)
    while folder.name in OF_RUNS and not RunFolder(folder).config.is_file():
        folder = folder.parent
    return RunFolder(folder)


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
            for inner in (train.get("join"), train.get("mix")):
                for each in inner.values() if isinstance(inner, dict) else ():
                    yield from _paths(each)


def _files(path: str) -> set[str]:
    """Those that a path, a folder or a pattern stands for; a set on the hub by its name, whose commit counts."""
    if pinned_name(path, Kind.data) is not None:
        return {path}
    try:
        return {str(file.resolve()) for file in files_of(path)}
    except UserError:  # gone since
        return set()
