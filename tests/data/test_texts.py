"""Ids of texts that are tokenized together, or from a border on, are those of each text by itself."""

from collections.abc import Callable
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizers import AddedToken, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from alignment.config.data import DataConfig, ExampleKind, Format
from alignment.data.checks import signs_of
from alignment.data.layout import Laid, as_native
from alignment.data.read import read_each
from alignment.data.row_reader import ReadRow, RowReader
from alignment.data.texts import Texts, borders_of
from alignment.data.tokenize import Example, Limits, Truncation, encode

NAMES = ["llama2", "llama3", "qwen", "qwen3", "gemma", "phi3", "mistral", "zephyr"]
LETTERS = [
    "<",
    "|",
    "<|",
    "<s",
    "im_",
    "end|>",
    " ",
    "  ",
    "\n",
    "a",
    "hello there",
    "\u00e9",
    "e\u0301",
    "\u65e5\u672c",
]
ALL = [*NAMES, "real llama2", "chatml"]


@pytest.fixture
def named(
    family: Callable[[str], PreTrainedTokenizerBase], llama2: PreTrainedTokenizerBase, chatml: PreTrainedTokenizerBase
) -> Callable[[str], Any]:
    return lambda name: {"real llama2": llama2, "chatml": chatml}[name] if name not in NAMES else family(name)


def by_itself(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    ids: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
    return ids


def require_borders(tokenizer: PreTrainedTokenizerBase, borders: list[str]) -> None:
    rng = np.random.default_rng(0)
    added = [token.content for token in tokenizer.added_tokens_decoder.values()]
    for _ in range(300):
        before, behind = ("".join(rng.choice([*LETTERS, *added], rng.integers(0, 9))) for _ in range(2))
        for border in borders:
            whole = by_itself(tokenizer, before + border + behind)
            assert whole == by_itself(tokenizer, before) + by_itself(tokenizer, border + behind), (before, behind)


BORDERS = {
    "llama3": {"<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>", "<|end_of_text|>"},
    "gemma": {"<bos>", "<eos>", "<pad>", "<start_of_turn>", "<end_of_turn>"},
    "chatml": {"<|im_start|>", "<|im_end|>", "<pad>"},
    "real llama2": {"<s>", "</s>", "<unk>"},
}


@pytest.mark.parametrize("name", ALL)
def test_a_text_may_be_cut_at_a_border(name: str, named: Callable[[str], Any]) -> None:
    tokenizer = named(name)
    borders = list(borders_of(tokenizer))
    assert set(borders) == BORDERS.get(name, set(borders)) and borders
    require_borders(tokenizer, borders)


@pytest.mark.parametrize("scheme", ["first", "always", "never"])
@pytest.mark.parametrize("is_normalized", [False, True])
def test_whatever_is_done_to_the_parts(scheme: Any, is_normalized: bool, chatml: PreTrainedTokenizerFast) -> None:
    chatml.backend_tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme)
    if is_normalized:
        changes = [normalizers.NFKC(), normalizers.Lowercase(), normalizers.Strip(), normalizers.Prepend("a")]
        chatml.backend_tokenizer.normalizer = normalizers.Sequence(changes)
    borders = list(borders_of(chatml))
    assert "<|im_start|>" in borders
    require_borders(chatml, borders)


def marker(**how: bool) -> AddedToken:
    return AddedToken("<|turn|>", **{"normalized": False, **how})


OTHERS = {
    "taken from normalized text": [marker(normalized=True)],
    "takes the blanks before it": [marker(lstrip=True)],
    "takes the blanks behind it": [marker(rstrip=True)],
    "must be a word": [marker(single_word=True)],
    "part of another": [marker(), AddedToken("<|turn|>a", normalized=False)],
    "begins as another ends": [marker(), AddedToken("a<|t", normalized=False)],
    "not in the template": [AddedToken("<|other|>", normalized=False)],
}


@pytest.mark.parametrize("what", OTHERS)
def test_what_is_no_border(what: str, chatml: PreTrainedTokenizerFast) -> None:
    chatml.chat_template = str(chatml.chat_template).replace("user", "<|turn|>") + "<|turn|>"
    chatml.add_tokens(OTHERS[what])
    assert not {"<|turn|>", "<|other|>"} & set(borders_of(chatml))
    chatml.add_tokens([AddedToken("<|plain|>", normalized=False)])
    chatml.chat_template += "<|plain|>"
    assert "<|plain|>" in set(borders_of(chatml))


