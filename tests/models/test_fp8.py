"""Linear layers that multiply in 8 bits: their equations, what does not depend on how rows are packed, plain weights.

A CPU rounds as a GPU does, by torchao, and multiplies in float32.
"""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedTokenizerBase

from alignment.config.batch import Layout
from alignment.config.errors import ConfigError
from alignment.config.fp8 import Fp8
from alignment.config.generation import GenerationConfig
from alignment.config.model import ModelConfig
from alignment.data.pack import Batch, pack
from alignment.data.tokenize import Example
from alignment.distributed.placement import WHOLE, Whole
from alignment.generation.generate import TransformersGenerator
from alignment.models.fp8 import fp8_layers
from alignment.models.heads import LanguageModel
from alignment.models.load import load_frozen_language_model, load_language_model, load_scalar_model, save_model
from alignment.models.readout import token_logprobs
from alignment.models.weight_dtype import forwards_in_float32
from alignment.rl.reference import build_reference

KINDS = [each for each in Fp8 if each is not Fp8.none]
E4M3, E5M2 = torch.float8_e4m3fn, torch.float8_e5m2


@pytest.fixture
def made(fp8_on_cpu: None, tiny_init: dict[str, Any], tokenizer: PreTrainedTokenizerBase) -> Any:
    def build(how: Fp8, **more: Any) -> LanguageModel:
        torch.manual_seed(0)
        init = {**tiny_init, "initializer_range": 0.1, **more.pop("init", {})}
        return load_language_model(ModelConfig(init=init, fp8=how, **more), tokenizer, WHOLE).train()

    return build


def rounded(x: Tensor, dtype: torch.dtype, dim: int | None, *, is_power: bool) -> Tensor:
    """As 8 bits have it, in float64; the largest of each scale's numbers is the largest that there is."""
    largest = x.abs().max() if dim is None else x.abs().amax(dim, keepdim=True)
    scale = (torch.finfo(dtype).max / largest.double()).float()
    scale = scale.log2().floor().exp2() if is_power else scale
    return (x.float() * scale).to(dtype).double() / scale.double()


