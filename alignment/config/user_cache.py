"""The user's folder for what can be had again: whoever keeps something there has a part of it."""

import os
from pathlib import Path


def user_cache(part: str) -> Path:
    """Within `XDG_CACHE_HOME`; where that is not set, empty or relative, which its specification says to pass over,
    within `~/.cache`. A user without a home, as some containers have one, has the root folder for it, as in others."""
    asked, home = os.environ.get("XDG_CACHE_HOME", ""), os.path.expanduser("~")
    cache = Path(asked) if os.path.isabs(asked) else Path(home if os.path.isabs(home) else "/") / ".cache"
    return cache / "alignment" / part