def test_a_tokenizer_with_ways_of_its_own_has_no_borders(chatml: PreTrainedTokenizerFast) -> None:
    class Own(PreTrainedTokenizerFast):
        def __call__(self, *arguments: Any, **named: Any) -> Any:
            return super().__call__(*arguments, **named)

    made: dict[str, Any] = {"tokenizer_object": chatml.backend_tokenizer, "eos_token": "<|im_end|>"}
    same = PreTrainedTokenizerFast(**made, chat_template=chatml.chat_template)
    assert list(borders_of(same)) and not list(borders_of(Own(**made, chat_template=chatml.chat_template)))
    assert not list(borders_of(PreTrainedTokenizerFast(**made, split_special_tokens=True)))


FILES = [
    ("hh_harmless.test.jsonl.gz", Format.hh, ExampleKind.pairs),
    ("hh_harmless.test.jsonl.gz", Format.hh, ExampleKind.demonstrations),
    ("dpo_zh_demo.json.gz", Format.sharegpt, ExampleKind.labeled),
    ("alpaca_eval_graded.train.jsonl.gz", Format.native, ExampleKind.pairs),
    ("kto_en_demo.json.gz", Format.messages, ExampleKind.prompts),
]


def reader(tokenizer: PreTrainedTokenizerBase, need: ExampleKind, max_length: int) -> RowReader:
    config = DataConfig(max_length=max_length, max_prompt_length=max_length // 2)
    texts = Texts(tokenizer, borders_of(tokenizer))
    return RowReader(config, texts, need, "data", signs_of(tokenizer, config.template), [], Truncation())


def rows_of(path: Path, format: Format, need: ExampleKind, rows: int) -> list[Laid]:
    return list(islice(as_native(read_each(path), format, need), rows))


def ids_of(example: Example) -> list[list[int]]:
    return [ids.tolist() for ids in (example.prompt_ids, *example.completion_ids)]


def require_same(tokenizer: PreTrainedTokenizerBase, rows: list[Laid], need: ExampleKind, max_length: int) -> None:
    read = reader(tokenizer, need, max_length)
    made = [row for row in read(rows) if isinstance(row, ReadRow)]
    limits = Limits(max_length, max_length // 2)
    assert len(made) > len(rows) // 2
    for row in made:
        for record, example in zip(row.records, row.examples, strict=True):
            alone = encode(record, tokenizer, limits, Truncation())
            assert ids_of(example) == ids_of(alone) and example.finished == alone.finished
            assert (example.learned is None) == (alone.learned is None)
            for one, other in zip(example.learned or (), alone.learned or (), strict=True):
                assert one.tolist() == other.tolist()


@pytest.mark.parametrize(("file", "format", "need"), FILES)
@pytest.mark.parametrize("name", ALL)
def test_real_rows_together_are_real_rows_one_by_one(
    name: str, file: str, format: Format, need: ExampleKind, shared: Path, named: Callable[[str], Any]
) -> None:
    rows = rows_of(shared / "data" / file, format, need, 20)
    for max_length in (4000, 100):
        require_same(named(name), rows, need, max_length)


@pytest.mark.slow
@pytest.mark.parametrize(("file", "format", "need"), FILES)
@pytest.mark.parametrize("name", ALL)
def test_all_real_rows_together_are_real_rows_one_by_one(
    name: str, file: str, format: Format, need: ExampleKind, shared: Path, named: Callable[[str], Any]
) -> None:
    require_same(named(name), rows_of(shared / "data" / file, format, need, 10_000), need, 1024)


def test_a_pair_s_prompt_is_tokenized_once_and_all_rows_in_one_call(
    chatml: PreTrainedTokenizerBase, shared: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = rows_of(shared / "data" / "hh_harmless.test.jsonl.gz", Format.hh, ExampleKind.pairs, 20)
    read = reader(chatml, ExampleKind.pairs, 4000)
    given, call = [], PreTrainedTokenizerBase.__call__

    def counted(self: PreTrainedTokenizerBase, text: Any, *arguments: Any, **named: Any) -> Any:
        given.append(text)
        return call(self, text, *arguments, **named)

    monkeypatch.setattr(PreTrainedTokenizerBase, "__call__", counted)
    made = [row for row in read(rows) if isinstance(row, ReadRow)]
    assert len(given) == 1 and len(made) == 20
    header = "<|im_start|>assistant\n"
    written = {text for row in made for pieces in row.rendered[0].texts() for text in [header + pieces]}
    assert sorted(given[0]) == sorted({header, *(row.rendered[0].prompt for row in made), *written})
