"""Products in 8 bits on a GPU that has them: those of their equations, for any number of tokens; and runs."""

import os
from typing import Any

import pytest
import torch
from transformers import PreTrainedTokenizerBase

from alignment.config.fp8 import Fp8
from alignment.config.model import ModelConfig
from alignment.distributed.placement import Whole
from alignment.distributed.precision import has_fp8
from alignment.models.load import load_language_model
from tests.models.test_fp8 import KINDS, by_hand

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(
        not (torch.cuda.is_available() and has_fp8(torch.device("cuda"))), reason="no GPU of compute capability 8.9"
    ),
]
SMALL = ("data.train.limit=96", "data.eval.limit=16", "train.max_steps=3", "train.eval_every=2")
INIT: dict[str, Any] = {"model_type": "qwen2", "hidden_size": 128, "intermediate_size": 352, "num_hidden_layers": 1}
INIT |= {"num_attention_heads": 4, "num_key_value_heads": 2}


@pytest.mark.usefixtures("torchao")
@pytest.mark.parametrize("tokens", [1, 16, 37, 1000])
@pytest.mark.parametrize("how", KINDS)
def test_products_are_those_of_their_equations(how: Fp8, tokens: int, tokenizer: PreTrainedTokenizerBase) -> None:
    torch.manual_seed(tokens)
    place = Whole(torch.bfloat16, torch.device("cuda"))
    layer = load_language_model(ModelConfig(init=INIT, fp8=how), tokenizer, place).hf.model.layers[0].mlp.up_proj
    x, g = (torch.randn(tokens, size, device="cuda", dtype=torch.bfloat16) for size in (128, 352))
    inputs = x.float().requires_grad_()
    with torch.autocast("cuda", torch.bfloat16):
        output = layer(inputs)
    assert output.dtype == torch.bfloat16 and layer.weight.dtype == torch.float32
    output.backward(g)
    wanted = by_hand(how, x, layer.weight.detach(), g)
    for got, want in zip((output, inputs.grad, layer.weight.grad), wanted, strict=True):
        assert (got.detach().double() - want).norm() < 0.01 * want.norm()


@pytest.mark.parametrize("task", ["sft", "dpo", "reward", "ppo"])
@pytest.mark.parametrize("how", KINDS)
def test_a_few_steps(task, how, run, torchao, monkeypatch, tmp_path):
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, [torchao, os.environ.get("PYTHONPATH")])))
    asked = (*SMALL, "distributed.precision=bfloat16", f"model.fp8={how.value}")
    rows = run(tmp_path / "out", f"tiny_{task}", *asked)
    assert [row["step"] for row in rows] == [1, 2, 3]
