"""A path that no file system takes, or that leads where the user may not look, is one line, whoever meets it first."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from alignment.cli.reach import within_reach
from alignment.config.errors import UserError

LONG = "long" * 75
GIVEN = [
    *(["run", LONG], ["run", f"{LONG}.yaml"], ["check", f"{LONG}.yaml"], ["data", "inspect", LONG]),
    *(["evaluate", LONG, "--data", "a.jsonl"], ["chat", LONG], ["score", LONG, "a.jsonl"], ["push", LONG, "name"]),
    *(["export", LONG], ["status", LONG], ["compare", LONG, LONG]),
    *(["run", "tiny_dpo", f"{key}={LONG}"] for key in ("model.path", "reference.path", "output_dir")),
    ["run", "tiny_dpo", "data=native", f"data.train.path={LONG}.jsonl", "data.eval.limit=null"],
    ["run", "tiny_dpo", f"model.chat_template={LONG}.jinja"],
]


@pytest.mark.parametrize("words", GIVEN, ids=[" ".join(words).replace(LONG, "LONG") for words in GIVEN])
def test_a_name_that_is_too_long_is_told(words: list[str], alignment: Callable[..., Any], tmp_path: Path) -> None:
    ended = alignment(*words)
    assert ended.code == 2 and len(ended.err) == 1
    assert ended.err[0].startswith("alignment: ") and LONG in ended.err[0]
    assert not list(tmp_path.iterdir())


def test_other_errors_of_files_are_not_the_user_s() -> None:
    with pytest.raises(UserError, match=r"^a/b is out of reach: Permission denied$"), within_reach():
        raise PermissionError(13, "Permission denied", "a/b")
    for error in (OSError(28, "No space left on device", "a"), PermissionError(13, "Permission denied")):
        with pytest.raises(type(error), match=error.strerror), within_reach():
            raise error