def by_hand(how: Fp8, x: Tensor, w: Tensor, g: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Output, and the gradients of inputs [T, I] and weight [O, I], for an output's gradient `g` [T, O]."""
    if how is Fp8.tensorwise:
        x, w, g = (rounded(t, d, None, is_power=False) for t, d in ((x, E4M3), (w, E4M3), (g, E5M2)))
        return x @ w.T, g @ w, g.T @ x

    def rows(t: Tensor, dim: int | None) -> Tensor:
        return rounded(t, E4M3, dim, is_power=True)

    output = rows(x, 1) @ rows(w, 1).T
    if how is Fp8.rowwise:
        return output, rows(g, 1) @ rows(w, 0), rows(g, 0).T @ rows(x, 0)
    return output, rows(g, 1) @ rows(w, None), g.double().T @ x.double()


@pytest.mark.parametrize("how", KINDS)
def test_a_layer_is_its_equations(how: Fp8, made: Any) -> None:
    """With as many tokens as there happen to be, 37, and a bias."""
    layer = made(how, init={"model_type": "qwen2"}).hf.model.layers[0].self_attn.q_proj
    x, g = (torch.randn(37, 32) * torch.randn(37, 1).exp() for _ in range(2))
    x.requires_grad_()
    layer.bias.data.normal_()
    output = layer(x)
    output.backward(g)
    wanted, of_input, of_weight = by_hand(how, x.detach(), layer.weight.detach(), g)
    close = {"rtol": 1e-4, "atol": 1e-4}
    torch.testing.assert_close(output.double(), wanted + layer.bias.double(), **close)
    torch.testing.assert_close(x.grad.double(), of_input, **close)
    torch.testing.assert_close(layer.weight.grad.double(), of_weight, **close)
    torch.testing.assert_close(layer.bias.grad.double(), g.double().sum(0), **close)
    assert (output.double() - layer.bias - x.double() @ layer.weight.double().T).abs().max() > 1e-3


@pytest.mark.parametrize("how", KINDS)
def test_layers_of_the_body_are_the_same_weights_under_the_same_names(how: Fp8, made: Any) -> None:
    plain, model = made(Fp8.none), made(how)
    ours, theirs = model.state_dict(), plain.state_dict()
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert all(type(p) is torch.nn.Parameter for p in model.parameters())
    names = {name for name, module in model.named_modules() if module in fp8_layers(model)}
    parts = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
    assert {name.rpartition(".")[2] for name in names} == set(parts) and len(names) == 2 * len(parts)
    assert fp8_layers(plain) == []


def learned(model: LanguageModel, batch: Batch, weights: Tensor, *, half: bool) -> tuple[Tensor, dict[str, Tensor]]:
    """Log-probs, and the gradient of their weighted sum."""
    model.zero_grad()
    with torch.autocast("cpu", torch.bfloat16, enabled=half):
        logprobs = token_logprobs(model, batch)
    (logprobs * weights).sum().backward()
    return logprobs.detach(), {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def packed(pairs: list[Example], rows: list[int]) -> Batch:
    return pack([pairs[row] for row in rows], rows, layout=Layout.shared, pad_id=0)


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("how", KINDS)
def test_a_model_learns_as_in_bfloat16(how: Fp8, checkpointing: bool, made: Any, pairs: list[Example]) -> None:
    batch = packed(pairs, [0, 1, 2])
    assert batch.input_ids.numel() % 16
    weights = torch.linspace(-1, 1, len(batch.targets))
    plain, near = learned(made(Fp8.none), batch, weights, half=True)
    found, gradients = learned(made(how, gradient_checkpointing=checkpointing), batch, weights, half=True)
    assert 0 < (found - plain).abs().mean() < 0.1
    assert gradients.keys() == near.keys()
    for name, gradient in gradients.items():
        assert gradient.dtype == torch.float32
        assert torch.cosine_similarity(gradient.flatten(), near[name].flatten(), dim=0) > 0.97, name


@pytest.mark.parametrize("how", KINDS)
def test_what_depends_on_the_rows_of_a_pass(how: Fp8, made: Any, pairs: list[Example]) -> None:
    """With scales that are powers of 2 nothing does, neither a log-prob nor a gradient."""
    model, rows = made(how), [0, 1, 2]
    whole = packed(pairs, rows)
    weights = torch.linspace(-1, 1, len(whole.targets))
    together, gradient = learned(model, whole, weights, half=False)
    apart, first, sums = list[Tensor](), 0, dict[str, Tensor]()
    for row in rows:
        batch = packed(pairs, [row])
        found, each = learned(model, batch, weights[first : first + len(batch.targets)], half=False)
        first += len(batch.targets)
        apart.append(found)
        sums = {name: sums.get(name, torch.zeros(())) + value for name, value in each.items()}
    difference = (torch.cat(apart) - together).abs().max()
    size = max(float((sums[name] - value).norm() / value.norm()) for name, value in gradient.items())
    assert (difference < 1e-4) == (how is not Fp8.tensorwise)
    assert (size < 1e-4) == (how is not Fp8.tensorwise)


def test_what_is_asked_of_float32_is_not_rounded(made: Any, pairs: list[Example]) -> None:
    batch, found = packed(pairs, [0, 3]), []
    for how in (Fp8.none, Fp8.rowwise):
        model = made(how)
        with torch.no_grad(), forwards_in_float32(model, WHOLE):
            found.append(token_logprobs(model, batch))
    assert torch.equal(*found)
    with torch.no_grad():
        assert not torch.equal(token_logprobs(model, batch), found[0])


@pytest.mark.usefixtures("fp8_on_cpu")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_a_frozen_copy_reads_as_the_model_that_trains(
    dtype: torch.dtype,
    tiny_init: dict[str, Any],
    tokenizer: PreTrainedTokenizerBase,
    pairs: list[Example],
    tmp_path: Path,
) -> None:
    """So that KL is 0 at first: held in bfloat16 where that has the weights to the bit."""
    torch.manual_seed(0)
    first = load_language_model(ModelConfig(init=tiny_init), tokenizer, WHOLE)
    first.saved_in = dtype
    save_model(first, tokenizer, tmp_path)
    config, place = ModelConfig(path=str(tmp_path), fp8=Fp8.rowwise), Whole(torch.bfloat16)
    model, another = load_language_model(config, tokenizer, place), load_frozen_language_model(config, tokenizer, place)
    copy: Any = build_reference(model).model
    assert [each.hf.model.layers[0].mlp.up_proj.weight.dtype for each in (another, copy)] == [dtype, dtype]
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        found = [token_logprobs(each.eval(), packed(pairs, [0, 1])) for each in (model, another, copy)]
    assert torch.equal(found[0], found[1]) and torch.equal(found[0], found[2])


def test_replies_are_drawn_as_without(
    made: Any, engine_of: Any, tokenizer: PreTrainedTokenizerBase, pairs: list[Example]
) -> None:
    replies = []
    for how in (Fp8.none, Fp8.rowwise):
        model, config = made(how), GenerationConfig(max_new_tokens=8, temperature=1.0)
        generator = TransformersGenerator(model, tokenizer, config)
        with generator.reading(engine_of(model)):
            drawn = generator.generate([row.prompt_ids for row in pairs], keys=range(len(pairs)), replies=2, seed=0)
        replies.append([reply.ids.tolist() for row in drawn.replies for reply in row])
    assert replies[0] == replies[1]
    assert {type(layer).__name__ for layer in fp8_layers(model)} == {"Float8Linear"}


def test_what_is_saved_loads_in_transformers(made: Any, tokenizer: PreTrainedTokenizerBase, tmp_path: Path) -> None:
    model = made(Fp8.tensorwise)
    save_model(model, tokenizer, tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    own = dict(model.hf.named_parameters())
    assert own.keys() == dict(loaded.named_parameters()).keys()
    assert all(torch.equal(own[name], p) for name, p in loaded.named_parameters())


@pytest.mark.usefixtures("fp8_on_cpu")
def test_a_scalar_head_stays_as_it_is(tiny_init: dict[str, Any], tokenizer: PreTrainedTokenizerBase) -> None:
    model = load_scalar_model(ModelConfig(init=tiny_init, fp8=Fp8.rowwise), tokenizer, WHOLE)
    assert len(fp8_layers(model)) == 14 and type(model.hf.score) is torch.nn.Linear


@pytest.mark.parametrize(
    ("init", "message"),
    [
        (
            {"model_type": "gpt2", "n_embd": 32, "n_layer": 1, "n_head": 2},
            "model without linear layers, got 'rowwise' for GPT2LMHeadModel",
        ),
        (
            {"hidden_size": 40, "num_attention_heads": 5, "num_key_value_heads": 5},
            "of 16, got 'rowwise' for LlamaForCausalLM with layers.0.self_attn.q_proj of 40 to 40",
        ),
        (
            {"model_type": "mixtral", "num_local_experts": 2},
            "mixture of experts, .*, got 'rowwise' for MixtralForCausalLM",
        ),
    ],
)
@pytest.mark.usefixtures("fp8_on_cpu")
def test_models_that_do_not_have_such_layers(
    init: dict[str, Any], message: str, tiny_init: dict[str, Any], tokenizer: PreTrainedTokenizerBase
) -> None:
    config = ModelConfig(init=init if "n_embd" in init else tiny_init | init, fp8=Fp8.rowwise)
    with pytest.raises(ConfigError, match=f"model.fp8 must be none for a .*{message}"):
        load_language_model(config, tokenizer, WHOLE)
