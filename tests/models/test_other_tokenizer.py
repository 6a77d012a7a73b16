"""A tokenizer that is named for a model which came with another."""

from pathlib import Path

import pytest
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from alignment.config.model import ModelConfig
from alignment.models.tokenizer import prepare_tokenizer

WORDS = ("<unk>", "</s>", "the", "cow", "dog")


def test_pieces_with_other_ids_are_told(
    tmp_path: Path, tokenizer: PreTrainedTokenizerBase, capsys: pytest.CaptureFixture[str]
) -> None:
    def made(name: str, words: tuple[str, ...]) -> str:
        whole = Tokenizer(WordLevel({word: number for number, word in enumerate(words)}, unk_token="<unk>"))
        PreTrainedTokenizerFast(tokenizer_object=whole, eos_token="</s>", unk_token="<unk>").save_pretrained(
            tmp_path / name
        )
        return str(tmp_path / name)

    def said(**settings: str) -> list[str]:
        prepare_tokenizer(ModelConfig(path=model, **settings))
        return [line for line in capsys.readouterr().out.splitlines() if line.startswith("WARNING")]

    model = made("model", WORDS)
    (tmp_path / "model" / "config.json").write_text('{"model_type": "llama"}')
    other, more = made("other", (*WORDS[:3], "dog", "cow")), made("more", (*WORDS, "cat"))
    what = "2 of the 5 pieces that"
    assert said(tokenizer=other)[0].startswith(f"WARNING: model.tokenizer={other!r}: {what} {model!r} came with have")
    assert said(tokenizer=more) == said(tokenizer=model) == said() == []  # what is added is told by the model's size
    tokenizer.save_pretrained(tmp_path / "toy")
    assert said(tokenizer=str(tmp_path / "toy"))[0].count("of the 5 pieces")
    for file in (tmp_path / "model").glob("tokenizer*"):
        file.unlink()
    assert said(tokenizer=other) == []  # the model came with none
