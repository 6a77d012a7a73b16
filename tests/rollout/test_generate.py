"""Sampling. A Phi serves, for the bias of its head can leave a vocabulary of a few pieces, EOS and pad among them."""

from copy import deepcopy
from typing import Any

import numpy as np
import pytest
import torch
from transformers import GenerationConfig as HFGenerationConfig
from transformers import PreTrainedTokenizerBase

from alignment.config.parts import GenerationConfig, ModelConfig
from alignment.config.vocabulary import Layout
from alignment.data.pack import pack
from alignment.data.records import Record, Source
from alignment.data.tokenize import Example
from alignment.models.heads import LanguageModel
from alignment.models.load import load_language_model
from alignment.models.readout import token_logprobs
from alignment.rollout.generate import Reply, generate
from alignment.rollout.samples import sample

PHI = {
    "model_type": "phi",
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 256,
    "initializer_range": 0.3,
}
PAD, EOS = 0, 2
PROMPTS = [np.arange(5, 5 + n, dtype=np.int32) for n in (3, 11, 1, 7, 4)]


def limited_to(pieces: list[int], tokenizer: PreTrainedTokenizerBase) -> LanguageModel:
    torch.manual_seed(0)
    model = load_language_model(ModelConfig(init=PHI), tokenizer)
    head: Any = model.hf.get_output_embeddings()
    with torch.no_grad():
        head.bias.fill_(-1e4)
        head.bias[pieces] = 0.0
    return model


@pytest.fixture(scope="module")
def model(tokenizer: PreTrainedTokenizerBase) -> LanguageModel:
    return limited_to([PAD, EOS, *range(3, 10)], tokenizer)


def drawn(
    model: LanguageModel, tokenizer: PreTrainedTokenizerBase, seed: int = 0, replies: int = 3, **settings: Any
) -> list[list[Reply]]:
    config = GenerationConfig(**{"max_new_tokens": 12, **settings})
    return generate(model, tokenizer, PROMPTS, config=config, replies=replies, seed=seed)


def ids_of(replies: list[list[Reply]]) -> list[list[list[int]]]:
    return [[reply.ids.tolist() for reply in row] for row in replies]


@pytest.mark.parametrize("pad", ["<pad>", "</s>"])
def test_a_reply_ends_with_its_one_eos_or_is_cut(
    model: LanguageModel, tokenizer: PreTrainedTokenizerBase, pad: str
) -> None:
    """Also where the pad is the EOS; and a pad that was sampled is a token like others."""
    tokenizer = deepcopy(tokenizer)
    tokenizer.pad_token = pad
    replies = [reply for row in drawn(model, tokenizer, replies=8) for reply in row]
    finished = [reply for reply in replies if reply.finished]
    cut = [reply for reply in replies if not reply.finished]
    assert finished and cut
    for reply in finished:
        assert reply.ids.tolist().index(EOS) == len(reply.ids) - 1 < 12
    for reply in cut:
        assert len(reply.ids) == 12 and EOS not in reply.ids
    assert any(PAD in reply.ids for reply in replies)
    assert all(reply.ids.dtype == np.int32 for reply in replies)


def test_the_pad_s_id_changes_nothing(model: LanguageModel, tokenizer: PreTrainedTokenizerBase) -> None:
    other = deepcopy(tokenizer)
    other.pad_token = other.eos_token
    assert ids_of(drawn(model, other)) == ids_of(drawn(model, tokenizer))


