"""The load-balancing loss of a mixture of experts: transformers' own, in every layout, where a weight is set."""

from typing import Any

import pytest
import torch
from transformers import AutoConfig, PreTrainedTokenizerBase

from alignment.config.batch import Layout
from alignment.config.errors import ConfigError
from alignment.config.model import ModelConfig
from alignment.data.pack import pack
from alignment.data.tokenize import Example
from alignment.distributed.placement import WHOLE
from alignment.losses import CrossEntropyLoss
from alignment.models.heads import LanguageModel
from alignment.models.load import load_language_model
from alignment.models.readout import token_logprobs
from alignment.models.routers import router_weight
from alignment.training.objectives import SFT
from alignment.training.step import train_step

SIZES = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}
FAMILIES: dict[str, dict[str, Any]] = {
    "mixtral": {"model_type": "mixtral", "num_local_experts": 4, **SIZES},
    "qwen3_moe": {"model_type": "qwen3_moe", "num_local_experts": 4, "num_experts_per_tok": 2, **SIZES},
}


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("layout", [Layout.shared, Layout.separate])
def test_it_is_the_architecture_s_own(
    name: str, layout: Layout, demonstrations: list[Example], tokenizer: PreTrainedTokenizerBase
) -> None:
    """Of one text, loss and every gradient; padding is nobody's token."""
    model = load_language_model(ModelConfig(init=FAMILIES[name], router_loss=0.5), tokenizer, WHOLE).train()
    batch = pack(demonstrations[:1], [0], layout=layout, pad_id=0)
    (-token_logprobs(model, batch).mean() + model.router_loss).backward()
    ours = {name: p.grad.clone() for name, p in model.named_parameters()}
    model.zero_grad()
    labels = batch.input_ids.clone()
    labels[0, : len(demonstrations[0].prompt_ids)] = -100
    output = model.hf(input_ids=batch.input_ids, labels=labels, output_router_logits=True, use_cache=False)
    torch.testing.assert_close(model.router_loss, 0.5 * output.aux_loss)
    plain = output.loss - model.hf.router_aux_loss_coef * output.aux_loss + 0.5 * output.aux_loss
    plain.backward()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(ours[name], parameter.grad, rtol=1e-4, atol=1e-6)


def test_an_architecture_may_have_names_of_its_own(
    demonstrations: list[Example], tokenizer: PreTrainedTokenizerBase
) -> None:
    ernie = {"model_type": "ernie4_5_moe", "moe_num_experts": 4, "moe_k": 2, "moe_intermediate_size": 16, **SIZES}
    model = load_language_model(ModelConfig(init=ernie, router_loss=0.5), tokenizer, WHOLE)
    batch = pack(demonstrations[:1], [0], layout=Layout.shared, pad_id=0)
    token_logprobs(model, batch)
    aux_loss = model.hf(batch.input_ids, labels=batch.input_ids, output_router_logits=True, use_cache=False).aux_loss
    torch.testing.assert_close(model.router_loss, 0.5 * aux_loss)


def test_padding_carries_no_load(demonstrations: list[Example], tokenizer: PreTrainedTokenizerBase) -> None:
    model = load_language_model(ModelConfig(init=FAMILIES["mixtral"], router_loss=1.0), tokenizer, WHOLE)
    losses = []
    for layout in (Layout.shared, Layout.separate):
        token_logprobs(model, pack(demonstrations, range(6), layout=layout, pad_id=0))
        losses.append(model.router_loss)
    torch.testing.assert_close(*losses)


