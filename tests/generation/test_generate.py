"""Sampling. A Phi serves, for the bias of its head can leave a vocabulary of a few pieces, EOS and pad among them."""

from copy import deepcopy
from typing import Any

import numpy as np
import pytest
import torch
from transformers import GenerationConfig as HFGenerationConfig
from transformers import PreTrainedTokenizerBase

from alignment.config.batch import Layout
from alignment.config.data import Template
from alignment.config.distributed import Device, DistributedConfig
from alignment.config.generation import GenerationConfig
from alignment.config.model import ModelConfig
from alignment.data.pack import pack
from alignment.data.records import Record, Source, assistant
from alignment.data.tokenize import Example
from alignment.distributed.frozen import FrozenEngine
from alignment.distributed.placement import WHOLE
from alignment.generation.generate import Reply, TransformersGenerator
from alignment.generation.samples import sample
from alignment.models.heads import LanguageModel
from alignment.models.load import load_language_model
from alignment.models.readout import token_logprobs

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
    model = load_language_model(ModelConfig(init=PHI), tokenizer, WHOLE)
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
    generator = TransformersGenerator(model, tokenizer, GenerationConfig(**{"max_new_tokens": 12, **settings}))
    return generator.generate(PROMPTS, keys=range(len(PROMPTS)), replies=replies, seed=seed).replies


def ids_of(replies: list[list[Reply]]) -> list[list[list[int]]]:
    return [[reply.ids.tolist() for reply in row] for row in replies]


@pytest.mark.parametrize("pad", ["<pad>", "</s>"])
def test_a_reply_ends_with_its_one_eos_or_is_cut(
    model: LanguageModel, tokenizer: PreTrainedTokenizerBase, pad: str
) -> None:
    """Also where the pad is the EOS; and a pad that was sampled is a token like others."""
    tokenizer = deepcopy(tokenizer)
    tokenizer.pad_token = pad
    replies = [reply for row in drawn(model, tokenizer, replies=24) for reply in row]
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
    generator = TransformersGenerator(model, tokenizer, config)
    (replies,) = generator.generate([prompt], keys=[0], replies=count, seed=0).replies
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


def test_a_mixture_that_asks_for_its_routers_logits_replies(tokenizer: PreTrainedTokenizerBase) -> None:
    """transformers would make the routers' loss at every token, and fail; the replies are those without, and the
    config is as it was."""
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    init = {"model_type": "mixtral", "num_key_value_heads": 2, "num_local_experts": 4, **sizes}
    replies = []
    for asks in (True, False):
        torch.manual_seed(0)
        mixture = load_language_model(ModelConfig(init=init | {"output_router_logits": asks}), tokenizer, WHOLE)
        generator = TransformersGenerator(mixture, tokenizer, GenerationConfig(max_new_tokens=4))
        prompts = [np.array([5, 6, 7]), np.array([8, 9])]
        generated = generator.generate(prompts, keys=[0, 1], replies=2, seed=0)
        replies.append([[reply.ids.tolist() for reply in row] for row in generated.replies])
        assert mixture.hf.config.output_router_logits is asks
    assert replies[0] == replies[1]


@pytest.mark.parametrize("training", [True, False])
def test_the_model_s_mode_is_kept(model: LanguageModel, tokenizer: PreTrainedTokenizerBase, training: bool) -> None:
    model.train(training)
    drawn(model, tokenizer, replies=1)
    assert model.training is model.hf.training is training


def test_text_is_without_special_pieces(model: LanguageModel, tokenizer: PreTrainedTokenizerBase) -> None:
    for row in drawn(model, tokenizer):
        for reply in row:
            assert reply.text.strip() == tokenizer.decode(reply.ids, skip_special_tokens=True).strip()
            assert "</s>" not in reply.text and "<pad>" not in reply.text


def whole(model: LanguageModel) -> FrozenEngine:
    return FrozenEngine(model, config=DistributedConfig(device=Device.cpu), sharded=False)


