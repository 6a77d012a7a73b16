"""Which weights have which decay and which learning rate, in real models."""

from typing import Any

import pytest
from transformers import PreTrainedTokenizerBase, Trainer

from alignment.config.model import LoraConfig, ModelConfig
from alignment.config.optimizer import OptimizerName
from alignment.config.train import Schedule, TrainConfig
from alignment.distributed.placement import WHOLE
from alignment.models.load import load_language_model, load_scalar_model
from alignment.training.optim import build_optimizer
from alignment.training.parameter_groups import parameter_groups

EMBEDDING, HEAD = "hf.model.embed_tokens.weight", "hf.lm_head.weight"


def train_config(**more: Any) -> TrainConfig:
    return TrainConfig(max_steps=4, learning_rate=0.01, weight_decay=0.1, **more)


def rates_of(model: Any, config: TrainConfig, lora_plus: float = 1.0) -> dict[str, float]:
    """Of each trained weight, as the optimizer has it."""
    optimizer, _ = build_optimizer(model, config, num_steps=4, learning_rate=0.01, lora_plus=lora_plus)
    of = {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}
    return {name: of[id(p)] for name, p in model.trained().items()}


@pytest.mark.parametrize("kind", ["llama", "gpt2", "qwen3"])
def test_what_decays_is_what_decays_in_transformers(kind: str, tokenizer: PreTrainedTokenizerBase) -> None:
    """Embeddings among it: norms and biases alone do not."""
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    sizes |= {"num_key_value_heads": 2, "head_dim": 8}
    init = {"n_embd": 32, "n_layer": 2, "n_head": 2} if kind == "gpt2" else sizes
    model = load_language_model(ModelConfig(init={"model_type": kind, **init}), tokenizer, WHOLE)
    theirs = set(Trainer.get_decay_parameter_names(None, model.hf))  # type: ignore[arg-type]
    if kind == "gpt2":  # it calls norms ln_1, so that only their type tells
        theirs = {name for name in theirs if ".ln_" not in name}
    groups = parameter_groups(model, train_config())
    ours = {name for group in groups if group.treatment.decays for name in group.weights}
    assert {f"hf.{name}" for name in theirs} & model.trained().keys() == ours and len(groups) == 2


def test_head_and_embeddings_have_their_own_rates(
    tiny_init: dict[str, Any], tokenizer: PreTrainedTokenizerBase
) -> None:
    model = load_language_model(ModelConfig(init=tiny_init), tokenizer, WHOLE)
    rates = rates_of(model, train_config(head_lr_ratio=5.0, embedding_lr_ratio=0.5))
    assert rates.pop(HEAD) == 0.05 and rates.pop(EMBEDDING) == 0.005 and set(rates.values()) == {0.01}
    tied = load_language_model(ModelConfig(init={**tiny_init, "tie_word_embeddings": True}), tokenizer, WHOLE)
    rates = rates_of(tied, train_config(embedding_lr_ratio=0.5))
    assert HEAD not in rates and rates[EMBEDDING] == 0.005
    scalar = load_scalar_model(ModelConfig(init=tiny_init, lora=LoraConfig(rank=2)), tokenizer, WHOLE)
    rates = rates_of(scalar, train_config(head_lr_ratio=5.0))
    assert [name for name, rate in rates.items() if rate == 0.05] == ["hf.score.weight"]


def test_lora_plus_is_the_rate_of_b(tiny_init: dict[str, Any], tokenizer: PreTrainedTokenizerBase) -> None:
    """The rate that the log shows stays A's."""
    lora = LoraConfig(rank=2, targets=["q_proj", "lm_head"], plus=16.0)
    model = load_language_model(ModelConfig(init=tiny_init, lora=lora), tokenizer, WHOLE)
    rates = rates_of(model, train_config(), lora_plus=16.0)
    assert rates == {name: 0.16 if "lora_B" in name else 0.01 for name in rates} and len(set(rates.values())) == 2
    optimizer, scheduler = build_optimizer(model, train_config(), num_steps=4, learning_rate=0.01, lora_plus=16.0)
    assert scheduler.get_last_lr()[0] == optimizer.param_groups[0]["lr"] == 0.01


def test_rates_fall_together(tiny_init: dict[str, Any], tokenizer: PreTrainedTokenizerBase) -> None:
    model = load_language_model(ModelConfig(init=tiny_init), tokenizer, WHOLE)
    config = train_config(head_lr_ratio=5.0, schedule=Schedule.linear, warmup_steps=2)
    optimizer, scheduler = build_optimizer(model, config, num_steps=4, learning_rate=0.01)
    found = []
    for _ in range(4):
        found.append(scheduler.get_last_lr())
        optimizer.step()
        scheduler.step()
    assert found == [[pytest.approx(share * rate) for rate in (0.01, 0.01, 0.05)] for share in (0, 0.5, 1, 0.5)]


def test_muon_is_for_matrices_within_the_model(tiny_init: dict[str, Any], tokenizer: PreTrainedTokenizerBase) -> None:
    muon = train_config(optimizer=OptimizerName.muon)
    for load, head in ((load_language_model, HEAD), (load_scalar_model, "hf.score.weight")):
        model: Any = load(ModelConfig(init=tiny_init), tokenizer, WHOLE)
        special = {n for group in parameter_groups(model, muon) if group.treatment.is_special for n in group.weights}
        assert special == {n for n, p in model.trained().items() if p.ndim == 2} - {EMBEDDING, head}
    adapted = load_language_model(ModelConfig(init=tiny_init, lora=LoraConfig(rank=2)), tokenizer, WHOLE)
    (group,) = parameter_groups(adapted, muon)
    assert group.treatment.is_special and group.weights.keys() == adapted.trained().keys()
