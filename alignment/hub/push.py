"""A model's folder to a repository on the hub, as one commit."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from alignment.config.errors import ConfigError, UserError
from alignment.config.folders import ADAPTER_FILE, MODEL_FILE, read_json
from alignment.hub.ask import site

WEIGHTS = ("*.safetensors", "*.bin")


@dataclass(frozen=True, slots=True)
class Pushed:
    repo: str
    """The whole name."""
    url: str
    """Of the commit."""
    is_private: bool


def push(folder: Path, repo: str, *, private: bool, branch: str | None, message: str) -> Pushed:
    """Upload what lies in the folder, and make the repository and the branch where there are none.

    Args:
        repo: `name`, of this user, or `org/name`.
        private: whether a repository that is made is for its owners alone; one that is there stays as it is.
        branch: None: main.

    Raises:
        UserError: the folder is no model, or the hub refuses or does not answer.
    """
    require_model(folder)
    from huggingface_hub import CommitOperationAdd, HfApi, constants, get_token
    from huggingface_hub.errors import OfflineModeIsEnabled
    from huggingface_hub.utils import validate_repo_id

    with _told(repo):
        validate_repo_id(repo)
        if constants.HF_HUB_OFFLINE:  # which a token would not help
            raise OfflineModeIsEnabled
        if get_token() is None:
            raise UserError(f"a token that may write is needed for {site()}: `hf auth login`, or HF_TOKEN")
        api = HfApi()
        name = api.create_repo(repo, private=private or None, exist_ok=True).repo_id
        if branch is not None:
            api.create_branch(name, branch=branch, exist_ok=True)
        files = [CommitOperationAdd(path, content) for path, content in _files(folder)]
        url = str(api.create_commit(name, files, commit_message=message, revision=branch).commit_url)
        return Pushed(name, url, bool(api.model_info(name).private))


def require_model(folder: Path) -> None:
    """Raises:
    ConfigError: the folder holds no model, whole or an adapter.
    """
    if not any((folder / file).is_file() for file in (MODEL_FILE, ADAPTER_FILE)):
        raise ConfigError(f"a model's folder holds {MODEL_FILE} or {ADAPTER_FILE}, got {str(folder)!r}")
    if not any(each for pattern in WEIGHTS for each in folder.glob(pattern)):
        raise ConfigError(f"a model's folder holds weights ({', '.join(WEIGHTS)}), got {str(folder)!r}")


def _files(folder: Path) -> Iterator[tuple[str, str | bytes]]:
    """(path there, path here or content) of every file but the hidden ones."""
    for file in sorted(folder.rglob("*")):
        path = file.relative_to(folder)
        if file.is_file() and not any(part.startswith(".") for part in path.parts):
            yield path.as_posix(), _adapter_config(file) if file.name == ADAPTER_FILE else str(file)


def _adapter_config(file: Path) -> bytes:
    """Of an adapter, whose base others do not have where it is here: its name is left of it."""
    settings = read_json(file, "push")
    base = settings.get("base_model_name_or_path")
    if isinstance(base, str) and Path(base).is_absolute():
        settings["base_model_name_or_path"] = Path(base).name
    return (json.dumps(settings, indent=2, sort_keys=True) + "\n").encode()


@contextmanager
def _told(repo: str) -> Iterator[None]:
    """Inside, what the hub refuses is told in one line."""
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, HTTPError, OfflineModeIsEnabled

    try:
        yield
    except OfflineModeIsEnabled as error:
        raise UserError("nothing is pushed offline: leave HF_HUB_OFFLINE out of the environment") from error
    except HFValidationError as error:
        raise ConfigError(f"REPO must be name or org/name, of letters, digits, -, _ and ., got {repo!r}") from error
    except HfHubHTTPError as error:
        raise UserError(f"{_refusal(error.response.status_code, repo)}: {_words(error)}") from error
    except HTTPError as error:
        raise UserError(f"{site()} cannot be reached ({type(error).__name__})") from error
    except ValueError as error:  # a card with front matter that the hub cannot read
        if isinstance(error, UserError):
            raise
        raise UserError(f"{site()} does not take what is pushed to {repo}: {' '.join(str(error).split())}") from error


def _refusal(status: int, repo: str) -> str:
    if status == 401:
        return f"{site()} does not know your token (HTTP 401), so `hf auth login`, or another HF_TOKEN"
    if status == 403:
        way = "name a repository of your own, or a token with the right to write"
        return f"your token may not write to {repo} (HTTP 403), which is another's, or it may only read; {way}"
    return f"{site()} refuses {repo} (HTTP {status})"


def _words(error: Exception) -> str:
    """The hub's own, which come last."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__
