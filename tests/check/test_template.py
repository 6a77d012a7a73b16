"""A model that was trained in one layout of turns and is given another: its own tokenizer and its own replies tell."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedModel, PreTrainedTokenizerBase

from alignment.check.template import PROBES, TURNS, Turns, layout, probes
from alignment.check.verdict import Grade
from alignment.config.data import Template
from alignment.data.chat import PLAIN_TEMPLATE
from alignment.data.records import Record, Source, assistant
from alignment.data.tokenize import Limits, Truncation, encode

MARKED = {"qwen": "ChatML", "llama3": "Llama 3's layout", "gemma": "Gemma's layout", "phi3": "Phi 3's layout"}
Family = Callable[[str], PreTrainedTokenizerBase]


@pytest.fixture
def plainly(family: Family) -> Callable[[str], PreTrainedTokenizerBase]:
    """A family's tokenizer with the plain template in place of its own."""

    def made(name: str) -> PreTrainedTokenizerBase:
        tokenizer = family(name)
        tokenizer.chat_template = PLAIN_TEMPLATE
        return tokenizer

    return made


def trained(sequences: Iterator[list[int]], size: int) -> PreTrainedModel:
    """A small model that knows these texts by heart."""
    torch.manual_seed(0)
    shape = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2}
    hf = AutoModelForCausalLM.from_config(LlamaConfig(vocab_size=size, **shape))
    optimizer = torch.optim.AdamW(hf.parameters(), lr=1e-2)
    texts = [torch.tensor([ids]) for ids in sequences]
    for _ in range(15):
        for ids in texts:
            hf(input_ids=ids, labels=ids).loss.backward()
            optimizer.step()
            optimizer.zero_grad()
    return hf.eval()


def in_layout(turns: Turns, tokenizer: PreTrainedTokenizerBase) -> Iterator[list[int]]:
    for question, reply in PROBES:
        prompt, completion = turns.ids(question, reply, tokenizer)
        yield [*prompt.tolist(), *completion.tolist()]


def as_rendered(tokenizer: PreTrainedTokenizerBase) -> Iterator[list[int]]:
    for record in probes():
        example = encode(record, tokenizer, Limits(1024, 512), Truncation())
        yield [*example.prompt_ids.tolist(), *example.completion_ids[0].tolist()]


@pytest.mark.parametrize("name", MARKED)
def test_control_tokens_that_the_template_leaves_out_are_warned_of(name: str, family: Family, plainly: Family) -> None:
    found = layout(list(probes()), plainly(name), None)
    assert found.grade is Grade.warn and MARKED[name] in found.figure and "model.tokenizer=FOLDER" in found.figure
    own = layout(list(probes()), family(name), None)
    assert own.grade is Grade.ok and own.figure.startswith(MARKED[name])


@pytest.mark.parametrize("name", ["llama2", "mistral", "zephyr"])
def test_a_tokenizer_without_such_tokens_has_no_layout_of_its_own(name: str, plainly: Family) -> None:
    assert layout(list(probes()), plainly(name), None).grade is Grade.ok


@pytest.mark.parametrize("name", MARKED)
def test_the_layouts_are_those_of_the_families(name: str, family: Family) -> None:
    """Token for token, but for a system turn that a template adds and for what it trims."""
    tokenizer, turns = family(name), next(turns for turns in TURNS if turns.name == MARKED[name])
    [record, *_] = probes()
    example = encode(record, tokenizer, Limits(1024, 512), Truncation())
    prompt, completion = turns.ids(*PROBES[0], tokenizer)
    if prompt[0] == tokenizer.bos_token_id:  # which Phi 3 leaves out
        prompt = prompt[1:]
    assert example.prompt_ids.tolist()[-len(prompt) :] == prompt.tolist()
    assert completion.tolist() == example.completion_ids[0].tolist()[: len(completion)]


def test_a_chatml_model_with_a_plain_template_is_found_by_its_replies(family: Family, plainly: Family) -> None:
    tokenizer = plainly("qwen")
    knows = trained(in_layout(TURNS[0], tokenizer), len(tokenizer))
    found = layout(list(probes()), tokenizer, knows)
    assert found.grade is Grade.fail and "it was trained in that" in found.figure
    assert layout(list(probes()), family("qwen"), knows).grade is Grade.ok


def test_a_model_that_was_trained_in_the_plain_template_is_sound(plainly: Family) -> None:
    tokenizer = plainly("qwen")
    knows = trained(as_rendered(tokenizer), len(tokenizer))
    assert layout(list(probes()), tokenizer, knows).grade is Grade.ok


def test_texts_without_a_template_have_no_layout(plainly: Family) -> None:
    turns: list[dict[str, Any]] = [{"role": "user", "content": "as it is"}]
    record = Record(turns, (assistant("so"),), None, Source("rows", 1), template=Template.none)
    assert layout([record], plainly("qwen"), None).grade is Grade.ok
