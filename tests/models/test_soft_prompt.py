"""A soft prompt: read in rows as peft reads it before each text, trained alone, left as peft loads it."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import peft
import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, PreTrainedTokenizerBase

from alignment.config.batch import BatchConfig, Layout
from alignment.config.errors import ConfigError
from alignment.config.generation import GenerationConfig
from alignment.config.model import ModelConfig
from alignment.config.saved_prompt import settled_prompt, tokens_before
from alignment.config.soft_prompt import SoftPromptConfig, SoftPromptEncoder
from alignment.data.batches import Packer
from alignment.data.pack import PADDING, pack
from alignment.data.records import Source
from alignment.data.tokenize import Example
from alignment.distributed.placement import WHOLE
from alignment.generation.generate import TransformersGenerator
from alignment.models.counted import Role, Rows
from alignment.models.footprint import counted_of
from alignment.models.heads import LanguageModel
from alignment.models.load import (
    load_frozen_language_model,
    load_frozen_reward_model,
    load_language_model,
    load_reward_model,
    load_scalar_model,
    save_model,
)
from alignment.models.readout import prompt_and_completion_logprobs, sequence_scores, token_logprobs
from alignment.models.soft_prompt import set_before
from alignment.rl.reference import build_reference
from alignment.training.reference import weights_digest

TOKENS = 5
LENGTHS = ((7, 5, 6), (3, 2, 3), (530, 3, 4))  # of a prompt and its completions; a long one has masks of its own
ENCODERS = list(SoftPromptEncoder)
SOME = [pytest.param(each, marks=pytest.mark.slow if each is SoftPromptEncoder.lstm else ()) for each in ENCODERS]


def examples(lengths: tuple[tuple[int, ...], ...] = LENGTHS) -> list[Example]:
    rng = np.random.default_rng(0)
    ids = [[rng.integers(0, 50, length).astype(np.int32) for length in each] for each in lengths]
    return [Example(each[0], tuple(each[1:]), None, Source("x", 1), (True,) * (len(each) - 1)) for each in ids]


def batch_of(layout: Layout, lengths: tuple[tuple[int, ...], ...] = LENGTHS) -> Any:
    rows = examples(lengths)
    return pack(rows, range(len(rows)), layout=layout, pad_id=0)


def config(base: Path, encoder: SoftPromptEncoder = SoftPromptEncoder.none, **more: Any) -> ModelConfig:
    inner = None if encoder is SoftPromptEncoder.none else 12
    prompt = SoftPromptConfig(tokens=TOKENS, encoder=encoder, hidden_size=inner, **more)
    return ModelConfig(path=str(base), soft_prompt=prompt)


def loaded(base: Path, tokenizer: PreTrainedTokenizerBase, encoder: SoftPromptEncoder, load: Any) -> Any:
    torch.manual_seed(1)
    return load(config(base, encoder), tokenizer, WHOLE).eval()


def stir(model: Any) -> None:
    with torch.no_grad():
        for weight in model.soft_prompt().parameters():
            weight.add_(0.3 * torch.randn_like(weight))


def as_peft(model: LanguageModel, base: Path, encoder: SoftPromptEncoder) -> Any:
    """peft's own model with the same weights, in float64."""
    if encoder is SoftPromptEncoder.none:
        settings: Any = peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=TOKENS)
    else:
        kind = {"encoder_reparameterization_type": encoder.value.upper(), "encoder_hidden_size": 12}
        settings = peft.PromptEncoderConfig(task_type="CAUSAL_LM", num_virtual_tokens=TOKENS, **kind)
    theirs: Any = peft.get_peft_model(AutoModelForCausalLM.from_pretrained(base), settings).double().eval()
    prompt = model.soft_prompt()
    assert prompt is not None
    theirs.prompt_encoder["default"].load_state_dict(prompt.encoder.state_dict())
    return theirs


def logprobs_of(theirs: Any, example: Example, ids: np.ndarray) -> tuple[Tensor, Tensor]:
    """Of the prompt's tokens but its first, and of a completion's."""
    text = torch.from_numpy(np.concatenate([example.prompt_ids, ids])).long()[None]
    logits = theirs(input_ids=text, attention_mask=torch.ones_like(text)).logits[0, TOKENS:-1]
    found = logits.log_softmax(-1).gather(1, text[0, 1:, None])[:, 0]
    return found[: len(example.prompt_ids) - 1], found[-len(ids) :]


