"""A plan of products in 8 bits: what a pass is counted to take, what is in 8 bits of a step, and where it cannot be."""

from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from alignment.cli.plan import composed
from alignment.config.batch import Layout
from alignment.config.errors import ConfigError
from alignment.config.fp8 import Fp8
from alignment.config.model import ModelConfig
from alignment.data.pack import Batch, pack
from alignment.data.records import Source
from alignment.data.tokenize import Example
from alignment.distributed.placement import Whole
from alignment.models import footprint
from alignment.models.allocations import peaks_of
from alignment.models.counted import Part, Phase, of_pass
from alignment.models.footprint import Role, Rows, counted_of
from alignment.models.heads import LanguageModel
from alignment.models.prepare import prepared
from alignment.plan.estimate import Plan, plan_of, planned
from alignment.plan.hardware import named
from alignment.plan.page import lines_of
from alignment.plan.roles import Counts
from alignment.plan.work import work_of

SIZES: dict[str, Any] = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
SIZES |= {"num_key_value_heads": 1, "vocab_size": 256}
LINEAR = 32 * 32 * 2 + 32 * 16 * 2 + 3 * 32 * 64  # numbers in the weights of the layers
FEW = Rows(1, 127, 2)
HALF = torch.bfloat16


def settings(how: Fp8) -> ModelConfig:
    return ModelConfig(init={"model_type": "llama", **SIZES}, fp8=how)


def few_rows() -> Batch:
    ids = [np.arange(length, dtype=np.int32) + 5 for length in (FEW.prompt, FEW.completion)]
    example = Example(ids[0], (ids[1],) * FEW.count, None, Source("test", 1), (True,) * FEW.count)
    return pack([example], range(1), layout=Layout.shared, pad_id=0)


@pytest.fixture
def _vocabulary_of_the_config(torchao: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(footprint, "load_tokenizer", lambda _: range(256))


@pytest.mark.usefixtures("_vocabulary_of_the_config")
@pytest.mark.parametrize("how", [Fp8.rowwise, pytest.param(Fp8.tensorwise, marks=pytest.mark.slow)])
def test_it_is_what_a_pass_is_counted_to_take(how: Fp8) -> None:
    """With numbers, which a CPU multiplies too, slow as it is. No weight is copied in bfloat16 but the head; what waits
    for the backward pass is as much a token as without, inputs in bfloat16."""
    torch.manual_seed(0)
    hf = AutoModelForCausalLM.from_config(AutoConfig.for_model("llama", **SIZES), attn_implementation="sdpa")
    model, batch = LanguageModel(prepared(hf, settings(how), Whole(HALF)), Whole(HALF)), few_rows()
    alive = of_pass(peaks_of(model, batch, HALF, is_trained=True))
    plain, found = (
        counted_of(Role("model.init", settings(each), is_trained=True), FEW, HALF, Layout.shared)
        for each in (Fp8.none, how)
    )
    planned_alive = of_pass(found.passes[0] + found.passes[1] * batch.input_ids.numel())
    last = Phase.backward_of_embeddings  # in which nothing multiplies, and far less is alive
    assert planned_alive[:last] == pytest.approx(alive[:last], rel=0.05)
    assert planned_alive[last] == pytest.approx(alive[last], rel=0.1) and alive[last] < 0.5 * alive.max()
    copies = [each.passes[0, Phase.forward, Part.copies] for each in (plain, found)]
    assert copies == pytest.approx([2 * LINEAR, 0], abs=1)
    assert [each.num_fp8 for each in (plain, found)] == [0, LINEAR]
    kept = [each.passes[1, Phase.read_out].sum() for each in (plain, found)]
    assert kept[0] == pytest.approx(kept[1])


def plan(how: str, task: str, *words: str, on: str = "1xH100-80GB") -> Plan:
    return plan_of(planned(composed(f"tiny_{task}", [f"model.fp8={how}", *words], [], None)), named(on), Counts())


@pytest.mark.slow
@pytest.mark.usefixtures("torchao")
@pytest.mark.parametrize(
    ("how", "products"),
    [("none", 0), ("rowwise", 6), ("rowwise_with_gw_hp", 4)],
)
def test_products_in_8_bits_take_half_the_time(how: str, products: int) -> None:
    """Of three a weight, of 2 FLOPs a token each; the third, its gradient, may be in bfloat16."""
    made = plan(how, "sft")
    work, size = work_of(made), made.config.model.init
    hidden, middle, layers = size["hidden_size"], size["intermediate_size"], size["num_hidden_layers"]
    weights = layers * (4 * hidden * hidden + 3 * hidden * middle)
    assert work is not None and work.flops == 6 * work.tokens * made.roles[0].counted.num_trained
    assert work.flops_fp8 == work.tokens * products * weights
    assert work.seconds(made, 0.5) == pytest.approx((work.flops - work.flops_fp8 / 2) / (0.5 * 989e12))
    line = next(each for each in lines_of("tiny_sft", made, 0.5) if each.startswith("a step of"))
    assert ("of them in 8 bits" in line) == (products > 0)


@pytest.mark.slow
@pytest.mark.usefixtures("torchao")
def test_replies_are_drawn_in_bfloat16() -> None:
    """With a copy of all weights, which autocast keeps, and none of what policy and critic read and learn from."""
    plain, eight = (plan(how, "ppo") for how in ("none", "rowwise"))
    drawn = [next(each for each in made.phases if each.name == "drawing replies").parts for made in (plain, eight)]
    assert drawn[0] == pytest.approx(drawn[1])
    whole, in_fp8 = work_of(plain), work_of(eight)
    assert whole is not None and in_fp8 is not None and whole.flops == in_fp8.flops
    drawing = 2 * in_fp8.tokens * eight.roles[0].counted.num_fp8
    assert 0 < in_fp8.flops_fp8 < in_fp8.flops - drawing


@pytest.mark.usefixtures("torchao")
def test_it_is_refused_for_cards_that_have_none() -> None:
    rule = r"model.fp8 must be none but for cards that multiply in 8 bits \(H100-80GB, .*, got 'rowwise' for A100-80GB"
    with pytest.raises(ConfigError, match=rule):
        plan("rowwise", "sft", on="1xA100-80GB")
