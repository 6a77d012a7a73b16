"""A reward model whose tokenizer pads with EOS, read by transformers: the score is that of the text's end."""

from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)

from alignment.config.model import ModelConfig
from alignment.distributed.placement import WHOLE
from alignment.models.heads import ScalarModel
from alignment.models.load import load_scalar_model, save_model
from alignment.models.tokenizer import load_tokenizer

TEXTS = ["a c b", "b a c c a"]


@pytest.fixture
def padded_with_eos(tokenizer: PreTrainedTokenizerBase) -> PreTrainedTokenizerBase:
    """One that has <pad> and does not use it."""
    other = deepcopy(tokenizer)
    other.pad_token = other.eos_token
    return other


@pytest.fixture
def nothing_but_eos() -> PreTrainedTokenizerBase:
    """As GPT-2's."""
    pieces = Tokenizer(models.WordLevel({"<end>": 0, "a": 1, "b": 2, "c": 3, "d": 4, "e": 5}, unk_token="<end>"))
    pieces.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=pieces, eos_token="<end>", unk_token="<end>", pad_token="<end>", chat_template="{{ messages }}"
    )


def saved(init: dict[str, Any], tokenizer: PreTrainedTokenizerBase, folder: Path) -> ScalarModel:
    model = load_scalar_model(ModelConfig(init=init), tokenizer, WHOLE)
    save_model(model, tokenizer, folder)
    return model


@torch.no_grad()
def scores(model: ScalarModel, tokenizer: PreTrainedTokenizerBase) -> list[float]:
    """The head at each text's EOS, one text at a time."""
    ids = [
        torch.tensor([[*tokenizer(t, add_special_tokens=False)["input_ids"], tokenizer.eos_token_id]]) for t in TEXTS
    ]
    return [model.hf.score(model.hf.base_model(each).last_hidden_state[0, -1]).item() for each in ids]


def test_padded_with_another_piece(
    padded_with_eos: PreTrainedTokenizerBase, tiny_init: dict[str, Any], tmp_path: Path
) -> None:
    model = saved(tiny_init, padded_with_eos, tmp_path)
    theirs, tokenizer = (
        AutoModelForSequenceClassification.from_pretrained(tmp_path),
        AutoTokenizer.from_pretrained(tmp_path),
    )
    assert tokenizer.pad_token == "<pad>" and tokenizer.get_vocab() == padded_with_eos.get_vocab()
    ended = [text + tokenizer.eos_token for text in TEXTS]
    batch = tokenizer(ended, add_special_tokens=False, padding=True, return_tensors="pt")
    with torch.no_grad():
        found = theirs(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits[:, 0]
    assert found.tolist() == pytest.approx(scores(model, padded_with_eos), abs=1e-5)
    assert padded_with_eos.pad_token == padded_with_eos.eos_token, "the run's own tokenizer is as it was"


def test_no_other_piece(nothing_but_eos: PreTrainedTokenizerBase, tiny_init: dict[str, Any], tmp_path: Path) -> None:
    """One text is scored at its end, and several are refused by transformers instead of scored elsewhere."""
    model = saved(tiny_init, nothing_but_eos, tmp_path)
    theirs = AutoModelForSequenceClassification.from_pretrained(tmp_path)
    ids = [[*nothing_but_eos(text, add_special_tokens=False)["input_ids"], 0] for text in TEXTS]
    with torch.no_grad():
        found = [theirs(torch.tensor([each])).logits.item() for each in ids]
    assert found == pytest.approx(scores(model, nothing_but_eos), abs=1e-5)
    with pytest.raises(ValueError, match="no padding token"):
        theirs(torch.tensor([ids[0], ids[0]]))
    assert load_tokenizer(ModelConfig(path=str(tmp_path))).pad_token == "<end>"