@pytest.mark.parametrize("encoder", SOME)
def test_shared_rows_are_separate_ones_and_peft_s(
    encoder: SoftPromptEncoder, base: Path, tokenizer: PreTrainedTokenizerBase
) -> None:
    """Log-probs of completions and of prompts, none of which is of the soft prompt's own tokens, and the gradient of
    what makes these, which is all that trains."""
    model = loaded(base, tokenizer, encoder, load_language_model).double()
    stir(model)
    prompt, found = model.soft_prompt(), []
    place = next(name for name, module in model.named_modules() if module is prompt)
    assert set(model.trained()) == {f"{place}.{name}" for name, _ in prompt.named_parameters()}
    for layout in (Layout.shared, Layout.separate):
        model.zero_grad()
        before, after = prompt_and_completion_logprobs(model, batch_of(layout))
        (before.square().sum() + after.square().sum()).backward()
        assert {name for name, p in model.named_parameters() if p.grad is not None} == set(model.trained())
        found.append((before.detach(), after.detach(), {name: p.grad for name, p in prompt.encoder.named_parameters()}))
    theirs = as_peft(model, base, encoder)
    read = [[logprobs_of(theirs, each, ids) for ids in each.completion_ids] for each in examples()]
    before, after = torch.cat([each[0][0] for each in read]), torch.cat([ids for each in read for _, ids in each])
    (before.square().sum() + after.square().sum()).backward()
    own = {name: p.grad for name, p in theirs.prompt_encoder["default"].named_parameters()}
    for mine in found:
        torch.testing.assert_close(mine[0], before.detach(), rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(mine[1], after.detach(), rtol=1e-9, atol=1e-9)
        for name, gradient in own.items():  # of sdpa, whose backward pass rounds so in any packed row
            assert (mine[2][name] - gradient).abs().max() < 1e-6 * gradient.abs().max()
    with model.as_it_was(None):
        bare = token_logprobs(model, batch_of(Layout.shared))
    plain = LanguageModel(AutoModelForCausalLM.from_pretrained(base).double().eval(), WHOLE)
    torch.testing.assert_close(bare, token_logprobs(plain, batch_of(Layout.shared)), rtol=1e-9, atol=1e-9)
    assert (bare - found[0][1]).abs().max() > 0.01


@pytest.mark.parametrize("layout", [Layout.shared, Layout.separate])
def test_places_in_rows(layout: Layout) -> None:
    """Before each prompt, once in the shared layout and in each of its rows in the other."""
    prompt: Any = Prompt()
    batch = batch_of(layout, ((2, 1, 2), (1, 1, 1)))
    grown, moved = set_before(batch, prompt)
    old, new = batch.input_ids.flatten(), grown.input_ids.flatten()
    assert torch.equal(new[moved(torch.arange(len(old)))], old)
    for places in ("positions", "ends", "prompt_positions"):
        assert torch.equal(new[getattr(grown, places)], old[getattr(batch, places)])
    is_new = grown.input_ids >= prompt.first
    copies = 2 if layout is Layout.shared else 4
    assert grown.input_ids[is_new].tolist() == [60, 61, 62] * copies
    assert grown.position_ids[is_new].tolist() == [0, 1, 2] * copies and not grown.branches[is_new].any()
    assert torch.equal(grown.position_ids[~is_new], batch.position_ids.flatten() + 3)
    assert torch.equal(grown.groups[~is_new], batch.groups.flatten()) and PADDING not in grown.groups[is_new]
    assert grown.branch_lengths == (((5, 1, 2), (4, 1, 1)) if layout is Layout.shared else ())
    if layout is Layout.shared:
        assert grown.groups.tolist() == [[0] * 8 + [1] * 6]


class Prompt:
    """A soft prompt's length and the id of its first token."""

    first, length = 60, 3


@pytest.mark.parametrize("encoder", SOME)
def test_what_is_left_is_peft_s_and_is_read_trained_on_and_replied_with(
    encoder: SoftPromptEncoder, base: Path, tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    model = loaded(base, tokenizer, encoder, load_language_model)
    stir(model)
    folder = tmp_path / "left"
    save_model(model, tokenizer, folder)
    assert not (folder / "model.safetensors").exists()
    kind = json.loads((folder / "adapter_config.json").read_text())["peft_type"]
    assert kind == ("PROMPT_TUNING" if encoder is SoftPromptEncoder.none else "P_TUNING")
    theirs: Any = peft.PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), folder).eval()
    own = token_logprobs(model, batch_of(Layout.shared))
    with torch.no_grad():
        read = [logprobs_of(theirs, each, ids)[1] for each in examples() for ids in each.completion_ids]
    torch.testing.assert_close(own, torch.cat(read), rtol=1e-4, atol=1e-4)
    again = load_frozen_language_model(ModelConfig(path=str(folder)), tokenizer, WHOLE)
    assert tokens_before(ModelConfig(path=str(folder))) == TOKENS
    torch.testing.assert_close(token_logprobs(again, batch_of(Layout.shared)), own, rtol=1e-5, atol=1e-5)
    greedy = GenerationConfig(max_new_tokens=8, min_new_tokens=8, top_k=1, batch_size=3)
    prompts = [each.prompt_ids for each in examples(((4, 1), (7, 1)))]
    replies = TransformersGenerator(again, tokenizer, greedy).generate(prompts, keys=[0, 1], replies=3, seed=0).replies
    for ids, row in zip(prompts, replies, strict=True):
        text, drawn = torch.from_numpy(ids).long()[None], {"do_sample": False, "pad_token_id": 0}
        mask = torch.ones_like(text)
        wanted = theirs.generate(input_ids=text, attention_mask=mask, max_new_tokens=8, min_new_tokens=8, **drawn)[0]
        assert all(reply.ids.tolist() == wanted[-8:].tolist() for reply in row)
    settings = ModelConfig(path=str(base), adapter=str(folder))
    settings.soft_prompt = settled_prompt(settings, folder, "model.adapter")
    on = load_language_model(settings, tokenizer, WHOLE)
    torch.testing.assert_close(token_logprobs(on, batch_of(Layout.shared)), own, rtol=1e-5, atol=1e-5)
    assert [tuple(weight.shape) for weight in on.trained().values()] == [(TOKENS, 32)] and on.begins_adapted
    plain = load_language_model(ModelConfig(path=str(base)), tokenizer, WHOLE)
    digests = [weights_digest(each, "float32").hexdigest() for each in (model, plain, on)]
    assert digests[0] == digests[1]  # of one that is new it is the base alone that counts
    reference = build_reference(on)
    stir(on)
    assert weights_digest(on, "float32").hexdigest() != digests[2]
    assert (token_logprobs(on, batch_of(Layout.shared)) - own).abs().max() > 0.01
    torch.testing.assert_close(reference.logprobs(batch_of(Layout.shared), 1.0), own, rtol=1e-5, atol=1e-5)


