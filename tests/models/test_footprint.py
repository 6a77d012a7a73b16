"""What a model takes, by its footprint and as it is counted on the model itself."""

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from alignment.config.batch import Layout
from alignment.config.distributed import Device, DistributedConfig, Offload, Precision
from alignment.config.errors import ConfigError
from alignment.config.model import LoraConfig, ModelConfig
from alignment.data.pack import Batch, pack
from alignment.data.records import Source
from alignment.data.tokenize import Example
from alignment.distributed.placement import Whole
from alignment.models import footprint
from alignment.models.allocations import peak_of
from alignment.models.counted import Phase, of_pass
from alignment.models.footprint import Role, Rows, counted_of, footprint_of
from alignment.models.heads import LanguageModel
from alignment.models.prepare import prepared
from alignment.models.readout import token_logprobs

SIZES = {"hidden_size": 32, "intermediate_size": 88, "num_hidden_layers": 5, "num_attention_heads": 4}
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": SIZES | {"num_key_value_heads": 4, "vocab_size": 32_000},
    "mistral": SIZES | {"num_key_value_heads": 2, "vocab_size": 32_768},
    "qwen3": SIZES | {"num_key_value_heads": 2, "head_dim": 8, "vocab_size": 151_936},
    "gemma2": SIZES | {"num_key_value_heads": 2, "head_dim": 8, "vocab_size": 65_536},  # with soft caps
}
ROWS = Rows(1, 255, 2)
GROUPS = 5  # another number than is tried
CPU = DistributedConfig(device=Device.cpu, precision=Precision.float32)


def settings(kind: str, **more: Any) -> ModelConfig:
    return ModelConfig(init={"model_type": kind, **FAMILIES[kind]}, **more)


def with_numbers(kind: str, config: ModelConfig) -> PreTrainedModel:
    torch.manual_seed(0)
    attention = "eager" if kind == "gemma2" else "sdpa"
    hf = AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **FAMILIES[kind]), attn_implementation=attention)
    return prepared(hf, config, Whole(torch.float32))


def rows_of(groups: int) -> Batch:
    ids = [np.arange(length, dtype=np.int32) + 5 for length in (ROWS.prompt, ROWS.completion)]
    example = Example(ids[0], (ids[1],) * ROWS.count, None, Source("test", 1), (True,) * ROWS.count)
    return pack([example] * groups, range(groups), layout=Layout.shared, pad_id=0)


