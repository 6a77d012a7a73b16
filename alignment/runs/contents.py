"""What files hold, as a short name: the same bytes have the same name, wherever and whenever they were written.

A large file is read once: its name is kept in the user's cache, by path, size and the times of its change.
"""

import json
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import xxhash

from alignment.config.user_cache import user_cache
from alignment.runs.folder import RunFolder
from alignment.runs.written import whole_file
from alignment.terminal import say, say_once

BLOCK = 2**22  # bytes that are hashed at a time
KEPT_FROM = 2**20  # bytes: a smaller file is read as fast as a note of it
SAID_FROM = 2**32  # bytes that are worth a word, for they take seconds
SETTLED_NS = 2 * 10**9  # a file younger than that may change again within one tick of its file system's clock
THREADS = 8
CARD, OWN_TAG, CARD_HEAD = "README.md", '"preference-alignment"', 2000  # a card's file, our tag, how far down at most

Note = tuple[int, int, int, int]


def digest(path: Path) -> str:
    """Of a file's bytes; of a folder, of the names and bytes of all its files but the hidden ones.

    Raises:
        OSError: a file cannot be read.
    """
    if not path.is_dir():
        return _digests([path])[0]
    files = _visible(path)
    return _of_names([str(file.relative_to(path)) for file in files], _digests(files))


def run_digest(folder: Path) -> str:
    """Of what others read in a run's folder: its model and its metrics."""
    model, metrics = RunFolder(folder).read_elsewhere()
    files = [*_visible(model), *(file for file in [metrics] if file.exists())]
    return _of_names([str(file.relative_to(folder)) for file in files], _digests(files))


def cache_folder() -> Path:
    return user_cache("contents")


def is_own_card(file: Path) -> bool:
    """Whether it is a model's card that a run has written, which says what was measured and nothing that is read."""
    if file.name != CARD:
        return False
    with file.open(errors="replace") as opened:
        return OWN_TAG in opened.read(CARD_HEAD)


def _visible(folder: Path) -> list[Path]:
    """Hidden ones are what tools note beside the files: a download's times, an editor's copies; and cards of our own
    are left out, so that equal models are equal whatever was measured of them."""
    found = (path for path in folder.rglob("*") if path.is_file() and not is_own_card(path))
    return sorted(path for path in found if not any(part.startswith(".") for part in path.relative_to(folder).parts))


def _of_names(names: list[str], digests: list[str]) -> str:
    return xxhash.xxh3_128(json.dumps([names, digests]).encode()).hexdigest()


def _digests(files: list[Path]) -> list[str]:
    notes = [_note(file) for file in files]
    known = [_kept(file, note) for file, note in zip(files, notes, strict=True)]
    unread = [number for number, name in enumerate(known) if name is None]
    num_bytes = sum(notes[number][0] for number in unread)
    if num_bytes >= SAID_FROM:
        say(f"reading {num_bytes / 1e9:.0f} GB of {files[unread[0]].parent} once, to know them again")
    with ThreadPoolExecutor(THREADS) as pool:
        read = dict(zip(unread, pool.map(hashed, (files[number] for number in unread)), strict=True))
    _keep([(files[number], notes[number], name) for number, name in read.items()])
    return [read[number] if name is None else name for number, name in enumerate(known)]


def hashed(file: Path) -> str:
    whole = xxhash.xxh3_128()
    with file.open("rb") as opened:
        while block := opened.read(BLOCK):
            whole.update(block)
    return whole.hexdigest()


def _note(file: Path) -> Note:
    """What changes when the bytes do: the time of change cannot be set back, as that of modification can."""
    known = file.stat()
    return known.st_size, known.st_mtime_ns, known.st_ctime_ns, known.st_ino


def noted_at(file: Path) -> Path:
    return cache_folder() / xxhash.xxh3_128(str(file.resolve()).encode(errors="surrogateescape")).hexdigest()


def _kept(file: Path, note: Note) -> str | None:
    """The name that was kept for just this state of the file."""
    if note[0] < KEPT_FROM:
        return None
    try:
        *noted, name = json.loads(noted_at(file).read_bytes())
    except (OSError, ValueError):  # no note, or none that can be read
        return None
    return str(name) if tuple(noted) == note else None


def _keep(read: list[tuple[Path, Note, str]]) -> None:
    for file, note, name in read:
        if note[0] < KEPT_FROM or time.time_ns() - max(note[1:3]) < SETTLED_NS:
            continue
        place = noted_at(file)
        try:
            place.parent.mkdir(parents=True, exist_ok=True)
            with whole_file(place) as beside:
                beside.write_text(json.dumps([*note, name]))
        except OSError as error:
            say_once(f"{place.parent} cannot be written ({error.strerror}): the next run reads its inputs again")
            return