def test_a_reward_model_s_head_trains_with_it(base: Path, tokenizer: PreTrainedTokenizerBase, tmp_path: Path) -> None:
    model = loaded(base, tokenizer, SoftPromptEncoder.mlp, load_scalar_model)
    stir(model)
    assert any(name.endswith("score.weight") for name in model.trained())
    save_model(model, tokenizer, tmp_path / "left")
    own = sequence_scores(model, batch_of(Layout.shared))
    torch.testing.assert_close(sequence_scores(model, batch_of(Layout.separate)), own, rtol=1e-4, atol=1e-4)
    plain: Any = AutoModelForSequenceClassification.from_pretrained(base, num_labels=1)
    theirs: Any = peft.PeftModel.from_pretrained(plain, tmp_path / "left").eval()
    texts = [np.concatenate([each.prompt_ids, ids]) for each in examples() for ids in each.completion_ids]
    with torch.no_grad():
        scores = [theirs(input_ids=torch.from_numpy(ids).long()[None]).logits[0, 0] for ids in texts]
    torch.testing.assert_close(own, torch.stack(scores), rtol=1e-4, atol=1e-4)
    read = ModelConfig(path=str(tmp_path / "left"))
    again = load_frozen_reward_model(read, tokenizer, WHOLE, key="reward.path")
    torch.testing.assert_close(sequence_scores(again, batch_of(Layout.shared)), own, rtol=1e-4, atol=1e-4)
    with pytest.raises(ConfigError, match=r"^critic\.path must be a model without a soft prompt where it trains"):
        load_reward_model(read, tokenizer, WHOLE, key="critic.path")


