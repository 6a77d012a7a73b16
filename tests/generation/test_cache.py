"""Keys and values in one place: replies are the same, shapes are few, and what is compiled once serves them all."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from transformers import CompileConfig, PreTrainedTokenizerBase, StaticCache
from transformers import GenerationConfig as HFGenerationConfig

from alignment.config.distributed import Device, DistributedConfig, Precision
from alignment.config.errors import ConfigError
from alignment.config.generation import Generation, GenerationConfig, require_generator, require_gpu
from alignment.config.model import Attention, ModelConfig
from alignment.distributed.placement import WHOLE
from alignment.distributed.precision import autocast
from alignment.generation.cache import SHORTEST, FixedCaches
from alignment.generation.decode import Rules
from alignment.generation.generate import TransformersGenerator
from alignment.generation.samples import build_generator
from alignment.models.heads import LanguageModel
from alignment.models.load import load_language_model

SIZES = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "initializer_range": 0.2,
}
FAMILIES: dict[str, dict[str, Any]] = {  # a window of 6 is shorter than the prompts, one of 40 is reached on the way
    "llama": {**SIZES, "model_type": "llama"},
    "mistral": {**SIZES, "model_type": "mistral", "sliding_window": 6},
    "wide mistral": {**SIZES, "model_type": "mistral", "sliding_window": 40},
    "qwen2": {**SIZES, "model_type": "qwen2"},
    "gpt2": {"model_type": "gpt2", "n_embd": 32, "n_layer": 2, "n_head": 4, "initializer_range": 0.2},
    "gemma2": {**SIZES, "model_type": "gemma2", "sliding_window": 6, "head_dim": 8},
}
ENDS = list(range(2, 2048, 12))  # a twelfth of the vocabulary ends a reply
PROMPTS = [np.arange(5, 5 + n, dtype=np.int32) for n in (3, 11, 1, 40, 4, 13, 2)]
STEPS, REPLIES, SEED = 16, 3, 11


def model_of(init: dict[str, Any], tokenizer: PreTrainedTokenizerBase) -> LanguageModel:
    torch.manual_seed(0)
    attention = Attention.eager if init["model_type"] in ("gemma2", "mamba") else Attention.sdpa
    model = load_language_model(ModelConfig(init=init, attention=attention), tokenizer, WHOLE)
    config: Any = model.hf.generation_config
    config.eos_token_id = ENDS
    return model


def drawn(
    model: LanguageModel, tokenizer: PreTrainedTokenizerBase, *, batch_size: int = 256, **more: Any
) -> list[list[list[int]]]:
    config = GenerationConfig(max_new_tokens=STEPS, temperature=1.3, batch_size=batch_size, **more)
    generator = TransformersGenerator(model, tokenizer, config)
    generated = generator.generate(PROMPTS, keys=range(len(PROMPTS)), replies=REPLIES, seed=SEED)
    return [[reply.ids.tolist() for reply in row] for row in generated.replies]


@pytest.mark.parametrize("family", FAMILIES)
def test_replies_are_those_of_a_cache_that_grows(family: str, tokenizer: PreTrainedTokenizerBase) -> None:
    model = model_of(FAMILIES[family], tokenizer)
    expected = drawn(model, tokenizer)
    lengths = {len(ids) for row in expected for ids in row}
    assert min(lengths) < 4 and max(lengths) == STEPS
    for batch_size in (2, 7, 256):  # fewer rows in the last call, or a part of a prompt's replies
        assert drawn(model, tokenizer, batch_size=batch_size, compile=True) == expected


def test_keys_and_values_are_kept_in_what_attention_computes_in(
    tokenizer: PreTrainedTokenizerBase, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whose replies under bfloat16 are not to the last token those of a cache that grows: sums are cut elsewhere."""
    made: list[StaticCache] = []

    def filled(self: FixedCaches, *arguments: Any) -> StaticCache:
        made.append(own(self, *arguments))
        return made[-1]

    own = FixedCaches.filled
    monkeypatch.setattr(FixedCaches, "filled", filled)
    for family in ("llama", "mistral", "gpt2"):
        model = model_of(FAMILIES[family], tokenizer)
        with autocast(DistributedConfig(device=Device.cpu, precision=Precision.bfloat16)):
            drawn(model, tokenizer, compile=True)
    kept = {states.dtype for each in made for layer in each.layers for states in (layer.keys, layer.values)}
    assert kept == {torch.bfloat16}