def test_a_step_adds_it_and_reports_it(
    demonstrations: list[Example], tokenizer: PreTrainedTokenizerBase, engine_of: Any
) -> None:
    """The gradient of a step is that of the loss and of the mean router loss of its micro-batches."""
    gradients = {}
    for weight in (0.0, 2.0):
        torch.manual_seed(0)
        model = load_language_model(ModelConfig(init=FAMILIES["mixtral"], router_loss=weight), tokenizer, WHOLE)
        before = {name: p.detach().clone() for name, p in model.named_parameters()}
        batch = pack(demonstrations, range(6), layout=Layout.shared, pad_id=0)
        metrics = train_step(engine_of(model), SFT(CrossEntropyLoss()), [batch])
        assert ("router_loss" in metrics) == (weight > 0)
        gradients[weight] = {name: before[name] - p.detach() for name, p in model.named_parameters()}
    torch.manual_seed(0)
    same = load_language_model(ModelConfig(init=FAMILIES["mixtral"], router_loss=2.0), tokenizer, WHOLE)
    token_logprobs(same, pack(demonstrations, range(6), layout=Layout.shared, pad_id=0))
    same.router_loss.backward()
    for name, parameter in same.named_parameters():
        if parameter.grad is not None:
            torch.testing.assert_close(
                gradients[2.0][name] - gradients[0.0][name], parameter.grad, rtol=1e-3, atol=1e-6
            )


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("layout", [Layout.shared, Layout.separate])
def test_a_step_tells_how_even_the_loads_are_where_no_loss_is_set_too(
    name: str, layout: Layout, pairs: list[Example], tokenizer: PreTrainedTokenizerBase, engine_of: Any
) -> None:
    """Of all tokens of all micro-batches, a prompt as often as it is laid out; against transformers' routers' logits of
    each text alone."""
    torch.manual_seed(0)
    model = load_language_model(ModelConfig(init=FAMILIES[name]), tokenizer, WHOLE)
    model.reads_apart = False  # the last layer computes all tokens too
    loads, entropy, count = torch.zeros(2, 4), torch.zeros(2), 0
    for pair in pairs:
        for branch, completion in enumerate(pair.completion_ids):
            ids = torch.tensor([[*pair.prompt_ids.tolist(), *completion.tolist()]])
            first = len(pair.prompt_ids) if branch and layout is Layout.shared else 0
            count += ids.shape[1] - first
            with torch.no_grad():
                routed = model.hf(ids, output_router_logits=True).router_logits
            for layer, logits in enumerate(each.float()[first:] for each in routed):
                loads[layer] += torch.bincount(logits.topk(2).indices.flatten(), minlength=4)
                entropy[layer] += torch.distributions.Categorical(logits=logits).entropy().sum()
    wanted = {
        "router/load_max": (loads.amax(1) / (2 * count / 4)).mean().item(),
        "router/load_min": (loads.amin(1) / (2 * count / 4)).mean().item(),
        "router/entropy": (entropy / count).mean().item(),
    }
    batches = [pack(pairs[first : first + 3], range(3), layout=layout, pad_id=0) for first in (0, 3)]
    token_logprobs(model, batches[0])  # of no step
    metrics = train_step(engine_of(model), SFT(CrossEntropyLoss()), batches).means()
    assert {key: metrics[key] for key in wanted} == pytest.approx(wanted, rel=1e-5)
    assert "router_loss" not in metrics and wanted["router/load_max"] > 1.01


def test_the_weight_is_the_one_asked_for_else_the_model_s_own() -> None:
    mixtral = AutoConfig.for_model("mixtral", router_aux_loss_coef=0.3)
    assert router_weight(mixtral, None) == 0.0
    assert router_weight(mixtral, 0.1) == 0.1
    mixtral.output_router_logits = True
    assert router_weight(mixtral, None) == 0.3
    assert router_weight(mixtral, 0.0) == 0.0
    llama = AutoConfig.for_model("llama")
    assert router_weight(llama, None) == 0.0
    with pytest.raises(ConfigError, match=r"^model\.router_loss needs a mixture of experts, got 0\.1 for 'llama'$"):
        router_weight(llama, 0.1)


def test_no_loss_is_kept_where_nothing_is_learned(
    demonstrations: list[Example], tokenizer: PreTrainedTokenizerBase
) -> None:
    model: LanguageModel = load_language_model(ModelConfig(init=FAMILIES["mixtral"], router_loss=1.0), tokenizer, WHOLE)
    with torch.no_grad():
        token_logprobs(model, pack(demonstrations, range(2), layout=Layout.shared, pad_id=0))
    assert model.router_loss is None
