"""A pretrained model answers, and its replies stop where its template says."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, PreTrainedTokenizerBase

pytestmark = pytest.mark.real

QUESTIONS = ["What is the capital of France?", "What is two plus two?"]


def test_greedy_replies_are_those_of_transformers(
    run: Callable[..., Any],
    real_model: Path,
    real_tokenizer: PreTrainedTokenizerBase,
    tmp_path: Path,
) -> None:
    """Each ends with <|im_end|>, which its text goes without; and the capital of France is Paris."""
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text("".join(json.dumps({"prompt": question}) + "\n" for question in QUESTIONS))
    data = [f"data.eval.path={prompts}", "generation.max_new_tokens=40", "generation.top_k=1"]
    (tmp_path / "judge.py").write_text("def length(prompts, replies):\n    return [float(len(r)) for r in replies]\n")
    words = [f"runs={{real: {real_model}}}", "baseline=real", "gold=judge.length"]
    ran = run("evaluate", *words, *data, within=tmp_path)
    shown = ran.table("samples.jsonl")
    hf = AutoModelForCausalLM.from_pretrained(real_model, dtype=torch.float32)
    for question, row in zip(QUESTIONS, shown, strict=True):
        turn = [{"role": "user", "content": question}]
        ids = real_tokenizer.apply_chat_template(turn, add_generation_prompt=True, return_tensors="pt")["input_ids"]
        whole = hf.generate(ids, do_sample=False, max_new_tokens=40, attention_mask=torch.ones_like(ids))
        reply = whole[0, ids.shape[1] :]
        assert row["finished"] == (reply[-1].item() == real_tokenizer.convert_tokens_to_ids("<|im_end|>"))
        assert row["length"] == len(reply)
        assert row["reply"] == real_tokenizer.decode(reply, skip_special_tokens=True).strip()
    assert "Paris" in shown[0]["reply"] and shown[0]["finished"]
