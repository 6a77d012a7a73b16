"""Texts that are laid out already (`data.template=none`), from the file to the loss and to the judge's score."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn.functional import cross_entropy
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedTokenizerBase,
)

from alignment.config.model import ModelConfig
from alignment.distributed.placement import WHOLE
from alignment.models.load import load_language_model, load_scalar_model, save_model

TEXTS = [("Q: hello\nA:", " moo</s>", " no"), ("system: be kind\nQ: who\nare you?\nA:", " a cow", " a\nsheep")]
OWN = ["data=native", "data.template=none", "data.train.path=rows.jsonl", "log.progress=false", "model=pretrained"]
OWN += ["model.path=base", "batch.size=2"]
ONE = ["train.max_steps=1", "train.warmup_steps=0"]


@pytest.fixture
def folder(tmp_path: Path, tokenizer: PreTrainedTokenizerBase, tiny_init: dict[str, Any]) -> Path:
    for name, load in (("base", load_language_model), ("judge", load_scalar_model)):
        torch.manual_seed(0)
        save_model(load(ModelConfig(init=tiny_init), tokenizer, WHOLE), tokenizer, tmp_path / name)
    rows = [
        {"prompt": prompt, "chosen": chosen, "rejected": rejected, "completion": chosen}
        for prompt, chosen, rejected in TEXTS
    ]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path


def ids_of(tokenizer: PreTrainedTokenizerBase, prompt: str, reply: str, *, ends: bool = True) -> tuple[list[int], int]:
    """A text's ids, as a tokenizer begins texts, with one EOS at the end; and how many are the prompt's."""
    start = [] if tokenizer("")["input_ids"][:1] != [tokenizer.bos_token_id] else [tokenizer.bos_token_id]
    first, joint = (tokenizer(text, add_special_tokens=False)["input_ids"] for text in (prompt, prompt + reply))
    assert joint[: len(first)] == first
    has_end = joint[-1:] == [tokenizer.eos_token_id]
    return [*start, *joint, *([] if has_end or not ends else [tokenizer.eos_token_id])], len(start) + len(first)


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_sft_learns_the_text_as_it_stands(alignment: Callable[..., Any], folder: Path) -> None:
    """An end that the text has itself is not given twice; nothing of a template is in it."""
    assert alignment("run", "tiny_sft", *OWN, *ONE, "output_dir=sft").code == 0
    tokenizer, model = AutoTokenizer.from_pretrained("base"), AutoModelForCausalLM.from_pretrained("base")
    losses = []
    for prompt, completion, _ in TEXTS:
        ids, begin = ids_of(tokenizer, prompt, completion)
        with torch.no_grad():
            logits = model(torch.tensor([ids])).logits[0, begin - 1 : -1]
        losses.append(cross_entropy(logits, torch.tensor(ids[begin:]), reduction="none"))
    assert ids_of(tokenizer, *TEXTS[0][:2])[0].count(tokenizer.eos_token_id) == 1
    assert lines(folder / "sft" / "metrics.jsonl")[0]["loss"] == pytest.approx(
        torch.cat(losses).mean().item(), abs=1e-5
    )


def test_ppo_prompts_and_scores_texts(alignment: Callable[..., Any], folder: Path) -> None:
    """The judge reads prompt and reply as one text too."""
    words = ["reward.function=null", "reward.path=judge", "gold=null", "generation.max_new_tokens=6", "log.samples=2"]
    ended = alignment("run", "tiny_ppo", *OWN, *ONE, *words, "ppo.epochs=1", "output_dir=ppo")
    assert (ended.code, ended.err) == (0, [])
    tokenizer = AutoTokenizer.from_pretrained("judge")
    model = AutoModelForSequenceClassification.from_pretrained("judge", dtype=torch.float64).eval()
    rows = lines(folder / "ppo" / "samples.jsonl")
    assert {row["prompt"][0]["content"] for row in rows} == {prompt for prompt, *_ in TEXTS} and len(rows) == 4
    for row in rows:
        text = row["prompt"][0]["content"]
        ids, _ = ids_of(tokenizer, text, row["reply"], ends=row["finished"] or not row["reply"])
        with torch.no_grad():
            score = float(model.score(model.base_model(torch.tensor([ids])).last_hidden_state[0, -1]))
        assert row["score"] == pytest.approx(score, abs=2e-5)