def test_samples_are_examples_of_the_replies(model: LanguageModel, tokenizer: PreTrainedTokenizerBase) -> None:
    at = Source("rows.jsonl", 1)
    records = [
        Record([{"role": "user", "content": str(n)}], (assistant("gone"),), None, at) for n in range(len(PROMPTS))
    ]
    examples = [Example(prompt, (np.array([9]),), 1.0, at, (True,)) for prompt in PROMPTS]
    generator = TransformersGenerator(model, tokenizer, GenerationConfig(max_new_tokens=12))
    samples = sample(generator, whole(model), records, examples, replies=3, seed=0)
    assert [[ids.tolist() for ids in example.completion_ids] for example in samples.examples] == ids_of(samples.replies)
    assert ids_of(samples.replies) == ids_of(drawn(model, tokenizer))
    for example, prompt, replies in zip(samples.examples, PROMPTS, samples.replies, strict=True):
        assert np.array_equal(example.prompt_ids, prompt) and example.margin is None
        assert example.finished == tuple(reply.finished for reply in replies)
    assert samples.repeated_prompts()[3:6] == [records[1].prompt] * 3
    assert samples.texts() == [reply.text for row in samples.replies for reply in row]


def test_a_reply_that_no_template_lays_out_keeps_its_blanks(tokenizer: PreTrainedTokenizerBase) -> None:
    """Behind "Q: hello A:" the reply is " the", and a judge that was trained on " the" must not read "the". Turns are
    without the blanks around them."""
    the, blank = (tokenizer(text, add_special_tokens=False)["input_ids"] for text in (" the", " "))
    model = limited_to([EOS, the[-1], blank[-1]], tokenizer)
    prompt = np.array(tokenizer("Q: hello A:", add_special_tokens=False)["input_ids"], dtype=np.int32)
    at = Source("rows.jsonl", 1)
    generator = TransformersGenerator(model, tokenizer, GenerationConfig(max_new_tokens=6))
    texts = {}
    for template in Template:
        record = Record([{"role": "user", "content": "Q: hello A:"}], (), None, at, template=template)
        samples = sample(generator, whole(model), [record], [Example(prompt, (), None, at, ())], replies=30, seed=0)
        texts[template] = samples.texts()
        for reply in samples.replies[0]:
            ids = [*prompt.tolist(), *reply.ids.tolist()]
            text = tokenizer.decode(ids, skip_special_tokens=True).removeprefix(tokenizer.decode(prompt))
            assert reply.text == (text if template is Template.none else text.strip())
    assert any(text.startswith(" the") for text in texts[Template.none])
    assert [text.strip() for text in texts[Template.none]] == texts[Template.chat]


def test_an_end_token_of_the_model_s_own_ends_a_reply_too(
    model: LanguageModel, tokenizer: PreTrainedTokenizerBase
) -> None:
    """The same draws, cut at the first of the two."""
    want = [[cut_after(ids, {EOS, 7}) for ids in row] for row in ids_of(drawn(model, tokenizer))]
    for listed in (7, [7, EOS], [EOS, 7]):
        before = model.hf.generation_config
        model.hf.generation_config = HFGenerationConfig(eos_token_id=listed)
        try:
            replies = drawn(model, tokenizer)
        finally:
            model.hf.generation_config = before
        assert ids_of(replies) == want
        assert all(reply.finished is (reply.ids[-1] in (EOS, 7)) for row in replies for reply in row)
    assert {ids[-1] for row in want for ids in row} >= {EOS, 7}


