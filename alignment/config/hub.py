"""Names on the Hugging Face Hub: how they are told from paths, and where what was fetched of one lies here.

    org/name   org/name@revision   org/name:split   org/name/config:split@revision   hf://name

A run works on pinned names, `org/name@<40 hex digits>`, whose files `alignment.hub` has fetched before it starts. What
a run reads of a repository lies in a folder of links to the client's own cache; whoever opens a path asks `located`
for it, which makes no call and imports nothing.
"""

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from enum import Enum
from pathlib import Path

from alignment.config.errors import ConfigError
from alignment.config.user_cache import user_cache

PREFIX = "hf://"
COMMIT = re.compile(r"[0-9a-f]{40}")
NAME = re.compile(  # repository, configuration, split, revision
    r"([A-Za-z0-9_][\w.-]*(?:/[A-Za-z0-9_][\w.-]*)?)(?:/([A-Za-z0-9_][\w.-]*))?(?::(\w[\w.-]*))?(?:@([\w./-]+))?",
    re.ASCII,
)
DATA_ENDINGS = (".jsonl", ".json", ".gz", ".zst", ".parquet", ".csv", ".tsv", ".arrow", ".txt", ".yaml", ".yml")
_read_at: dict[str, str] = {}
OF_RUNS = ("model", "best", "model_ema", "adapter")  # what a run leaves, in whose folder a path is plainly local


class Kind(str, Enum):
    """What a key takes of a repository."""

    model = "model"
    tokenizer = "tokenizer"
    """Of a model's repository, without its weights."""
    data = "data"
    any = "any"
    """A pipeline's input, which its stages read as one of the others."""


@dataclass(frozen=True, slots=True)
class HubName:
    repo: str
    kind: Kind
    revision: str | None = None
    """A branch, a tag or a commit. None: the newest commit of the main branch."""
    config: str | None = None
    split: str | None = None

    @property
    def has_commit(self) -> bool:
        return self.revision is not None and COMMIT.fullmatch(self.revision) is not None

    @property
    def is_pinned(self) -> bool:
        """Whether its revision is a commit, and, for data, the split is known."""
        return self.has_commit and (self.kind is not Kind.data or self.split is not None)

    @property
    def entry(self) -> str:
        """Its key in a config's `commits`: all splits of a set have one commit, and so have a model and its
        tokenizer."""
        prefix = "datasets/" if self.kind is Kind.data else ""
        return f"{prefix}{self.repo}{'' if self.revision is None else f'@{self.revision}'}"

    @property
    def repo_type(self) -> str:
        return "dataset" if self.kind is Kind.data else "model"

    def rows(self) -> str:
        """How messages call the rows of its split: without the commit, which the run's config has."""
        return f"{self.repo}{'' if self.config is None else f'/{self.config}'}:{self.split}"

    def __str__(self) -> str:
        prefix = "" if "/" in self.repo else PREFIX
        config = "" if self.config is None else f"/{self.config}"
        split = "" if self.split is None else f":{self.split}"
        return f"{prefix}{self.repo}{config}{split}{'' if self.revision is None else f'@{self.revision}'}"


def hub_name(path: str, kind: Kind) -> HubName | None:
    """What a path names on the hub; None where it is one of this machine: it exists, or begins, is or ends as only
    those do, or its first folder is here, so that a misspelt path is asked of nobody.

    Raises:
        ConfigError: it begins with hf:// and is no name.
    """
    if path.startswith(PREFIX):
        found = _parsed(path.removeprefix(PREFIX).removeprefix("datasets/" if kind is not Kind.model else ""), kind)
        if found is None:
            form = "org/name:split" if kind is Kind.data else "org/name"
            raise ConfigError(f"a name behind {PREFIX} must be {form} or {form}@revision, got {path!r}")
        return found
    found = _parsed(path, kind)
    if found is None or "/" not in found.repo or Path(path).exists():
        return None
    if found.is_pinned:
        return found
    organization, _, name = found.repo.partition("/")
    is_local = name in OF_RUNS or path.endswith(DATA_ENDINGS) or Path(organization).is_dir()
    return None if is_local else found


