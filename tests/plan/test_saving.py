"""What a plan has of a model as it is saved: on a CPU a phase of its own, beside a GPU the memory of its machine."""

import pytest

from alignment.cli.plan import composed
from alignment.distributed.placement import WHOLE
from alignment.models.adapters import merged_state
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


def test_the_sums_of_weights_and_their_adapters_are_counted_as_they_are_made() -> None:
    """The tensors of the state dict that are no weights of the model."""
    settings = plan(LORA).config.model
    model = load_language_model(settings, load_tokenizer(settings), WHOLE)
    own = {weight.untyped_storage().data_ptr() for weight in model.hf.parameters()}
    made = [each for each in merged_state(model.hf, WHOLE).values() if each.untyped_storage().data_ptr() not in own]
    (size,) = saving(plan(LORA)).values()
    assert size == pytest.approx(sum(each.nbytes for each in made), rel=0.01)  # and norms, which have no adapter


def test_what_is_saved_as_it_lies_takes_nothing() -> None:
    assert saving(plan()) == {}


def test_beside_a_gpu_it_is_the_machine_s() -> None:
    found = plan(LORA, hardware=named("1x24GB"))
    assert saving(found) == {}
    assert host_of(found).saving > sum(saving(plan(LORA)).values())  # the embeddings too
