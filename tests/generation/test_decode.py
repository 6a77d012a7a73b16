"""Replies against a loop over whole sequences, without cache, padding or batch, that inverts the CDF itself."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from transformers import PreTrainedTokenizerBase
from transformers.cache_utils import DynamicCache, DynamicLayer

from alignment.config.distributed import Device, DistributedConfig, Precision
from alignment.config.errors import UserError
from alignment.config.generation import GenerationConfig
from alignment.config.model import Attention, ModelConfig
from alignment.distributed.placement import WHOLE
from alignment.distributed.precision import autocast, compute_dtype
from alignment.generation import decode
from alignment.generation.cache import PreallocatedLayer
from alignment.generation.decode import uniforms
from alignment.generation.generate import TransformersGenerator
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
FAMILIES: dict[str, dict[str, Any]] = {  # a window of 6 is shorter than the prompts
    "llama": {**SIZES, "model_type": "llama"},
    "mistral": {**SIZES, "model_type": "mistral", "sliding_window": 6},
    "qwen2": {**SIZES, "model_type": "qwen2"},
    "gpt2": {"model_type": "gpt2", "n_embd": 32, "n_layer": 2, "n_head": 4, "initializer_range": 0.2},
    "gemma2": {**SIZES, "model_type": "gemma2", "sliding_window": 6, "head_dim": 8},
    "mamba": {"model_type": "mamba", "hidden_size": 32, "num_hidden_layers": 2, "state_size": 4},
}
EAGER = ("gemma2", "mamba")
ENDS = list(range(2, 2048, 12))  # a twelfth of the vocabulary ends a reply
PROMPTS = [np.arange(5, 5 + n, dtype=np.int32) for n in (3, 11, 1, 7, 4, 13, 2)]
STEPS, REPLIES, SEED = 16, 3, 11


@pytest.fixture(scope="module", params=FAMILIES)
def model(request: pytest.FixtureRequest, tokenizer: PreTrainedTokenizerBase) -> LanguageModel:
    torch.manual_seed(0)
    attention = Attention.eager if request.param in EAGER else Attention.sdpa
    model = load_language_model(ModelConfig(init=FAMILIES[request.param], attention=attention), tokenizer, WHOLE)
    config: Any = model.hf.generation_config
    config.eos_token_id = ENDS
    return model


def drawn(
    model: LanguageModel,
    tokenizer: PreTrainedTokenizerBase,
    rows: Sequence[int] = range(7),
    *,
    replies: int = REPLIES,
    batch_size: int = 256,
) -> list[list[list[int]]]:
    """Of the prompts at `rows`, each with its place in the whole as its key."""
    config = GenerationConfig(max_new_tokens=STEPS, temperature=1.3, batch_size=batch_size)
    generator = TransformersGenerator(model, tokenizer, config)
    generated = generator.generate([PROMPTS[row] for row in rows], keys=rows, replies=replies, seed=SEED)
    return [[reply.ids.tolist() for reply in row] for row in generated.replies]


def one_by_one(model: LanguageModel, tokenizer: PreTrainedTokenizerBase, key: int, reply: int) -> list[int]:
    ids, ends = PROMPTS[key].tolist(), {tokenizer.eos_token_id, *ENDS}
    for uniform in uniforms(SEED, key, reply, STEPS):
        with torch.no_grad():
            logits = model.hf(input_ids=torch.tensor([ids]), use_cache=False).logits[0, -1].double()
        cdf = (logits / 1.3).softmax(-1).cumsum(-1)
        ids.append(int((cdf <= uniform * cdf[-1]).sum()))
        if ids[-1] in ends:
            break
    return ids[len(PROMPTS[key]) :]


@pytest.fixture(scope="module")
def reference(model: LanguageModel, tokenizer: PreTrainedTokenizerBase) -> list[list[list[int]]]:
    found = [[one_by_one(model, tokenizer, key, reply) for reply in range(REPLIES)] for key in range(len(PROMPTS))]
    lengths = {len(ids) for row in found for ids in row}
    assert min(lengths) < 4 and max(lengths) == STEPS
    return found


@pytest.mark.parametrize("batch_size", [1, 2, 7, 256])
def test_one_prefill_and_dropped_rows_change_no_token(
    model: LanguageModel, tokenizer: PreTrainedTokenizerBase, reference: list[list[list[int]]], batch_size: int
) -> None:
    assert drawn(model, tokenizer, batch_size=batch_size) == reference


def test_replies_know_nothing_of_the_other_prompts_and_replies(
    model: LanguageModel, tokenizer: PreTrainedTokenizerBase, reference: list[list[list[int]]]
) -> None:
    for rows in ([5, 0, 3, 6, 1, 4, 2], [6, 2], [1]):
        assert drawn(model, tokenizer, rows) == [reference[row] for row in rows]
    assert drawn(model, tokenizer, replies=1) == [row[:1] for row in reference]
    longer = drawn(model, tokenizer, replies=REPLIES + 2)
    assert [row[:REPLIES] for row in longer] == reference


def test_prompts_are_computed_once_where_the_cache_may_be_repeated(
    model: LanguageModel, tokenizer: PreTrainedTokenizerBase
) -> None:
    """The tokens that go through the model, in one batch of P prompts with n replies: [P, W - 1], then [P * n, 1]."""
    shapes: list[tuple[int, int]] = []
    hook = model.hf.get_input_embeddings().register_forward_hook(lambda _, args, __: shapes.append(args[0].shape))
    try:
        drawn(model, tokenizer)
    finally:
        hook.remove()
    width, rows = 13, len(PROMPTS) * REPLIES
    if model.hf.config.model_type == "mamba":
        assert shapes[:2] == [(rows, width), (rows, 1)]
        assert {shape[0] for shape in shapes} == {rows}
    else:
        assert shapes[:2] == [(len(PROMPTS), width - 1), (rows, 1)]
        assert shapes[-1][0] <= rows // 2, "those that ended have left"
        assert len(shapes) == STEPS + 1


def test_keys_and_values_are_kept_in_what_attention_computes_in(
    model: LanguageModel, tokenizer: PreTrainedTokenizerBase, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And the replies are those of transformers' own cache, whose keys positions have made float32."""
    made: list[DynamicCache] = []

    def cache(hf: Any, length: int) -> DynamicCache:
        made.append(DynamicCache(config=hf.config) if theirs else own(hf, length))
        return made[-1]

    own, theirs = decode.new_cache, False
    monkeypatch.setattr(decode, "new_cache", cache)
    drawings = []
    for precision in (Precision.bfloat16, Precision.float32):
        with autocast(DistributedConfig(device=Device.cpu, precision=precision)):
            drawings.append(drawn(model, tokenizer))
        kept = {states.dtype for each in made for layer in each.layers for states in (layer.keys, layer.values)}
        assert kept <= {compute_dtype(DistributedConfig(device=Device.cpu, precision=precision))}
        made.clear()
    theirs = True
    with autocast(DistributedConfig(device=Device.cpu, precision=Precision.bfloat16)):
        assert drawn(model, tokenizer) == drawings[0]
    positions = {layer.keys.dtype for each in made for layer in each.layers}
    assert positions == {"gpt2": {torch.bfloat16}, "mamba": set()}.get(model.hf.config.model_type, {torch.float32})


