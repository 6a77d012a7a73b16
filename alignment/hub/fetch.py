"""What a run reads of a repository, fetched: a folder of links to the files in the hub's own cache, which holds just
what was asked for, whatever else is downloaded of that commit, and is there whole or not at all."""

import os
import shutil
import time
from collections.abc import Iterable
from dataclasses import replace
from glob import escape
from pathlib import Path
from tempfile import TemporaryDirectory

from alignment.config.errors import ConfigError, UserError
from alignment.config.folders import ADAPTER_FILE, MODEL_FILE, base_of, base_on_hub
from alignment.config.hub import (
    HubName,
    Kind,
    at_known_commit,
    commit_file,
    fetched_folder,
    is_fetched,
    is_whole,
)
from alignment.hub.ask import Repository, Unreachable, asking, repository, snapshot_of, told, way_to_fetch
from alignment.hub.commits import Commits
from alignment.hub.files import model_files, tokenizer_files
from alignment.terminal import console, say

WORTH_A_WORD = 2**22  # bytes to fetch
CARDS = ("README.md", ".huggingface.yaml", "dataset_infos.json")  # where a data set says which files a split has


def fetch(name: HubName, key: str, path: str, commits: Commits | None = None) -> HubName:
    """The name with its commit, and for data its split; what a run reads of it is here then. One that is pinned and
    here already costs no call.

    Args:
        key, path: what the user has set to what, for messages.
        commits: of the run. None: those that the hub says.

    Raises:
        ConfigError: there is no such thing, it may not be read, or it can neither be fetched nor is here.
    """
    if is_fetched(name):
        return name
    commits = Commits() if commits is None else commits
    pinned = commits.at(name, key, path)
    if not is_fetched(pinned):
        pinned = _fetched(pinned, key, path, commits)
    _note(name, pinned)
    return pinned


def _fetched(name: HubName, key: str, path: str, commits: Commits) -> HubName:
    """`fetch`, of a name with its commit."""
    found, files = repository(name, key, path), list[str]()
    if name.kind is Kind.data:
        name, files = _split(name, found, key, path)
    elif name.kind is Kind.tokenizer:
        files = tokenizer_files(found.files)
    else:
        files = model_files(found.files)
    if not is_whole(fetched_folder(name)):
        snapshot = _downloaded(name, found, files, key, path)
        if name.kind is Kind.model:
            fetch_base(snapshot, key, commits)
        _link(name, [snapshot / file for file in files], snapshot)
    return name


def fetch_base(adapter: Path, key: str, commits: Commits | None = None) -> str | None:
    """The commit of the base that an adapter's folder names on the hub, which is here then; None for another folder.
    commits: as of `fetch`."""
    name = base_name(adapter, key)
    if name is None:
        return None
    pinned = fetch(name, f"the base of {key}", str(name), commits)
    _note(name, pinned)
    return pinned.revision


def fetch_bases(adapter: Path, key: str, commits: Commits) -> dict[str, str]:
    """All that lies behind an adapter's folder is here then.

    Returns:
        entry -> commit, of the bases that are named without one.

    Raises:
        ConfigError: as `fetch`.
    """
    found, seen = dict[str, str](), set[Path]()
    while adapter not in seen:
        seen.add(adapter)
        name = base_name(adapter, key)
        if name is None:
            adapter = base_of(adapter, key) or adapter
            continue
        commit = fetch_base(adapter, key, commits)
        if not name.has_commit:
            found[name.entry] = commits.known[name.entry]
        adapter = fetched_folder(replace(name, revision=commit))
    return found


def base_commits(adapter: Path, key: str) -> list[str]:
    """Of the base that an adapter's folder names on the hub, and of its own base where that is an adapter too: the
    commits at which they are read here."""
    commits = list[str]()
    while (name := base_name(adapter, key)) is not None and (known := at_known_commit(name)).is_pinned:
        assert known.revision is not None
        commits.append(known.revision)
        adapter = fetched_folder(known)
    return commits


def base_name(folder: Path, key: str) -> HubName | None:
    """What an adapter's folder names as its base, on the hub; None for another folder."""
    is_adapter = (folder / ADAPTER_FILE).is_file() and not (folder / MODEL_FILE).is_file()
    return base_on_hub(folder, key) if is_adapter else None


