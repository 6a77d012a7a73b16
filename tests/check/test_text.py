"""Faults in template, mask, ends, lengths and rows, planted one by one: the verdict that is about it fails."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from alignment.check import template, text
from alignment.check.verdict import Grade
from alignment.config.data import BadRow, DataConfig, Format, TrainSource
from alignment.config.margin import MarginConfig, MarginScale
from alignment.config.model import ModelConfig
from alignment.config.supervised import DPOConfig, RewardConfig, SFTConfig
from alignment.data import load, row_reader
from alignment.data.records import Source
from alignment.data.tokenize import Example

OPENING, MASK, ENDS, LENGTHS = "generation prompt", "tokens that carry loss", "ends", "lengths"
ENDLESS = (  # turns are told apart by their roles alone
    "{% for m in messages %}{{ m['role'] + ': ' + m['content'] + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}"
)
THOUGHTFUL = (  # generation begins with a word that no trained reply has
    "{% for m in messages %}{{ m['role'] + ': ' + m['content'] + eos_token }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'assistant: <think>' }}{% endif %}"
)
SOUND = THOUGHTFUL.replace("<think>", "")


@pytest.fixture
def templated(pretrained: str, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], ModelConfig]:
    """The pretrained model with another chat template."""

    def made(template: str) -> ModelConfig:
        folder = tmp_path_factory.mktemp("templated")
        tokenizer = AutoTokenizer.from_pretrained(pretrained)
        tokenizer.chat_template = template
        tokenizer.save_pretrained(folder)
        return ModelConfig(path=pretrained, tokenizer=str(folder))

    return made


@pytest.fixture
def tampered(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[Example], Example]], None]:
    """Every example is changed by a function on its way out of `encode_rendered`."""

    def change(by: Callable[[Example], Example]) -> None:
        encode = row_reader.encode_rendered
        monkeypatch.setattr(row_reader, "encode_rendered", lambda *arguments: by(encode(*arguments)))

    return change


@pytest.mark.parametrize(
    ("template", "name", "says"),
    [(ENDLESS, ENDS, "writes no end"), (THOUGHTFUL, OPENING, "behind"), (SOUND, None, "")],
    ids=["endless", "thoughtful", "sound"],
)
@pytest.mark.parametrize("kind", [SFTConfig, RewardConfig], ids=lambda kind: kind.__name__)
def test_a_wrong_template_is_found(
    template: str,
    name: str | None,
    says: str,
    kind: type,
    templated: Callable[..., Any],
    upto: Callable[..., Any],
) -> None:
    data = "demonstrations" if kind is SFTConfig else "pairs"
    verdicts = upto("learning rate", kind, data, model=templated(template))
    failed = [verdict for verdict in verdicts if verdict.grade is Grade.fail]
    assert [verdict.name for verdict in failed] == ([] if name is None else [name])
    assert all(says in verdict.figure for verdict in failed)


def test_a_mask_that_includes_the_prompt_is_found(tampered: Callable[..., Any], verdict: Callable[..., Any]) -> None:
    def all_of_it(example: Example) -> Example:
        """The last half of the prompt is learned, too."""
        half = len(example.prompt_ids) // 2
        behind = tuple(np.concatenate([example.prompt_ids[half:], ids]) for ids in example.completion_ids)
        return replace(example, prompt_ids=example.prompt_ids[:half], completion_ids=behind)

    tampered(all_of_it)
    assert verdict(MASK, SFTConfig, "demonstrations").grade is Grade.fail
    assert verdict(OPENING, SFTConfig, "demonstrations").grade is Grade.fail


def test_a_mask_that_leaves_out_a_turn_s_beginning_or_all_of_it_is_found(
    tampered: Callable[..., Any], verdict: Callable[..., Any]
) -> None:
    tampered(lambda e: replace(e, learned=tuple(np.arange(len(ids)) > 2 for ids in e.completion_ids)))
    assert verdict(MASK, DPOConfig, "pairs").grade is Grade.fail


def test_a_missing_end_token_is_found(tampered: Callable[..., Any], verdict: Callable[..., Any]) -> None:
    tampered(lambda e: replace(e, completion_ids=tuple(ids[:-1] for ids in e.completion_ids)))
    found = verdict(ENDS, SFTConfig, "demonstrations")
    assert found.grade is Grade.fail and "10 of 10 learned replies" in found.figure


def test_an_end_that_is_masked_because_it_is_padding_too_is_found(
    tampered: Callable[..., Any], verdict: Callable[..., Any], tokenizer: PreTrainedTokenizerBase
) -> None:
    """As where labels are hidden by the id of the pad token, and that is eos."""
    eos = tokenizer.eos_token_id
    tampered(lambda e: replace(e, learned=tuple(ids != eos for ids in e.completion_ids)))
    found = verdict(ENDS, SFTConfig, "demonstrations")
    assert found.grade is Grade.fail and "10 of 10 replies carry no loss on the token that ends them" in found.figure


def test_the_end_of_an_earlier_turn_is_learned_too(
    templated: Callable[..., Any],
    tampered: Callable[..., Any],
    verdict: Callable[..., Any],
    tokenizer: PreTrainedTokenizerBase,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    path = tmp_path_factory.mktemp("turns") / "turns.jsonl"
    texts = ("What has the cow?", "It has legs.", "What can it do?", "It can run.")
    turns = [{"role": ("user", "assistant")[n % 2], "content": text} for n, text in enumerate(texts)]
    path.write_text(json.dumps({"messages": turns}) + "\n")
    data = DataConfig(train=TrainSource(str(path)), format=Format.messages)
    given: dict[str, Any] = {"data": data, "model": templated(SOUND)}
    assert verdict(ENDS, SFTConfig, "demonstrations", **given).grade is Grade.ok

    def without_first_end(example: Example) -> Example:
        [ids], [learned] = example.completion_ids, example.learned or ()
        first = int(np.flatnonzero(ids == tokenizer.eos_token_id)[0])
        return replace(example, learned=(learned & (np.arange(len(ids)) != first),))

    tampered(without_first_end)
    assert verdict(ENDS, SFTConfig, "demonstrations", **given).grade is Grade.fail


def test_an_end_at_which_generation_does_not_stop_is_warned_of(
    pretrained: str, templated: Callable[..., Any], verdict: Callable[..., Any]
) -> None:
    other = SOUND.replace("eos_token", "' over.'")
    found = verdict(ENDS, SFTConfig, "demonstrations", model=templated(other))
    assert found.grade is Grade.warn and "generation_config.eos_token_id" in found.figure


@pytest.mark.parametrize("name", ["llama2", "llama3", "qwen", "qwen3", "gemma", "phi3", "mistral", "zephyr"])
def test_the_layouts_of_families_are_sound(
    name: str, family: Callable[..., PreTrainedTokenizerBase], files: dict[str, str]
) -> None:
    """But for what their models say in generation_config.json, where turns end in another token than eos."""
    tokenizer = family(name)
    data = DataConfig(train=TrainSource(files["pairs"]))
    loaded = load.load_split("train", data, tokenizer, load.ExampleKind.pairs)
    turn_end = {"gemma": ["<end_of_turn>"], "phi3": ["<|end|>"]}.get(name, [])
    stops = [tokenizer.eos_token_id, *tokenizer.convert_tokens_to_ids(turn_end)]
    for found in (
        text.opening(loaded, tokenizer),
        text.mask(loaded, tokenizer),
        text.ends(loaded, tokenizer, stops),
        template.layout(loaded.records, tokenizer, None),
    ):
        assert found.grade is Grade.ok, found


def test_parts_of_a_completion_are_shown_as_they_are_learned() -> None:
    learned = np.array([True, True, False, True])
    example = Example(np.array([7]), (np.array([1, 2, 3, 4]),), None, Source("rows", 1), (True,), (), (learned,))
    [(ids, mask)] = text.completions_of(example)
    assert [(part.tolist(), is_learned) for part, is_learned in text.runs(ids, mask)] == [
        ([1, 2], True),
        ([3], False),
        ([4], True),
    ]


def test_rows_skipped_and_cut_are_counted(
    files: dict[str, str], verdict: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory
) -> None:
    lines = Path(files["demonstrations"]).read_text().splitlines()
    path = tmp_path_factory.mktemp("bad") / "bad.jsonl"
    path.write_text("\n".join([*lines, json.dumps({"prompt": "Hello"})]) + "\n")
    data = DataConfig(train=TrainSource(str(path)), on_bad_row=BadRow.skip)
    found = verdict("rows, train", SFTConfig, "demonstrations", data=data)
    assert found.grade is Grade.warn and "10 of the first 11 rows are used, 1 skipped" in found.figure
    short = DataConfig(train=TrainSource(files["demonstrations"]), max_prompt_length=16, max_length=17)
    found = verdict("rows, train", SFTConfig, "demonstrations", data=short)
    assert found.grade is Grade.fail and "10 of 10 completions their end (100.0%)" in found.figure


def test_rows_beyond_the_model_s_positions_are_found(
    tiny_init: dict[str, object], tokenizer: PreTrainedTokenizerBase, files: dict[str, str], verdict: Callable[..., Any]
) -> None:
    model = ModelConfig(init={**tiny_init, "max_position_embeddings": 30})
    found = verdict(LENGTHS, SFTConfig, "demonstrations", model=model)
    assert found.grade is Grade.fail and "10 rows are beyond" in found.figure


def test_ratings_that_nobody_reads_are_warned_of(
    files: dict[str, str], verdict: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory
) -> None:
    rows = [{**json.loads(line), "rating": "better"} for line in Path(files["pairs"]).read_text().splitlines()]
    path = tmp_path_factory.mktemp("rated") / "rated.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = DataConfig(train=TrainSource(str(path)))
    found = verdict("margins", RewardConfig, "pairs", data=data)
    assert found.grade is Grade.warn and "rating in 10 rows" in found.figure
    read = replace(data, margin=MarginConfig(scale=MarginScale.large))
    found = verdict("margins", RewardConfig, "pairs", data=read)
    assert (
        found.grade is Grade.ok and "10 of 10 pairs have one (data.margin.scale=large): 2 (better, 10x)" in found.figure
    )
