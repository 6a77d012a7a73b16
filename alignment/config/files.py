"""Which files a path of data stands for: itself, or those that a pattern such as data/*.jsonl matches."""

import re
from glob import glob
from pathlib import Path

PATTERN = re.compile(r"[*?\[]")


def is_pattern(path: str) -> bool:
    """Whether a path is none itself, but what others are to match."""
    return PATTERN.search(path) is not None and not Path(path).exists()


def matched(path: str) -> list[str]:
    """The files of a path, by name: of a pattern what it matches, hidden files apart; of any other path itself."""
    return sorted(glob(path, recursive=True)) if is_pattern(path) else [path]