@pytest.fixture(autouse=True)
def _vocabulary_of_the_config(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is drawn at random has the tokenizer's; here the families have their own."""
    monkeypatch.setattr(footprint, "load_tokenizer", lambda _: range(500))


@pytest.mark.parametrize(("kind", "checkpointing"), [*((kind, False) for kind in FAMILIES), ("mistral", True)])
def test_it_is_what_a_step_is_counted_to_take(kind: str, checkpointing: bool) -> None:
    config = settings(kind, gradient_checkpointing=checkpointing)
    model = LanguageModel(with_numbers(kind, config), Whole(torch.float32))
    batch = rows_of(GROUPS)
    counted = peak_of(model, batch, torch.float32, is_trained=True)
    found = footprint_of(Role("model.init", config, is_trained=True), ROWS, CPU, 1)
    assert found.held == 4 * 4 * sum(p.numel() for p in model.parameters())
    assert counted <= found.of(batch.input_ids.numel()) - found.held <= 1.15 * counted


def test_what_a_step_keeps_for_its_backward_pass_is_within_it() -> None:
    """By torch's own hooks, of a step that keeps everything."""
    config = settings("llama")
    model, batch = LanguageModel(with_numbers("llama", config), Whole(torch.float32)), rows_of(GROUPS)
    known, kept = {p.data_ptr() for p in model.parameters()}, dict[int, int]()

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in known:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        total = token_logprobs(model, batch).sum()
    found = footprint_of(Role("model.init", config, is_trained=True), ROWS, CPU, 1)
    assert total.requires_grad
    assert sum(kept.values()) <= found.per_token * batch.input_ids.numel() <= 1.3 * sum(kept.values())


def test_adapters_bfloat16_and_reading_alone_take_less() -> None:
    def of(*, trained: bool = True, config: ModelConfig | None = None, **more: Any) -> tuple[float, float]:
        distributed = DistributedConfig(device=Device.cpu, **{"precision": Precision.float32, **more})
        found = footprint_of(Role("m", config or settings("llama"), is_trained=trained), ROWS, distributed, 1)
        return found.held, found.per_token

    weights = of()[0] / 16
    adapter = of(config=settings("llama", lora=LoraConfig(rank=4)))
    assert 4 * weights < adapter[0] < 5 * weights
    assert of(precision=Precision.bfloat16)[1] < 0.8 * of()[1]
    assert of(trained=False)[0] == 4 * weights and of(trained=False)[1] < 0.1 * of()[1]


@pytest.mark.parametrize(
    ("zero", "weights"), [(None, 4), (0, 4), (1, 2 + 3 / 4), (2, 1 + 4 / 4), (3, 5 / 4)]
)  # of recipes/distributed.md
def test_zero_shares_out_what_it_shares(zero: int | None, weights: float) -> None:
    role = Role("model.init", settings("llama"), is_trained=True)
    one = footprint_of(role, ROWS, CPU, 1).held / 4
    config = DistributedConfig(device=Device.cpu, precision=Precision.float32, zero=zero)
    assert footprint_of(role, ROWS, config, 4).held == pytest.approx(weights * one)


def test_processes_that_share_rows_have_their_part_of_each_token() -> None:
    """With what they send each other: of 4 heads of queries and 2 of keys, which are repeated for 4 processes."""
    role, found = Role("model.init", settings("mistral"), is_trained=True), []
    for size in (1, 2, 4):
        config = DistributedConfig(device=Device.cpu, precision=Precision.float32, zero=1, sequence_parallel=size)
        found.append(footprint_of(role, ROWS, config, 4))
    assert len({each.held for each in found}) == len({each.fixed for each in found}) == 1
    for size, keys, each in ((2, 2, found[1]), (4, 4, found[2])):
        sent = 3 * 4 * 8 * (4 + 2 * keys)
        assert each.per_token * size == pytest.approx(found[0].per_token + 1.05 * sent)


def test_what_is_on_a_disk_is_not_in_memory() -> None:
    role = Role("model.init", settings("llama"), is_trained=True)
    one = footprint_of(role, ROWS, CPU, 1).held / 4
    nvme = {"zero": 3, "offload_optimizer": Offload.nvme, "nvme_path": "/tmp"}
    config = DistributedConfig(device=Device.cpu, precision=Precision.float32, **nvme)
    assert footprint_of(role, ROWS, config, 1).held == pytest.approx(2 * one)


@pytest.mark.parametrize("kind", ["gpt2", "mixtral"])
def test_other_architectures_are_counted_by_what_they_do(kind: str) -> None:
    sizes = {"n_embd": 32, "n_layer": 2, "n_head": 2}
    if kind == "mixtral":
        sizes = SIZES | {"num_key_value_heads": 2, "num_local_experts": 4}
    config = ModelConfig(init={"model_type": kind, **sizes, "vocab_size": 500})
    for is_scalar in (False, True):
        assert footprint_of(Role("m", config, is_scalar, is_trained=True), ROWS, CPU, 1).per_token > 1000


def test_of_a_reward_model_the_last_feed_forward_is_at_the_ends() -> None:
    """A critic's is at every token: gate, up, the activation and their product of 88 numbers, the norm's of 32."""
    reward, critic = (
        footprint_of(Role("m", settings("llama"), True, is_trained=True, is_in_ppo=is_in_ppo), ROWS, CPU, 1)
        for is_in_ppo in (False, True)
    )
    saved = (critic.per_token - reward.per_token) / footprint.MARGIN / 4
    assert 4 * 88 <= saved <= 4 * 88 + 3 * 32


def test_there_is_no_footprint_of_no_model() -> None:
    with pytest.raises(ConfigError, match="model_type must be one that transformers knows"):
        footprint_of(Role("m", ModelConfig(init={"model_type": "none"})), ROWS, CPU, 1)


def test_embeddings_that_train_have_a_gradient_as_large_as_they_are() -> None:
    """However few the tokens: of a reward model in passes of one pair nothing else is as large."""
    own = settings("qwen3", gradient_checkpointing=True)
    role = Role("model.path", own, is_scalar=True, is_trained=True)
    counted = counted_of(role, ROWS, torch.float32, Layout.shared)
    table = 4 * FAMILIES["qwen3"]["vocab_size"] * SIZES["hidden_size"]
    assert of_pass(counted.passes)[0, Phase.backward_of_embeddings] == pytest.approx(table, rel=0.01)
    assert table <= of_pass(counted.during(ROWS.together)) < 1.1 * table
    frozen = replace(role, settings=replace(own, lora=LoraConfig(rank=4)))
    assert of_pass(counted_of(frozen, ROWS, torch.float32, Layout.shared).during(ROWS.together)) < 0.5 * table


@pytest.mark.parametrize("is_trained", [True, False])
def test_logits_of_few_tokens_are_one_chunk(is_trained: bool) -> None:
    """Which is as large as they are many, and not made twice for the backward pass."""
    own = settings("llama")
    counted = counted_of(Role("model.path", own, is_trained=is_trained), ROWS, torch.float32, Layout.shared)
    batch = rows_of(2)
    tokens = batch.input_ids.numel()
    assert 0.97 * counted.chunk < tokens <= counted.chunk
    model = LanguageModel(with_numbers("llama", own), Whole(torch.float32))
    alive = peak_of(model, batch, torch.float32, is_trained=is_trained)
    assert alive <= of_pass(counted.during(tokens)) < 1.05 * alive
