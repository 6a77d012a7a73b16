"""While a model replies, its weights are cast once for all tokens, or are held in what products compute in."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

STAGES = ("None", "2", "3")


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory, run_ranks: Callable[..., None]) -> dict[str, list[int]]:
    out = tmp_path_factory.mktemp("casts") / "found.json"
    run_ranks(Path(__file__).with_name("casts_ranks.py"), [str(out)], processes=1)
    return json.loads(out.read_text())


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize(("name", "once"), [("trained", 15), ("lora", 28), ("frozen", 0)])
def test_no_weight_is_cast_for_each_token(name: str, once: int, stage: str, found: dict[str, list[int]]) -> None:
    """`once`: two layers of seven products and a head, or an adapter's two for each of the fourteen."""
    few, many = found[f"{name}/{stage}"]
    assert few == many <= (0 if stage == "3" else once)