def test_a_stop_string_ends_a_reply_and_is_cut_off_its_text(
    model: LanguageModel, tokenizer: PreTrainedTokenizerBase
) -> None:
    """The string of two pieces, over a boundary of tokens, which must be the reply's own: here each prompt ends with
    the first piece. The draws are the same, so the reply is the unstopped one up to where its text has the string."""
    first, second = (str(tokenizer.convert_ids_to_tokens(piece)) for piece in (7, 8))
    stop = first + second
    whole = ids_of(drawn(model, tokenizer, replies=40))
    stopped = drawn(model, tokenizer, replies=40, stop=[stop, "never there"])
    hits = 0
    for row, replies in zip(whole, stopped, strict=True):
        for ids, reply in zip(row, replies, strict=True):
            place = next((i for i in range(1, len(ids)) if ids[i - 1 : i + 1] == [7, 8]), None)
            want = ids if place is None else ids[: place + 1]
            hits += place is not None
            assert reply.ids.tolist() == want
            assert reply.finished is (place is not None or ids[-1] == EOS)
            text = tokenizer.decode(want, skip_special_tokens=True)
            assert reply.text.strip() == (text if place is None else text[: text.index(stop)]).strip()
    assert hits > 3


def test_no_reply_ends_before_min_new_tokens(model: LanguageModel, tokenizer: PreTrainedTokenizerBase) -> None:
    lengths = [len(ids) for row in ids_of(drawn(model, tokenizer, replies=8)) for ids in row]
    later = [len(ids) for row in ids_of(drawn(model, tokenizer, replies=8, min_new_tokens=5)) for ids in row]
    assert min(lengths) < 5 <= min(later) < 12


def test_warpers_come_in_the_order_of_transformers(tokenizer: PreTrainedTokenizerBase) -> None:
    """p = 0.4, 0.3, 0.2, 0.1 at temperature 1. Of temperature 2 the first three keep 0.77 of the mass, two of them
    0.57 / 0.84 once the fourth is gone (top_k = 3): top_p = 0.65 keeps two after both, three after neither."""
    model = limited_to([3, 4, 5, 6], tokenizer)
    head: Any = model.hf.get_output_embeddings()
    with torch.no_grad():
        head.weight.zero_()
        head.bias[[3, 4, 5, 6]] = torch.tensor([0.4, 0.3, 0.2, 0.1]).log()
    count = 4000

    def shares(**settings: Any) -> np.ndarray:
        config = GenerationConfig(max_new_tokens=1, batch_size=count, **settings)
        generator = TransformersGenerator(model, tokenizer, config)
        (row,) = generator.generate(PROMPTS[:1], keys=[0], replies=count, seed=1).replies
        return np.bincount([reply.ids[0] for reply in row], minlength=7)[3:] / count

    heated = np.sqrt([0.4, 0.3, 0.2, 0.1])
    for settings, kept in (
        ({}, 4),
        ({"top_k": 3}, 3),
        ({"top_p": 0.65}, 3),
        ({"top_k": 3, "top_p": 0.65}, 2),
    ):
        want = np.where(np.arange(4) < kept, heated, 0)
        found = shares(temperature=2.0, **settings)
        assert found == pytest.approx(want / want.sum(), abs=4 * (0.25 / count) ** 0.5)
        assert (found[kept:] == 0).all()


def test_samples_say_how_much_of_the_work_was_live(model: LanguageModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """A batch of one row computes nothing past its end; of many rows some wait for others, but not all for the last."""
    at = Source("rows.jsonl", 1)
    records = [Record([{"role": "user", "content": "x"}], (), None, at)] * len(PROMPTS)
    examples = [Example(prompt, (), None, at, ()) for prompt in PROMPTS]

    def live(batch_size: int) -> tuple[float, float]:
        config = GenerationConfig(max_new_tokens=64, batch_size=batch_size)
        generator = TransformersGenerator(model, tokenizer, config)
        samples = sample(generator, whole(model), records, examples, replies=20, seed=0)
        lengths = [len(reply.ids) for row in samples.replies for reply in row]
        return samples.live_fraction().mean().item(), sum(lengths) / (len(lengths) * max(lengths))

    assert live(1)[0] == 1.0
    together, without_dropping = live(1000)
    assert without_dropping < 0.5 < together < 1


def cut_after(ids: list[int], ends: set[int]) -> list[int]:
    return ids[: next((i + 1 for i, token in enumerate(ids) if token in ends), len(ids))]