def _parsed(name: str, kind: Kind) -> HubName | None:
    match = NAME.fullmatch(name)
    if match is None:
        return None
    repo, config, split, revision = match.groups()
    takes_rows = kind in (Kind.data, Kind.any)
    if (config is not None and split is None) or (split is not None and not takes_rows):
        return None
    return HubName(repo, Kind.data if split is not None else kind, revision, config, split)


def is_awaited(path: str, kind: Kind) -> bool:
    """Whether it is a name that has no commit yet, or whose files are not here."""
    name = hub_name(path, kind)
    return name is not None and not is_fetched(name)


def is_fetched(name: HubName) -> bool:
    return name.is_pinned and is_whole(fetched_folder(name))


def is_whole(folder: Path) -> bool:
    """Whether the links in it lead to files: the hub's cache may have been cleared since."""
    return folder.is_dir() and all(each.exists() for each in folder.rglob("*"))


def pinned_name(path: str | Path, kind: Kind = Kind.model) -> HubName | None:
    """The name with a commit that it is, if it is one."""
    if COMMIT.fullmatch(str(path).rpartition("@")[2]) is None:
        return None
    name = hub_name(str(path), kind)
    return name if name is not None and name.is_pinned else None


def located(path: str | Path, kind: Kind = Kind.model) -> Path:
    """Where a path of the config is on this machine: itself, or, of a pinned name, the folder with what was fetched."""
    name = pinned_name(path, kind)
    return Path(path) if name is None else fetched_folder(name)


def fetched_folder(name: HubName) -> Path:
    """Where the files of a pinned name lie, once they are here."""
    assert name.revision is not None
    part = name.kind.value
    if name.kind is Kind.data:
        part = "--".join(each for each in (name.config, name.split) if each is not None)
    return repository_folder(name) / name.revision / part


def repository_folder(name: HubName) -> Path:
    return user_cache("hub") / f"{name.repo_type}s--{name.repo.replace('/', '--')}"


def at_known_commit(name: HubName) -> HubName:
    """The name at the commit that the run of this process reads it at; of a name that is none of its own, as it was
    last resolved on this machine. Itself where it has a commit, or there is none."""
    if name.has_commit:
        return name
    if name.entry in _read_at:
        return replace(name, revision=_read_at[name.entry])
    file = commit_file(name)
    return replace(name, revision=file.read_text()) if file.is_file() else name


def read_at(commits: Mapping[str, str]) -> None:
    """From here on this process reads the bases of adapters at these commits, by their entries, whatever another run
    on this machine has found meanwhile."""
    _read_at.clear()
    _read_at.update(commits)


@contextmanager
def reading_at(commits: Mapping[str, str]) -> Iterator[None]:
    """Inside, `read_at`."""
    before = dict(_read_at)
    read_at(commits)
    try:
        yield
    finally:
        read_at(before)


def require_commits(commits: Mapping[str, str]) -> None:
    """Raises:
    ConfigError: an entry of a config's `commits` is no name, or stands for no commit.
    """
    for entry, commit in commits.items():
        rule = f"commits must be of names on the hub, org/name, org/name@revision or datasets/org/name, got {entry!r}"
        name = _parsed(entry.removeprefix("datasets/"), Kind.model)
        if name is None or name.has_commit:
            raise ConfigError(rule)
        if not isinstance(commit, str) or COMMIT.fullmatch(commit) is None:
            raise ConfigError(f"commits.{entry} must be a commit's 40 hexadecimal digits, got {commit!r}")


def commit_file(name: HubName) -> Path:
    """Where the commit of a revision is noted."""
    return repository_folder(name) / "refs" / (name.revision or "main").replace("/", "%2F")
