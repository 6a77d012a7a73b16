"""What a plan has of a model as it is saved: on a CPU a phase of its own, beside a GPU the memory of its machine."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from alignment.cli.plan import composed
from alignment.distributed.placement import Whole
from alignment.models.adapters import merged_state
from alignment.models.allocations import Allocations
from alignment.models.load import load_language_model
from alignment.models.tokenizer import load_tokenizer
from alignment.plan.estimate import Plan, plan_of, planned
from alignment.plan.hardware import Hardware, named
from alignment.plan.host import host_of
from alignment.plan.roles import Counts

HERE = Hardware(1, "process on this machine", 10**12, is_gpu=False, flops=None, local=1)
LORA, COUNTS = "model.lora.rank=4", Counts()


def plan(*words: str, hardware: Hardware = HERE) -> Plan:
    return plan_of(planned(composed("tiny_dpo", ["batch.max_tokens=1024", *words], [], None)), hardware, COUNTS)


def saving(found: Plan) -> dict[str, float]:
    return {name: size for each in found.phases if each.name == "saving the model" for name, size in each.parts.items()}


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_the_sums_of_weights_and_their_adapters_are_counted_as_they_are_made(precision: str) -> None:
    """The tensors of the state dict that are no weights of the model, and what is beside them as the last is made."""
    words = (LORA, f"distributed.precision={precision}")
    settings, placement = plan(*words).config.model, Whole(getattr(torch, precision))
    model = load_language_model(settings, load_tokenizer(settings), placement)
    own = {weight.untyped_storage().data_ptr() for weight in model.hf.parameters()}
    with Allocations([*model.hf.parameters(), *model.hf.buffers()]) as alive:
        state = merged_state(model.hf, placement, dtype=model.saved_in)
    made = [each for each in state.values() if each.untyped_storage().data_ptr() not in own]
    found = saving(plan(*words))
    size = found["weights with their adapters"]
    assert size == pytest.approx(sum(each.nbytes for each in made), rel=0.01)  # and norms, which have no adapter
    assert sum(found.values()) == pytest.approx(alive.highest, rel=0.01)


def test_what_zero_3_gathers_is_counted(tmp_path: Path) -> None:
    """The embeddings, of two processes that have half of them each; they are among the copies already."""
    shape = {"model_type": "llama", "hidden_size": 64, "intermediate_size": 160, "num_hidden_layers": 6}
    (tmp_path / "config.json").write_text(json.dumps(shape | {"num_attention_heads": 4, "vocab_size": 2048}))
    words = ("model=pretrained_lora", LORA, f"model.path={tmp_path}", "distributed=zero3")
    alone, two = (saving(plan(*words, hardware=replace(HERE, processes=number, local=number))) for number in (1, 2))
    gathered = "a weight that is gathered"
    assert gathered not in alone and two[gathered] == 4 * 2048 * 64
    assert two["copies"] == alone["copies"] and two[gathered] <= two["copies"]


def test_what_is_saved_as_it_lies_takes_nothing() -> None:
    assert saving(plan()) == {}


def test_beside_a_gpu_it_is_the_machine_s() -> None:
    found = plan(LORA, hardware=named("1x24GB"))
    assert saving(found) == {}
    assert host_of(found).saving > sum(saving(plan(LORA)).values())  # the embeddings too


def test_an_adapter_that_is_left_apart_is_all_that_is_saved(tmp_path: Path) -> None:
    shape = {"model_type": "llama", "hidden_size": 64, "intermediate_size": 160, "num_hidden_layers": 6}
    (tmp_path / "config.json").write_text(json.dumps(shape | {"num_attention_heads": 4, "vocab_size": 2048}))
    words = ("model=pretrained_lora", LORA, f"model.path={tmp_path}")
    merged, apart = (host_of(plan(*words, f"model.lora.merge={how}")) for how in ("true", "false"))
    assert 0 < apart.saving < merged.saving / 2