def test_it_begins_as_tokens_that_are_drawn_or_given(base: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    table = AutoModelForCausalLM.from_pretrained(base).get_input_embeddings().weight
    drawn = load_language_model(config(base), tokenizer, WHOLE).soft_prompt()
    assert drawn is not None and all(any(torch.equal(each, row) for row in table) for each in drawn.table())
    ids = tokenizer("hello", add_special_tokens=False)["input_ids"]
    given = load_language_model(config(base, init_text="hello"), tokenizer, WHOLE).soft_prompt()
    assert given is not None
    assert torch.equal(given.table(), table[[ids[place % len(ids)] for place in range(TOKENS)]])


@pytest.mark.parametrize("layout", [Layout.shared, Layout.separate])
def test_a_pass_has_room_for_it(layout: Layout) -> None:
    """Three rows of 4 tokens in one pass of 12; with 5 tokens before each they are three passes."""
    rows = examples(((2, 2),) * 3)
    budget = BatchConfig(size=3, max_tokens=12, layout=layout)
    assert [len(batch.rows) for batch in Packer(budget, 0).train_batches(rows)] == [3]
    assert [len(batch.rows) for batch in Packer(budget, 0, before=5).train_batches(rows)] == [1, 1, 1]


@pytest.mark.slow
@pytest.mark.parametrize("encoder", ENCODERS)
def test_a_plan_counts_it(encoder: SoftPromptEncoder, base: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    settings = config(base, encoder)
    own = sum(p.nbytes for p in load_language_model(settings, tokenizer, WHOLE).trained().values())
    role = Role("model.path", settings, is_trained=True)
    assert counted_of(role, Rows(1, 255, 2), torch.float32, Layout.shared).trained == own


def broken(folder: Path, how: str) -> None:
    weights, settings = folder / "adapter_model.safetensors", folder / "adapter_config.json"
    if how == "cut":
        weights.write_bytes(weights.read_bytes()[:60])
    else:
        settings.write_text(settings.read_text().replace('"num_virtual_tokens": 5', f'"num_virtual_tokens": {how}'))


@pytest.mark.parametrize(
    ("how", "match"),
    [
        ("cut", r"'.*adapter_model\.safetensors' is cut or damaged"),
        ("4", r"the soft prompt in '.*' does not fit model\.path=.*: it is of shape \[5, 32\], where .* \[4, 32\]"),
        ("null", r"num_virtual_tokens in '.*adapter_config\.json' must be a number >= 1, got None"),
    ],
)
def test_one_that_cannot_be_read_is_one_line(
    how: str, match: str, base: Path, tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    save_model(load_language_model(config(base), tokenizer, WHOLE), tokenizer, tmp_path / "left")
    broken(tmp_path / "left", how)
    with pytest.raises(ConfigError, match=rf"^model\.path:? {match}") as caught:
        load_frozen_language_model(ModelConfig(path=str(tmp_path / "left")), tokenizer, WHOLE)
    assert "\n" not in str(caught.value)


def test_a_model_that_reads_more_of_a_token_is_refused(
    base: Path, tokenizer: PreTrainedTokenizerBase, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that scales what it looks up itself, as an architecture with a second table does."""
    hf = AutoModelForCausalLM.from_pretrained(base)
    body = type(hf.base_model)
    forward: Callable[..., Any] = body.forward

    def other(self: Any, input_ids: Any = None, **settings: Any) -> Any:
        if input_ids is not None:
            settings["inputs_embeds"] = 2 * self.get_input_embeddings()(input_ids)
        return forward(self, **settings)

    monkeypatch.setattr(body, "forward", other)
    with pytest.raises(ConfigError, match=r"^model\.soft_prompt\.tokens must be 0 .*, which reads more"):
        load_language_model(config(base), tokenizer, WHOLE)


def test_a_reward_model_s_is_trained_on_with_its_head(
    base: Path, tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    model = loaded(base, tokenizer, SoftPromptEncoder.none, load_scalar_model)
    save_model(model, tokenizer, tmp_path / "left")
    settings = ModelConfig(path=str(base), adapter=str(tmp_path / "left"), soft_prompt=SoftPromptConfig(tokens=TOKENS))
    on = load_scalar_model(settings, tokenizer, WHOLE)
    scores = [sequence_scores(each, batch_of(Layout.shared)) for each in (model, on)]
    torch.testing.assert_close(scores[1], scores[0], rtol=1e-5, atol=1e-5)
    with pytest.raises(ConfigError, match=r"^model\.adapter: the soft prompt in .* got a score\.weight of shape"):
        load_language_model(settings, tokenizer, WHOLE)