def test_uniforms_are_the_draw_s_own() -> None:
    first = uniforms(3, 5, 7, 40)
    assert first.dtype == np.float64 and first.min() >= 0 and first.max() < 1
    assert np.array_equal(uniforms(3, 5, 7, 10), first[:10])
    others = [uniforms(*other, 40) for other in ((4, 5, 7), (3, 6, 7), (3, 5, 8), (3, 7, 5), (3 + 2**32, 5, 7))]
    assert all(not np.isin(other, first).any() for other in others)
    many = np.concatenate([uniforms(0, key, reply, 50) for key in range(40) for reply in range(10)])
    counts = np.histogram(many, bins=100, range=(0, 1))[0]
    assert ((counts - 200) ** 2 / 200).sum() < 99 + 5 * (2 * 99) ** 0.5


def test_a_draw_never_takes_what_has_no_probability() -> None:
    """At both ends of [0, 1), and at a boundary, which belongs to the token above it."""
    scores = torch.tensor([[-torch.inf, 0.0, -torch.inf, 0.0, -torch.inf]]).repeat(4, 1)
    least, most = 0.0, np.nextafter(1, 0)
    draw = decode.InverseCDF(torch.tensor([[least], [most], [0.5], [np.nextafter(0.5, 0)]], dtype=torch.float64), 2)
    chosen = draw(torch.zeros(4, 2, dtype=torch.long), scores)
    assert chosen.argmax(-1).tolist() == [1, 3, 3, 1]
    assert torch.isinf(chosen).sum() == 4 * 4


def test_logits_that_are_no_numbers_draw_nothing(tokenizer: PreTrainedTokenizerBase) -> None:
    model = load_language_model(ModelConfig(init=FAMILIES["llama"]), tokenizer, WHOLE)
    with torch.no_grad():
        model.hf.lm_head.weight[7] = torch.nan
    with pytest.raises(UserError, match=r"^the logits of the policy are no finite numbers: "):
        drawn(model, tokenizer, [0, 3])


def test_a_roomy_layer_holds_what_transformers_own_does_and_moves_none_of_it() -> None:
    """Prompt, repeated for the replies, steps, rows dropped, steps; `data_ptr` is where a block begins in memory."""
    torch.manual_seed(0)
    layers = PreallocatedLayer(9), DynamicLayer()

    def update(rows: int, tokens: int) -> int:
        new = torch.randn(2, rows, 3, tokens, 4)
        (keys, values), theirs = (layer.update(*new) for layer in layers)
        assert torch.equal(keys, theirs[0]) and torch.equal(values, theirs[1])
        assert layers[0].get_seq_length() == layers[1].get_seq_length()
        return keys.data_ptr()

    update(2, 4)
    for layer in layers:
        layer.batch_repeat_interleave(3)
    assert update(6, 1) == update(6, 1)
    for layer in layers:
        layer.batch_select_indices(torch.tensor([5, 0, 3]))
    places = {update(3, 1) for _ in range(3)}
    assert len(places) == 1 and layers[0].get_seq_length() == 9