def test_pure_function_of_the_seed(model: LanguageModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """Independent of the global generator, which goes on as if nothing had been drawn."""
    first = ids_of(drawn(model, tokenizer, seed=5))
    torch.manual_seed(99)
    state = torch.get_rng_state()
    assert ids_of(drawn(model, tokenizer, seed=5)) == first
    assert torch.equal(torch.get_rng_state(), state)
    assert ids_of(drawn(model, tokenizer, seed=6)) != first


def test_replies_of_a_prompt_differ(model: LanguageModel, tokenizer: PreTrainedTokenizerBase) -> None:
    for row in ids_of(drawn(model, tokenizer, replies=6)):
        assert len({tuple(ids) for ids in row}) > 1


@pytest.mark.parametrize("batch_size", [1, 3, 100])
def test_left_padding_is_invisible(model: LanguageModel, tokenizer: PreTrainedTokenizerBase, batch_size: int) -> None:
    """Next to no temperature: the likeliest reply, whatever prompts are beside, in the order of the prompts."""
    together = ids_of(drawn(model, tokenizer, replies=1, temperature=1e-4, batch_size=batch_size))
    for prompt, (got,) in zip(PROMPTS, together, strict=True):
        ids = torch.from_numpy(prompt.astype(np.int64))[None]
        for _ in range(12):
            with torch.no_grad():
                ids = torch.cat([ids, model.hf(input_ids=ids, use_cache=False).logits[:, -1:].argmax(-1)], 1)
            if ids[0, -1] == EOS:
                break
        assert got == ids[0, len(prompt) :].tolist()
    assert len({tuple(row[0]) for row in together}) > 1


@pytest.mark.parametrize("temperature", [0.7, 1.5])
def test_tokens_are_drawn_as_often_as_their_log_probs_say(
    tokenizer: PreTrainedTokenizerBase, temperature: float
) -> None:
    """Of 200 pieces: nothing is cut off the tail, and training's log-probs are those of the sampling."""
    model = limited_to(list(range(3, 203)), tokenizer)
    prompt, count = PROMPTS[0], 8_000
    config = GenerationConfig(max_new_tokens=1, temperature=temperature, batch_size=count)
    (replies,) = generate(model, tokenizer, [prompt], config=config, replies=count, seed=0)
    found = torch.bincount(torch.tensor([reply.ids[0] for reply in replies]), minlength=203)[3:]
    pieces = tuple(np.array([piece], dtype=np.int32) for piece in range(3, 203))
    example = Example(prompt, pieces, None, Source("rows.jsonl", 1), (False,) * 200)
    with torch.no_grad():
        batch = pack([example], [0], layout=Layout.shared, pad_id=0)
        p = token_logprobs(model, batch, temperature=temperature).double().exp()
    assert p.sum().item() == pytest.approx(1.0, abs=1e-5)
    chi_square = ((found - count * p).square() / (count * p)).sum().item()
    assert chi_square < 199 + 5 * (2 * 199) ** 0.5


def test_top_k_and_top_p(model: LanguageModel, tokenizer: PreTrainedTokenizerBase) -> None:
    likeliest = ids_of(drawn(model, tokenizer, replies=1, temperature=1e-4))
    assert ids_of(drawn(model, tokenizer, replies=1, top_k=1)) == likeliest
    assert ids_of(drawn(model, tokenizer, replies=1, top_p=1e-6)) == likeliest


def test_the_model_s_own_settings_do_not_leak(model: LanguageModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """Log-probs of the training forward know nothing of penalties; and the model keeps its settings."""
    want = ids_of(drawn(model, tokenizer))
    own = HFGenerationConfig(
        repetition_penalty=9.0,
        no_repeat_ngram_size=1,
        suppress_tokens=[3, 4, 5],
        min_new_tokens=12,
        max_length=4,
        eos_token_id=7,
        do_sample=False,
        temperature=3.0,
        top_k=1,
    )
    before, model.hf.generation_config = model.hf.generation_config, own
    try:
        assert ids_of(drawn(model, tokenizer)) == want
        assert model.hf.generation_config is own
        assert own.max_length == 4 and own.repetition_penalty == 9.0
    finally:
        model.hf.generation_config = before


@pytest.mark.parametrize("training", [True, False])
def test_the_model_s_mode_is_kept(model: LanguageModel, tokenizer: PreTrainedTokenizerBase, training: bool) -> None:
    model.train(training)
    drawn(model, tokenizer, replies=1)
    assert model.training is model.hf.training is training


def test_text_is_without_special_pieces(model: LanguageModel, tokenizer: PreTrainedTokenizerBase) -> None:
    for row in drawn(model, tokenizer):
        for reply in row:
            assert reply.text == tokenizer.decode(reply.ids, skip_special_tokens=True).strip()
            assert "</s>" not in reply.text and "<pad>" not in reply.text


def test_samples_are_examples_of_the_replies(model: LanguageModel, tokenizer: PreTrainedTokenizerBase) -> None:
    at = Source("rows.jsonl", 1)
    records = [Record([{"role": "user", "content": str(n)}], ("gone",), None, at) for n in range(len(PROMPTS))]
    examples = [Example(prompt, (np.array([9]),), 1.0, at, (True,)) for prompt in PROMPTS]
    config = GenerationConfig(max_new_tokens=12)
    samples = sample(model, tokenizer, records, examples, config=config, replies=3, seed=0)
    assert [[ids.tolist() for ids in example.completion_ids] for example in samples.examples] == ids_of(samples.replies)
    assert ids_of(samples.replies) == ids_of(drawn(model, tokenizer))
    for example, prompt, replies in zip(samples.examples, PROMPTS, samples.replies, strict=True):
        assert np.array_equal(example.prompt_ids, prompt) and example.margin is None
        assert example.finished == tuple(reply.finished for reply in replies)
    assert samples.repeated_prompts()[3:6] == [records[1].prompt] * 3
    assert samples.texts() == [reply.text for row in samples.replies for reply in row]
