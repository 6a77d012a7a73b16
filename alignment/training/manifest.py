"""One checkpoint on disk: the file of each rank, and a manifest with the size and the hash of every one of them.

The manifest hashes itself too, so whatever byte is lost or changed is noticed before anything of it is used.
"""

import hashlib
import json
import os
from collections.abc import Callable
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import IO, Any, cast

import torch

from alignment.runs.written import sync_folder

MANIFEST = "manifest.json"
BLOCK = 2**22  # bytes that are hashed at a time


class Damaged(ValueError):
    """A checkpoint that is not what was written; says in what."""


@dataclass(frozen=True, slots=True)
class File:
    """What was written under a name."""

    size: int
    sha256: str


@dataclass(frozen=True, slots=True)
class Manifest:
    step: int
    world_size: int
    zero: int | None
    """`distributed.zero` of the run that saved it."""
    files: dict[str, File]


def part_name(rank: int) -> str:
    return f"rank-{rank:05d}.pt"


def write_part(state: dict[str, Any], path: Path) -> File:
    """Tensors, numbers, strings, lists and dicts only: it is read without unpickling anything else."""
    with path.open("wb") as file:
        hashed = HashedFile(file.write)
        torch.save(state, cast(IO[bytes], hashed))
        if hashed.error is not None:
            raise hashed.error
        file.flush()
        os.fsync(file.fileno())
    return File(hashed.size, hashed.sha256.hexdigest())


def check_part(path: Path, written: File) -> None:
    """Raises:
    Damaged: the file is missing, or is not what the manifest says.
    """
    try:
        size = path.stat().st_size
        if size != written.size:
            raise Damaged(f"{path.name} is cut short: {size} of {written.size} bytes")
        with path.open("rb") as file:
            sha256 = hashlib.sha256()
            while block := file.read(BLOCK):
                sha256.update(block)
        if sha256.hexdigest() != written.sha256:
            raise Damaged(f"{path.name} has changed since it was written (its sha256 is another)")
    except FileNotFoundError as error:
        raise Damaged(f"{path.name} is missing") from error
    except OSError as error:
        raise Damaged(f"{path.name} cannot be read ({error.strerror})") from error


def load_part(path: Path) -> dict[str, Any]:
    """What a process saved, on the CPU."""
    state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    return state


def map_part(path: Path) -> dict[str, Any]:
    """The same, its tensors still on disk: they are read as they are used."""
    state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    return state


def write_manifest(folder: Path, manifest: Manifest) -> None:
    content = {"version": version("preference-alignment"), **asdict(manifest)}
    with (folder / MANIFEST).open("w") as file:
        file.write(json.dumps({**content, "sha256": content_digest(content)}, indent=1))
        file.flush()
        os.fsync(file.fileno())
    sync_folder(folder)


def read_manifest(folder: Path) -> Manifest:
    """Raises:
    Damaged: there is none, or it is not what was written.
    """
    try:
        content = json.loads((folder / MANIFEST).read_bytes())
    except FileNotFoundError as error:
        raise Damaged(f"{MANIFEST} is missing") from error
    except (OSError, ValueError) as error:
        raise Damaged(f"{MANIFEST} cannot be read") from error
    recorded = content.pop("sha256", None) if isinstance(content, dict) else None
    if recorded != content_digest(content):
        raise Damaged(f"{MANIFEST} has changed since it was written (its sha256 is another)")
    try:
        files = {name: File(**file) for name, file in content["files"].items()}
        return Manifest(content["step"], content["world_size"], content["zero"], files)
    except KeyError as error:
        raise Damaged(f"{MANIFEST} is of another version of this package: it has no {error}") from error


def content_digest(content: Any) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


class HashedFile:
    """Writes and hashes. torch makes of an error of `write` one that names no cause, so it is kept and raised later."""

    def __init__(self, write: Callable[[bytes], int]) -> None:
        self._write = write
        self.size = 0
        self.sha256 = hashlib.sha256()
        self.error: OSError | None = None

    def write(self, data: bytes) -> int:
        if self.error is None:
            try:
                self._write(data)
            except OSError as error:
                self.error = error
        self.sha256.update(data)
        self.size += len(data)
        return len(data)

    def flush(self) -> None:
        """torch asks for it; the file is flushed once, at the end."""
