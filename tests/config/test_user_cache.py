"""Where what can be had again is kept: never in the folder in which the command happens to be given."""

import os
import pwd
from pathlib import Path

import pytest

from alignment.config.hub import HubName, Kind, repository_folder
from alignment.config.user_cache import user_cache
from alignment.data import row_cache
from alignment.runs import contents


@pytest.mark.parametrize("asked", ["", "here", "./here", None])
def test_a_cache_that_is_not_set_or_relative_is_the_one_at_home(
    asked: str | None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    if asked is not None:
        monkeypatch.setenv("XDG_CACHE_HOME", asked)
    assert user_cache("rows") == tmp_path / ".cache" / "alignment" / "rows"
    monkeypatch.setenv("XDG_CACHE_HOME", "/elsewhere")
    assert user_cache("rows") == Path("/elsewhere/alignment/rows")


def test_a_user_without_a_home_has_a_folder_too(monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(uid: int) -> pwd.struct_passwd:
        raise KeyError(uid)

    monkeypatch.setattr(pwd, "getpwuid", unknown)
    monkeypatch.delenv("HOME", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    assert os.path.expanduser("~") == "~"
    hub = repository_folder(HubName("org/name", Kind.model)).parent
    assert {contents.cache_folder().parent, row_cache.cache_folder().parent, hub.parent} == {Path("/.cache/alignment")}
