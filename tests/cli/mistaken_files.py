"""Files as they come to users: data that is not what its name says, models that lack something, runs of others."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from transformers import BertConfig, BertLMHeadModel, PreTrainedTokenizerBase

from alignment.config.model import ModelConfig
from alignment.distributed.placement import WHOLE
from alignment.models.load import load_language_model, load_scalar_model, save_model

PAIR = {"prompt": "What is a cow?", "chosen": "An animal.", "rejected": "A stone."}
REPLY = {"prompt": "What is a cow?", "completion": "An animal."}


def lines(*rows: Any) -> str:
    return "".join(f"{row if isinstance(row, str) else json.dumps(row)}\n" for row in rows)


DATA: dict[str, str | bytes] = {
    "pairs.jsonl": lines(PAIR, {**PAIR, "prompt": "And a calf?"}),
    "replies.jsonl": lines(REPLY, {**REPLY, "prompt": "And a calf?"}),
    "prompts.jsonl": lines({"prompt": "What is a cow?"}, {"prompt": "And a calf?"}),
    "labeled.jsonl": lines({**REPLY, "label": "perhaps"}),
    "long.jsonl": lines({**PAIR, "chosen": "An animal. " * 200}),
    "scored.jsonl": lines({**REPLY, "score": "high"}),
    "unscored.jsonl": lines(REPLY),
    "broken.jsonl": lines(PAIR, PAIR, '{"prompt": "What'),
    "python.jsonl": "{'prompt': 'a', 'chosen': 'b', 'rejected': 'c'}\n",
    "page.jsonl": "<!DOCTYPE html>\n<html></html>\n",
    "empty.jsonl": "",
    "blank.jsonl": "\n\n",
    "list.jsonl": "[1, 2]\n3\n",
    "strings.jsonl": '"a"\n"b"\n',
    "twice.jsonl": '{"prompt": "a", "chosen": "b", "chosen": "c", "rejected": "d"}\n',
    "no_rejected.jsonl": lines(PAIR, {"prompt": "a", "chosen": "b"}),
    "number.jsonl": lines({**PAIR, "chosen": 3}),
    "null.jsonl": lines({**PAIR, "rejected": None}),
    "hollow.jsonl": lines({**PAIR, "chosen": ""}),
    "no_question.jsonl": lines({**PAIR, "prompt": ""}),
    "same.jsonl": lines({**PAIR, "rejected": PAIR["chosen"]}),
    "odd_rating.jsonl": lines({**PAIR, "rating": "much better"}),
    "no_rating.jsonl": lines(PAIR),
    "number_rating.jsonl": lines({**PAIR, "rating": 3}),
    "backwards.jsonl": lines({**PAIR, "chosen_score": 1, "rejected_score": 3}),
    "no_margin.jsonl": lines({**PAIR, "margin": "big"}),
    "negative_margin.jsonl": lines({**PAIR, "margin": -1}),
    "other_names.jsonl": lines({"question": "a", "better": "b", "worse": "c"}),
    "role.jsonl": lines({"messages": [{"role": "usr", "content": "a"}, {"role": "assistant", "content": "b"}]}),
    "no_reply.jsonl": lines({"messages": [{"role": "user", "content": "a"}]}),
    "no_content.jsonl": lines({"messages": [{"role": "user"}, {"role": "assistant", "content": "b"}]}),
    "hh.jsonl": lines({"chosen": "Human: a", "rejected": "Human: b"}),
    "two_prompts.jsonl": lines({"chosen": "\n\nHuman: a\n\nAssistant: b", "rejected": "\n\nHuman: c\n\nAssistant: d"}),
    "image.jsonl": lines({**PAIR, "prompt": [{"role": "user", "content": [{"type": "image", "image": "a.png"}]}]}),
    "weight.jsonl": lines({**PAIR, "weight": -1}),
    "control.jsonl": lines({**PAIR, "chosen": "<s>An animal"}),
    "semicolons.csv": "prompt;chosen;rejected\na;b;c\n",
    "tabs.csv": "prompt\tchosen\trejected\na\tb\tc\n",
    "ragged.csv": "prompt,chosen,rejected\na,b,c\na,b,c,d\n",
    "short.csv": "prompt,chosen,rejected\na,b\n",
    "header.csv": "prompt,chosen,rejected\n",
    "no_header.csv": "What is a cow?,An animal.,A stone.\n",
    "twice.csv": "prompt,chosen,chosen\na,b,c\n",
    "quote.csv": 'prompt,chosen,rejected\n"a,b,c\n',
    "latin.csv": "prompt,chosen,rejected\nWas ist süß?,b,c\n".encode("latin-1"),
    "latin.jsonl": '{"prompt": "Was ist süß?", "chosen": "b", "rejected": "c"}\n'.encode("latin-1"),
    "utf16.jsonl": lines(PAIR).encode("utf-16"),
    "plain.jsonl.gz": lines(PAIR),
    "plain.jsonl.zst": lines(PAIR),
    "cut.jsonl.gz": b"\x1f\x8b\x08\x00\x00\x00\x00\x00\x00\x03abc",
    "plain.parquet": lines(PAIR),
    "plain.arrow": lines(PAIR),
    "pairs.txt": lines(PAIR),
    "pairs.xlsx": b"PK\x03\x04",
    "pairs.zip": b"PK\x03\x04",
    "one.json": json.dumps({"version": 1, "rows": 3}),
    "columns.json": json.dumps({"prompt": ["a", "b"], "chosen": ["c"], "rejected": ["d", "e"]}),
    "template.jinja": "{% for message in messages %}",
    "rewards.py": "def two(prompts, replies):\n    return [1.0]\n\n\nLIMIT = 3\n",
}


def write_data(folder: Path) -> None:
    for name, content in DATA.items():
        (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    (folder / "nothing").mkdir()
    (folder / "notes").mkdir()
    (folder / "notes" / "a.txt").write_text("a")


def write_models(
    folder: Path, tokenizer: PreTrainedTokenizerBase, other: PreTrainedTokenizerBase, init: dict[str, Any]
) -> None:
    """`model`, `judge`, and what becomes of them."""
    torch.manual_seed(0)
    for name, load in (("model", load_language_model), ("judge", load_scalar_model)):
        model: Any = load(ModelConfig(init={**init, "vocab_size": len(tokenizer)}), tokenizer, WHOLE)
        save_model(model, tokenizer, folder / name)
    small: Any = load_language_model(ModelConfig(init={**init, "vocab_size": len(other)}), other, WHOLE)
    save_model(small, other, folder / "small")
    BertLMHeadModel(
        BertConfig(
            vocab_size=len(tokenizer),
            hidden_size=16,
            num_hidden_layers=1,
            num_attention_heads=2,
            intermediate_size=16,
            is_decoder=False,
        )
    ).save_pretrained(folder / "bert")
    tokenizer.save_pretrained(folder / "bert")
    for name, change in CHANGES.items():
        shutil.copytree(folder / "model", folder / name)
        change(folder / name)
    (folder / "adapter").mkdir()
    settings = {"peft_type": "LORA", "base_model_name_or_path": "gone/base", "r": 2, "target_modules": ["q_proj"]}
    (folder / "adapter" / "adapter_config.json").write_text(json.dumps(settings))
    save_file({"a": torch.zeros(1)}, folder / "adapter" / "adapter_model.safetensors")


def _settings(**own: Any) -> Callable[[Path], None]:
    def change(model: Path) -> None:
        file = model / "config.json"
        file.write_text(json.dumps({**json.loads(file.read_text()), **own}))

    return change


def _without(*names: str) -> Callable[[Path], None]:
    def change(model: Path) -> None:
        for name in names:
            (model / name).unlink(missing_ok=True)

    return change


def _cut(model: Path) -> None:
    file = model / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])


def _weights(change: Callable[[dict[str, torch.Tensor]], None]) -> Callable[[Path], None]:
    def changed(model: Path) -> None:
        weights = load_file(model / "model.safetensors")
        change(weights)
        save_file(weights, model / "model.safetensors", {"format": "pt"})

    return changed


def _with(name: str, text: str) -> Callable[[Path], None]:
    def change(model: Path) -> None:
        (model / name).write_text(text)

    return change


def _index(model: Path) -> None:
    (model / "model.safetensors").unlink()
    index = {"metadata": {}, "weight_map": {"lm_head.weight": "model-00001-of-00002.safetensors"}}
    (model / "model.safetensors.index.json").write_text(json.dumps(index))


CHANGES: dict[str, Callable[[Path], None]] = {
    "no_config": _without("config.json"),
    "no_weights": _without("model.safetensors"),
    "cut": _cut,
    "pointer": _with("model.safetensors", "version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 10\n"),
    "shard_gone": _index,
    "no_tokenizer": _without("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"),
    "broken_tokenizer": _with("tokenizer.json", "{"),
    "broken_config": _with("config.json", "{"),
    "unknown_type": _settings(model_type="lama"),
    "no_type": _settings(model_type=None),
    "code": _settings(model_type="mine", auto_map={"AutoModelForCausalLM": "modeling_mine.Mine"}),
    "few_layers": _settings(num_hidden_layers=3),
    "wide": _settings(hidden_size=64),
    "short_positions": _settings(max_position_embeddings=64),
    "nan": _weights(lambda weights: weights.update({"model.norm.weight": torch.full((32,), float("nan"))})),
    "one_weight_gone": _weights(lambda weights: weights.__delitem__("model.norm.weight")),
}
