"""Products in 8 bits under ZeRO: as in one process without."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest


@pytest.mark.slow
def test_two_processes_learn_as_one(torchao: str, run_ranks: Callable[..., None], tmp_path: Path) -> None:
    """But for gradients that cross in bfloat16."""
    found = {}
    for processes, stages in ((1, ["none"]), (2, ["0", "1", "2"])):
        out = tmp_path / f"{processes}.json"
        run_ranks(Path(__file__).with_name("fp8_ranks.py"), [torchao, str(out), *stages], processes=processes)
        found |= json.loads(out.read_text())
    wanted = found.pop("none")
    assert sorted(found) == ["0", "1", "2"]
    for steps in found.values():
        for one, step in zip(wanted, steps, strict=True):
            assert step == pytest.approx(one, rel=0.01)
