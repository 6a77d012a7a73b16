"""The table of what a weight takes, in recipes/memory.md, against the tensors of models, engines and optimizers: the
figures are read from the page."""

import importlib
import json
import re
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from transformers import PreTrainedTokenizerBase

from alignment.config.distributed import Precision
from alignment.config.model import LoraConfig, ModelConfig, Quantization
from alignment.config.optimizer import UNSHARDED, OptimizerName
from alignment.config.train import TrainConfig
from alignment.distributed.placement import WHOLE
from alignment.models.heads import LanguageModel
from alignment.models.load import load_language_model, load_scalar_model, save_model
from alignment.training.parameter_groups import parameter_groups

ROOT = Path(__file__).parents[2]
HEADER = "|bytes a weight"
STAGES = (None, 1, 2, 3)  # of the columns
NONE = "–"  # where a stage does not go with it
FROZEN = {"frozen in float32": "frozen float32", "frozen in bfloat16, float16": "frozen"}
PACKED = {"frozen in `int8`": Quantization.int8, "frozen in `nf4`": Quantization.nf4}
CLOSE = 0.04  # what rounding on the page, scales of small blocks and what makes shares even come to


def rows_of(page: str) -> dict[str, list[str]]:
    """The table of a page: first cell -> the others."""
    lines = (ROOT / page).read_text().splitlines()
    first = next(number for number, line in enumerate(lines) if line.replace("| ", "|", 1).startswith(HEADER))
    found = {}
    for line in lines[first + 2 :]:
        if not line.startswith("|"):
            break
        name, *cells = (cell.strip() for cell in line.strip("|").split("|"))
        found[name] = cells
    return found


def bytes_of(cell: str, processes: int) -> float:
    """`8+12/N` for so many processes."""
    terms = [re.fullmatch(r"([\d.]+)(/N)?", term) for term in cell.split("+")]
    assert all(terms), cell
    return sum(float(term[1]) / (processes if term[2] else 1) for term in terms if term)


TABLE = rows_of("recipes/memory.md")
SHORT = rows_of("README.md")
TRAINED = {f"trains, `{name.value}`": name for name in OptimizerName if f"trains, `{name.value}`" in TABLE}


@pytest.fixture(scope="module")
def ranks() -> ModuleType:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(Path(__file__).parent))
        return importlib.import_module("bytes_ranks")


def test_every_row_is_measured_and_no_stage_is_left_open() -> None:
    assert TABLE.keys() == {*TRAINED, *FROZEN, *PACKED} and OptimizerName.adamw in TRAINED.values()
    for name, cells in TABLE.items():
        assert len(cells) == len(STAGES)
        whole = [cell == NONE for cell in cells]
        is_alone = TRAINED.get(name) in UNSHARDED
        is_int8 = PACKED.get(name) is Quantization.int8
        assert whole == [False, is_alone, is_alone, is_alone or is_int8], name


def test_the_readme_s_rows_are_the_page_s() -> None:
    """Which are measured below: of what trains, by optimizers, and of what does not, in each precision."""
    assert SHORT.items() <= TABLE.items()
    wanted = {f"trains, `{name.value}`" for name in (OptimizerName.adamw, OptimizerName.adamw_8bit, OptimizerName.sgd)}
    assert SHORT.keys() >= {*wanted, *FROZEN, *PACKED}


@pytest.mark.parametrize("name", TRAINED)
def test_what_trains_in_one_process(name: str, ranks: ModuleType) -> None:
    """A policy and a critic, in every precision."""
    wanted = bytes_of(TABLE[name][0], 1)
    kinds: Any = (load_language_model, load_scalar_model)
    is_first = TRAINED[name] is OptimizerName.adamw
    for load, precision in [(kind, each) for kind in kinds for each in Precision if each is not Precision.auto]:
        if is_first or (load, precision) == (load_language_model, Precision.bfloat16):
            assert ranks.in_one(TRAINED[name], precision, load) == pytest.approx(wanted, rel=CLOSE)


@pytest.mark.parametrize("lora", [LoraConfig(), LoraConfig(rank=2)], ids=["frozen", "base"])
def test_what_does_not_train_in_one_process(lora: LoraConfig, ranks: ModuleType) -> None:
    full, half = (bytes_of(TABLE[name][0], 1) for name in FROZEN)
    settings = ModelConfig(init=ranks.INIT, lora=lora)
    found = {each: ranks.frozen(ranks.distributed(None, each), settings) for each in Precision}
    del found[Precision.auto]
    assert found == {Precision.float32: full, Precision.bfloat16: half, Precision.float16: half}


@pytest.mark.parametrize("name", PACKED)
def test_a_base_that_is_packed(
    name: str, ranks: ModuleType, tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    save_model(load_language_model(ModelConfig(init=ranks.INIT), tokenizer, WHOLE), tokenizer, tmp_path)
    settings = ModelConfig(path=str(tmp_path), lora=LoraConfig(rank=2), quantization=PACKED[name])
    for cell in TABLE[name][:3]:
        found = ranks.frozen(ranks.distributed(None, Precision.bfloat16), settings)
        assert found == pytest.approx(bytes_of(cell, 2), rel=CLOSE)


def kept_whole(model: LanguageModel, name: OptimizerName, processes: int) -> int:
    """Bytes of gradients that the first process has under ZeRO 2, until a step's last pass, beside its share: DeepSpeed
    cuts each of the optimizer's groups into shares, and keeps that of a weight whole which ends beyond the share that
    it begins in."""
    found = 0
    for group in parameter_groups(model, TrainConfig(max_steps=4, optimizer=name)):
        sizes = [weight.numel() for weight in group.weights.values()]
        share, begins = -(-sum(sizes) // processes), 0
        for size in sizes:
            found += 4 * max(0, begins + size - share) if begins < share else 0
            begins += size
    return found


@pytest.mark.slow
def test_in_two_processes(ranks: ModuleType, run_ranks: Callable[..., None], tmp_path: Path) -> None:
    run_ranks(Path(__file__).with_name("bytes_ranks.py"), [str(tmp_path / "found.json")], processes=2)
    found = json.loads((tmp_path / "found.json").read_text())
    model = load_language_model(ModelConfig(init=ranks.INIT), ranks.load_tokenizer(ModelConfig(init=ranks.INIT)), WHOLE)
    inside = sum(p.numel() for p in ranks.linear(model))
    outside = sum(p.numel() for p in model.parameters()) - inside  # of embeddings adamw_8bit's states are float32
    for stage in STAGES[1:]:
        column, own = STAGES.index(stage), found[str(stage)]
        for row, name in TRAINED.items():
            if name in UNSHARDED:
                continue
            of_others = f"trains, `{(OptimizerName.adamw if name is OptimizerName.adamw_8bit else name).value}`"
            sizes = ((row, inside), (of_others, outside))
            wanted = sum(bytes_of(TABLE[each][column], 2) * number for each, number in sizes)
            wanted += kept_whole(model, name, 2) if stage == 2 else 0
            assert own[name.value] == pytest.approx(wanted, rel=CLOSE), (stage, name)
        full, half = (bytes_of(TABLE[name][column], 2) for name in FROZEN)
        assert (own["frozen float32"], own["frozen"], own["base"]) == (full, half, half)
        assert own["nf4"] == pytest.approx(bytes_of(TABLE["frozen in `nf4`"][column], 2), rel=CLOSE)
