"""Models sharded among two processes as they are read: the same weights, losses and files as in one process."""

import importlib
import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

MODELS = (
    "policy",
    "new head",
    "scalar",
    "foreign head",
    "lora",
    "saved adapter",
    "pissa",
    "whole modules",
    "bfloat16 whole modules",
    "lora, new head",
    "experts",
    "grown",
    "grown, tied",
    "bfloat16 lora, grown",
    "bfloat16 lora",
)
FROZEN = ("bfloat16", "bfloat16 policy")


@pytest.fixture(scope="module")
def ranks() -> ModuleType:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(Path(__file__).parent))
        return importlib.import_module("sharded_ranks")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, ranks: ModuleType) -> Path:
    folder = tmp_path_factory.mktemp("sharded")
    ranks.write_folders(folder)
    return folder


@pytest.fixture(scope="module")
def found(folder: Path, run_ranks: Callable[..., None]) -> dict[str, Any]:
    run_ranks(Path(__file__).with_name("sharded_ranks.py"), [str(folder)], processes=2)
    return json.loads((folder / "found.json").read_text())


@pytest.mark.parametrize("name", [*MODELS, *FROZEN])
def test_each_process_has_its_share_of_the_same_model(name: str, found: dict[str, Any]) -> None:
    """Never more than the one largest weight is whole: neither while reading nor for the checks nor for a copy."""
    for rank in found[f"loaded/{name}"]:
        assert {key for key, holds in rank.items() if not holds} == set()


@pytest.mark.parametrize("name", MODELS)
def test_it_trains_as_in_one_process(name: str, found: dict[str, Any], folder: Path, ranks: ModuleType) -> None:
    _, _, steps = ranks.trained(name, folder, ranks.PLAIN)
    for own, plain in zip(found[f"steps/{name}"], steps, strict=True):
        assert own == pytest.approx(plain, rel=0.02 if name.startswith("bfloat16") else 1e-5, abs=1e-5)


@pytest.mark.parametrize("name", MODELS)
def test_it_is_saved_as_one_process_saves_it(name: str, found: dict[str, Any], folder: Path) -> None:
    """Every file, bit for bit: weights, config, tokenizer, adapter."""
    kinds = [folder / kind / name for kind in ("sharded", "plain")]
    own, plain = ({str(path.relative_to(kind)): path for path in kind.rglob("*.*")} for kind in kinds)
    index = "model.safetensors.index.json"
    assert own.keys() == plain.keys() and (index if name == "policy" else "model.safetensors") in own
    assert [file for file in own if own[file].read_bytes() != plain[file].read_bytes()] == []


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("lacking", "got no"),
        ("misshapen", "size mismatch for"),
        ("no number", "got nan or inf in"),
        ("unread", "got none for 1 that would be left out,"),
    ],
)
def test_a_broken_folder_is_told_on_all_ranks(
    name: str, said: str, found: dict[str, Any], folder: Path, ranks: ModuleType
) -> None:
    first, second = found[f"problem/{name}"]
    assert first == second and f"{said} model.layers.1.mlp.up_proj.weight" in first and "\n" not in first
    if name != "misshapen":
        assert first == ranks.problem(name, folder, ranks.PLAIN)
