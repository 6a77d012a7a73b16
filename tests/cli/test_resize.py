"""Tokens of one's own, from the command line: refused in one line, and trained with the key that it names."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerBase

from alignment.config.model import ModelConfig
from alignment.distributed.placement import WHOLE
from alignment.models.load import load_language_model, save_model
from alignment.models.tokenizer import load_tokenizer


def test_a_run_with_tokens_of_one_s_own(
    alignment: Callable[..., Any], tiny_init: dict[str, Any], tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    torch.manual_seed(0)
    save_model(load_language_model(ModelConfig(init=tiny_init), tokenizer, WHOLE), tokenizer, tmp_path / "base")
    longer = load_tokenizer(ModelConfig(init=tiny_init))
    longer.add_tokens(["<one>", "<two>"])
    longer.save_pretrained(tmp_path / "longer")
    rows = [{"prompt": f"Question {number}?", "completion": "<one> then <two>"} for number in range(4)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    words = ("run", "sft", "model.path=base", "model.tokenizer=longer", "data.train.path=rows.jsonl", "output_dir=out")
    words += (
        "train.max_steps=1",
        "train.epochs=null",
        "batch.size=2",
        "data.max_length=64",
        "data.max_prompt_length=32",
    )
    refused = alignment(*words)
    assert refused.code == 2 and len(refused.err) == 1
    assert refused.err[0].endswith("set model.resize_embeddings=true to add 2 rows")
    ended = alignment(*words, "model.resize_embeddings=true")
    assert ended.code == 0, ended.err
    assert "2 rows are added" in ended.out
    saved = AutoModelForCausalLM.from_pretrained("out/model")
    ids = AutoTokenizer.from_pretrained("out/model")("<one> <two>", return_tensors="pt").input_ids
    assert {2048, 2049} <= set(ids[0].tolist())
    assert saved.config.vocab_size == 2050 and saved(ids).logits.shape[-1] == 2050
