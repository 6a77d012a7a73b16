"""What the hub says of a name: its commit and the files there; from the local cache where the hub cannot be asked.

Each name is asked for once in a process, however many keys, jobs of a sweep or stages have it.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path

from alignment.config.errors import ConfigError
from alignment.config.hub import COMMIT, PREFIX, HubName, Kind
from alignment.terminal import say_once

TIMEOUT = 30.0  # seconds
SHOWN = 12  # digits of a commit that a line shows


@dataclass(frozen=True, slots=True)
class Repository:
    """A repository as it is at one commit."""

    commit: str
    files: dict[str, int | None]
    """Path -> bytes; None where the cache does not say."""
    is_online: bool


answers: dict[tuple[str, str, str | None], Repository] = {}


def repository(name: HubName, key: str, path: str) -> Repository:
    """Args:
        key, path: what the user has set to what, for messages.

    Raises:
        ConfigError: there is no such repository or revision, it may not be read, or it is neither to be reached nor
            in the cache.
    """
    known = (name.repo, name.repo_type, name.revision)
    if known not in answers:
        answers[known] = found = _found(name, key, path)
        answers.setdefault((name.repo, name.repo_type, found.commit), found)
    return answers[known]


def forget() -> None:
    """Ask anew: a name may be at another commit by now."""
    answers.clear()


def _found(name: HubName, key: str, path: str) -> Repository:
    from huggingface_hub import HfApi

    api = HfApi()
    ask = api.dataset_info if name.kind is Kind.data else api.model_info
    try:
        with asking(name, key, path):
            info = ask(name.repo, revision=name.revision, files_metadata=True, timeout=TIMEOUT)
    except Unreachable as error:
        return _cached(name, key, path, str(error))
    assert info.sha is not None
    _note_commit(name, info.sha)
    return Repository(info.sha, {each.rfilename: each.size for each in info.siblings or []}, is_online=True)


class Unreachable(Exception):
    """The hub gives no answer now; the text says why."""


@contextmanager
def asking(name: HubName, key: str, path: str) -> Iterator[None]:
    """Inside, the hub is asked for a name that the user has set as `path`.

    Raises:
        ConfigError: it answers that there is no such repository or revision, or that this user may not read it.
        Unreachable: it does not answer.
    """
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        HFValidationError,
        HTTPError,
        LocalEntryNotFoundError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    where, got = f"{site()}/{_page(name)}", f"got {path!r}"
    try:
        yield
    except GatedRepoError as error:
        way = "once it is granted, `hf auth login` (or HF_TOKEN) says who you are"
        raise ConfigError(f"{key}: {name.repo} is gated: ask for access at {where}; {way}, {got}") from error
    except RevisionNotFoundError as error:
        rule = f"{key}: {name.repo} has no branch, tag or commit {name.revision!r}"
        raise ConfigError(f"{rule}; {where}/commits/main lists its commits, {got}") from error
    except (RepositoryNotFoundError, HFValidationError) as error:
        raise told(key, path, _missing(name)) from error
    except HfHubHTTPError as error:
        status = error.response.status_code
        if status not in (401, 403):
            raise Unreachable(f"{site()} answers HTTP {status}") from error
        rule = f"{key}: {where} may not be read with your token (HTTP {status})"
        raise ConfigError(f"{rule}: ask for access there, and `hf auth login` (or HF_TOKEN), {got}") from error
    except OfflineModeIsEnabled as error:
        raise Unreachable("offline, as HF_HUB_OFFLINE says") from error
    except LocalEntryNotFoundError as error:
        raise Unreachable("not all of its files are in the cache") from error
    except HTTPError as error:
        raise Unreachable(f"{site()} cannot be reached ({type(error).__name__})") from error


def _cached(name: HubName, key: str, path: str, why: str) -> Repository:
    """What the cache of huggingface_hub has of it."""
    folder = cache_of(name)
    is_commit = name.revision is not None and COMMIT.fullmatch(name.revision) is not None
    ref = folder / "refs" / (name.revision or "main")
    commit = name.revision if is_commit else ref.read_text().strip() if ref.is_file() else None
    snapshot = folder / "snapshots" / (commit or "")
    if commit is None or not snapshot.is_dir():
        at = f" at {name.revision}" if name.revision else ""
        lacking = f"{name.repo}{at} is not in the cache {str(folder.parent)!r}{_near(name)}"
        raise told(key, path, f"{why}, and {lacking}; {way_to_fetch(name)}")
    say_once(f"{key}: {why}: {name.repo} is read from the cache, as it was at {commit[:SHOWN]}")
    return Repository(commit, _listed(name, commit, snapshot), is_online=False)


def _listed(name: HubName, commit: str, snapshot: Path) -> dict[str, int | None]:
    """The files of a commit as the cache knows them: all, where a client has listed them, else those that are here."""
    from huggingface_hub import get_cached_repo_tree
    from huggingface_hub.errors import CachedRepoTreeNotFoundError

    try:
        return {
            each.path: each.size for each in get_cached_repo_tree(name.repo, repo_type=name.repo_type, revision=commit)
        }
    except CachedRepoTreeNotFoundError:
        found = (file.relative_to(snapshot).as_posix() for file in sorted(snapshot.rglob("*")) if file.is_file())
        return dict.fromkeys(found)


def _missing(name: HubName) -> str:
    what = "data set" if name.kind is Kind.data else "model"
    near = _near(name)
    return f"there is no {what} {name.repo} on {site()}{near or ', or a private one (`hf auth login` shows it)'}"


def _near(name: HubName) -> str:
    """A name like it, of a folder here or a repository in the cache; "" where there is none."""
    prefix = f"{name.repo_type}s--"
    cached = [each.name.removeprefix(prefix).replace("--", "/") for each in cache_of(name).parent.glob(f"{prefix}*")]
    here = [str(each) for each in Path().glob("*/*") if each.is_dir()]
    names = [each for each in (*here, *cached) if each != name.repo]
    near = get_close_matches(name.repo, names, n=1, cutoff=0.75)
    return f" (did you mean {near[0]!r}?)" if near else ""


def way_to_fetch(name: HubName) -> str:
    """What a user types where the hub is to be reached, whose cache this machine may share."""
    kind = " --repo-type dataset" if name.kind is Kind.data else ""
    revision = f" --revision {name.revision}" if name.revision else ""
    return f"`hf download {name.repo}{kind}{revision}`, given where there is a network, fetches it into that cache"


def told(key: str, path: str, what: str) -> ConfigError:
    """Of a name that is nowhere; one that might have been meant as a path is told to be none first."""
    if path.startswith(PREFIX) or "@" in path or ":" in path:
        return ConfigError(f"{key}: {what}, got {path!r}")
    return ConfigError(f"{key}: no such file or folder, got {path!r}, and {what}")


def _note_commit(name: HubName, commit: str) -> None:
    """In the cache, where whoever is offline looks for it: refs/REVISION, as every client of the hub writes it."""
    if name.revision is not None and COMMIT.fullmatch(name.revision):
        return
    ref = cache_of(name) / "refs" / (name.revision or "main")
    ref.parent.mkdir(parents=True, exist_ok=True)
    ref.write_text(commit)


def cache_of(name: HubName) -> Path:
    from huggingface_hub import constants
    from huggingface_hub.file_download import repo_folder_name

    return Path(constants.HF_HUB_CACHE).expanduser() / repo_folder_name(repo_id=name.repo, repo_type=name.repo_type)


def snapshot_of(name: HubName) -> Path:
    """Where the cache has what it has of a name with a commit."""
    assert name.revision is not None
    return cache_of(name) / "snapshots" / name.revision


def site() -> str:
    from huggingface_hub import constants

    return constants.ENDPOINT


def _page(name: HubName) -> str:
    return f"datasets/{name.repo}" if name.kind is Kind.data else name.repo