def test_all_steps_have_the_shapes_of_a_prompt_s_width(tokenizer: PreTrainedTokenizerBase) -> None:
    """Whatever the prompts are: those of their prefill, one of the step, in each of two widths."""
    model = model_of(FAMILIES["llama"], tokenizer)
    shapes: list[tuple[int, ...]] = []
    hook = model.hf.get_input_embeddings().register_forward_hook(
        lambda _, args, __: shapes.append(tuple(args[0].shape))
    )
    try:
        drawn(model, tokenizer, batch_size=6, compile=True)
    finally:
        hook.remove()
    assert set(shapes) == {(2, SHORTEST - 1), (2, 2 * SHORTEST - 1), (6, 1)}


@pytest.fixture
def compilations(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """How many graphs were made; on a CPU too, where transformers compiles only if asked to in its tests' way."""
    graphs: list[int] = []

    def backend(graph: torch.fx.GraphModule, _: list[torch.Tensor]) -> Any:
        graphs.append(len(graph.graph.nodes))
        return graph.forward

    def hf(self: Rules, max_new_tokens: int) -> HFGenerationConfig:
        found = own(self, max_new_tokens)
        found.compile_config = CompileConfig(fullgraph=True, backend=backend, mode=None)
        found.compile_config._compile_all_devices = True
        return found

    own = Rules.hf
    monkeypatch.setattr(Rules, "hf", hf)
    torch._dynamo.reset()
    yield graphs
    torch._dynamo.reset()


@pytest.mark.parametrize("family", FAMILIES)
def test_a_step_is_one_graph_that_serves_all_calls(
    family: str, tokenizer: PreTrainedTokenizerBase, compilations: list[int]
) -> None:
    model = model_of(FAMILIES[family], tokenizer)
    first = drawn(model, tokenizer, batch_size=6, compile=True)
    made = len(compilations)
    assert 1 <= made <= 3, "one of each width, and one more where a window fills"
    assert drawn(model, tokenizer, batch_size=6, compile=True) == first == drawn(model, tokenizer)
    assert len(compilations) == made, "and none for later rollouts"


def test_a_state_that_is_no_keys_and_values_is_refused(tokenizer: PreTrainedTokenizerBase) -> None:
    init = {"model_type": "mamba", "hidden_size": 32, "num_hidden_layers": 2, "state_size": 4}
    model = model_of(init, tokenizer)
    with pytest.raises(ConfigError, match=r"^generation\.compile must be false .*, got 'mamba'"):
        build_generator(model, tokenizer, GenerationConfig(compile=True), DistributedConfig(device=Device.cpu))


def test_it_is_for_a_gpu_s_own_engine_whose_weights_are_whole() -> None:
    compiled = GenerationConfig(compile=True)
    require_gpu(compiled, "cuda")
    require_generator(compiled, DistributedConfig(zero=2))
    with pytest.raises(ConfigError, match=r"^generation\.compile needs distributed\.device=cuda: .*, got True$"):
        require_gpu(compiled, "cpu")
    with pytest.raises(ConfigError, match=r"^generation\.compile must be false with distributed\.zero=3"):
        require_generator(compiled, DistributedConfig(zero=3))
    with pytest.raises(ConfigError, match=r"^generation\.compile needs generation\.engine=transformers"):
        GenerationConfig(compile=True, engine=Generation.vllm)
