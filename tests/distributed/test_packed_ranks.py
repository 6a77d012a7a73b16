"""Bases in 4 bits that two processes share out under ZeRO 3: the bits, steps and files of one process."""

import importlib
import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import peft
import pytest
import torch
from transformers import AutoModelForCausalLM, BitsAndBytesConfig

from alignment.config.model import Quantization
from alignment.models.quantized import ASKED, keep_packing

FIRST = ("dpo",)
REST = ("sft", "reward", "bfloat16 dpo", "loftq", "made again")
IDS = torch.tensor([[5, 6, 7, 8, 2]])


@pytest.fixture(scope="module")
def ranks() -> ModuleType:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(Path(__file__).parent))
        return importlib.import_module("packed_ranks")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, ranks: ModuleType) -> Path:
    folder = tmp_path_factory.mktemp("packed")
    ranks.write_folder(folder)
    return folder


@pytest.mark.parametrize("names", [FIRST, pytest.param(REST, marks=pytest.mark.slow)])
def test_two_processes_are_one(
    names: tuple[str, ...], folder: Path, ranks: ModuleType, run_ranks: Callable[..., None]
) -> None:
    """Each has half of the bytes, what is gathered for a layer is gone behind it, a run goes on bit for bit, and it is
    saved as one process saves it, in every file."""
    run_ranks(Path(__file__).with_name("packed_ranks.py"), [str(folder), *names], processes=2)
    found: dict[str, Any] = json.loads((folder / "found.json").read_text())
    assert found["odd"] == [True, True]
    for name in names:
        assert [{key for key, holds in rank.items() if not holds} for rank in found[f"holds/{name}"]] == [set(), set()]
        model, _, steps = ranks.trained(name, folder, ranks.PLAIN)
        for own, plain in zip(found[f"steps/{name}"], steps, strict=True):
            assert own == pytest.approx(plain, rel=0.02 if name.startswith("bfloat16") else 1e-5, abs=1e-5), name
        kinds = [folder / kind / name for kind in ("sharded", "plain")]
        own, plain = ({str(path.relative_to(kind)): path for path in kind.rglob("*.*")} for kind in kinds)
        assert own.keys() == plain.keys() and "model.safetensors" in own
        assert [file for file in own if own[file].read_bytes() != plain[file].read_bytes()] == [], name
        if name in ("sft", "dpo", "loftq"):
            require_same_logits(folder / "sharded" / name, folder / "base", model)


def require_same_logits(folder: Path, base: Path, model: Any) -> None:
    """The whole model in transformers, and its adapter on the packed base in peft, beside the one that trained in one
    process."""
    settings = BitsAndBytesConfig(**ASKED[Quantization.nf4])
    packed = AutoModelForCausalLM.from_pretrained(base, quantization_config=settings)
    keep_packing(packed)
    merged = AutoModelForCausalLM.from_pretrained(folder)
    adapted = peft.PeftModel.from_pretrained(packed, folder / "adapter")
    model.eval()
    with torch.no_grad():
        own = model.hf(IDS).logits
        torch.testing.assert_close(merged(IDS).logits, own, rtol=1e-3, atol=1e-3)
        torch.testing.assert_close(adapted(IDS).logits, own, rtol=1e-3, atol=1e-3)