def _split(name: HubName, found: Repository, key: str, path: str) -> tuple[HubName, list[str]]:
    """The name with its split, and the files of it in the order in which their rows come."""
    from alignment.data.tables import splits_in  # not above: it imports datasets, which is slow

    cards = [file for file in CARDS if file in found.files]
    snapshot = _downloaded(name, found, cards, key, path) if cards else None
    with TemporaryDirectory() as folder:
        stand_in = Path(folder, "data")  # of all files by their names, for the library looks at no more
        for file in found.files:
            place = stand_in / file
            if place.resolve().is_relative_to(stand_in.resolve()):
                place.parent.mkdir(parents=True, exist_ok=True)
                place.symlink_to(snapshot / file) if snapshot is not None and file in cards else place.touch()
        try:
            splits = splits_in(stand_in, name.config)
        except UserError as error:
            raise ConfigError(f"{key}: the data set {name.repo}{error}, got {path!r}") from error
    split = name.split if name.split is not None else next(iter(splits)) if len(splits) == 1 else None
    if split not in splits:
        example = replace(name, split=next(iter(splits)), revision=None)
        rule = f"{key}: the split of {name.repo} must be one of {', '.join(splits)}, as in {example}"
        raise ConfigError(f"{rule}, got {path!r}")
    return replace(name, split=split), splits[split]


def _downloaded(name: HubName, found: Repository, files: Iterable[str], key: str, path: str) -> Path:
    """The snapshot in the hub's cache, in which the files are now."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.utils import disable_progress_bars, logging

    files = list(files)
    if not files:
        raise told(key, path, f"{name.repo} holds no model that transformers reads ({_listing(found.files)})")
    if not console.is_terminal:  # what is said below is enough for a file
        disable_progress_bars()
    logging.set_verbosity_error()
    here = snapshot_of(replace(name, revision=found.commit))
    lacking = [file for file in files if not (here / file).exists()]
    size = sum(found.files[file] or 0 for file in lacking)
    if is_large := found.is_online and size > WORTH_A_WORD:
        say(f"{key}: fetching {name.repo}: {len(lacking)} files, {size / 1e6:,.0f} MB")
    begun = time.monotonic()
    try:
        with asking(name, key, path):
            snapshot = snapshot_download(
                name.repo,
                repo_type=name.repo_type,
                revision=found.commit,
                allow_patterns=[escape(file) for file in files],
                local_files_only=not found.is_online,
            )
    except (Unreachable, OSError) as error:
        rule = f"{key}: {name.repo} cannot be fetched whole: {' '.join(str(error).split())}"
        goes_on = "the same command goes on with the files that are here"
        way = goes_on if found.is_online else way_to_fetch(replace(name, revision=found.commit))
        raise ConfigError(f"{rule}; {way}, got {path!r}") from error
    if is_large:
        say(f"{key}: fetched in {time.monotonic() - begun:.0f} s")
    return Path(snapshot)


def _listing(files: Iterable[str]) -> str:
    names = sorted(files)
    return f"its files: {', '.join(names[:5])}{', ...' if len(names) > 5 else ''}" if names else "it has no files"


def _link(name: HubName, files: list[Path], snapshot: Path) -> None:
    folder = fetched_folder(name)
    beside = folder.with_name(f"{folder.name}.{os.getpid()}.partial")
    shutil.rmtree(beside, ignore_errors=True)
    beside.mkdir(parents=True)
    for number, file in enumerate(files):
        place = f"{number:05d}-{file.name}" if name.kind is Kind.data else file.relative_to(snapshot).as_posix()
        (beside / place).parent.mkdir(parents=True, exist_ok=True)
        (beside / place).symlink_to(file)
    if not is_whole(folder):  # links that lead nowhere; another process may have made it meanwhile, and read it
        shutil.rmtree(folder, ignore_errors=True)
    try:
        beside.rename(folder)
    except OSError:  # another process was faster
        shutil.rmtree(beside)


def _note(name: HubName, pinned: HubName) -> None:
    """Which commit the revision was at, for who reads the name again in this run and may not ask."""
    if name.is_pinned:
        return
    file = commit_file(name)
    assert pinned.revision is not None
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(pinned.revision)
