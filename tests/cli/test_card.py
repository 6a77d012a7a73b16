"""The card of a saved model: what the hub reads of it, what people do, and what is in it of this machine: nothing."""

import json
import re
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import ModelCard
from peft import PeftModel
from transformers import AutoModelForCausalLM

from alignment.runs.contents import digest

SMALL = ["data.train.limit=8", "data.eval.limit=4", "batch.size=4", "train.max_steps=1", "train.warmup_steps=0"]
SMALL += ["log.progress=false", "train.eval_every=0"]
SIZE = ["model.init.hidden_size=32", "model.init.intermediate_size=48"]
FRONT = "---\nbase_model: org/base\nlicense: mit\n---\nA base.\n"


def card(path: Path) -> ModelCard:
    return ModelCard.load(path / "README.md")


def test_a_model_has_a_card_that_the_hub_reads(alignment: Callable[..., Any], tmp_path: Path) -> None:
    assert alignment("run", "tiny_sft", *SIZE, *SMALL, "output_dir=sft").code == 0
    (tmp_path / "sft" / "model" / "README.md").write_text(FRONT)  # as of a model that somebody has downloaded
    dpo = [*SMALL, "model.path=sft/model", "loss.beta=0.2", "model.lora.rank=2", "model.lora.alpha=4"]
    assert alignment("run", "tiny_dpo", *dpo, f"output_dir={tmp_path}/dpo").code == 0
    found = card(tmp_path / "dpo" / "model")
    assert found.data.to_dict() == {
        "license": "mit",  # its base's; whose base is not the base of what is trained on it
        "library_name": "transformers",
        "pipeline_tag": "text-generation",
        "tags": ["preference-alignment", "dpo"],
    }
    text = str(found)
    assert "arXiv:2305.18290" in text and "of `sft/model`, on the toy task's rows" in text
    assert "\nloss.beta: 0.2\n" in text and "AutoModelForCausalLM" in text and "| eval/loss | 0." in text
    assert str(tmp_path) not in text and "time/" not in text
    adapter = card(tmp_path / "dpo" / "model" / "adapter")
    assert adapter.data.library_name == "peft" and "PeftModel" in str(adapter)


@pytest.mark.parametrize("how", ["nf4", "int8"])
def test_an_adapter_on_a_packed_base_is_used_as_its_card_says(
    alignment: Callable[..., Any], tmp_path: Path, how: str
) -> None:
    """On the base as it was packed: on the whole weights it is another model, most of all LoftQ's, which begins as what
    packing lost. What it then says is what the run's model says, whose weights are whole."""
    assert alignment("run", "tiny_sft", *SIZE, *SMALL, "output_dir=sft").code == 0
    packed = ["model.path=sft/model", "model.lora.rank=4", f"model.quantization={how}"]
    begin = ["model.lora.init=loftq"] if how == "nf4" else []
    assert alignment("run", "tiny_dpo", *SMALL, *packed, *begin, "output_dir=dpo").code == 0
    [code] = re.findall(r"```python\n(.*?)```", (tmp_path / "dpo/model/adapter/README.md").read_text(), re.DOTALL)
    names: dict[str, Any] = {}
    with warnings.catch_warnings(action="ignore"):
        exec(code.replace('"..."', '"dpo/model/adapter"', 1).replace('"..."', '"sft/model"', 1), names)
    ids = torch.tensor([[5, 6, 7, 8, 2]])
    names["model"].train()  # without dropout: else bitsandbytes packs anew for a CPU's inference, and rounds scales
    unpacked = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained("sft/model"), "dpo/model/adapter")
    with torch.no_grad():
        whole = AutoModelForCausalLM.from_pretrained("dpo/model")(ids).logits
        found, far = (model(ids).logits for model in (names["model"], unpacked))
    near = {"nf4": 1e-4, "int8": 0.1}[how]  # products of 8 bits
    assert (found - whole).abs().max() < near
    assert how == "int8" or (far - whole).abs().max() > 0.01


def test_equal_runs_have_equal_cards_and_a_card_is_no_content(alignment: Callable[..., Any], tmp_path: Path) -> None:
    for name in ("one", "two"):
        assert alignment("run", "tiny_reward", *SIZE, *SMALL, f"output_dir={name}", "log.every=2").code == 0
    one, two = (tmp_path / name / "model" for name in ("one", "two"))
    assert (one / "README.md").read_bytes() == (two / "README.md").read_bytes()
    found = card(one)
    assert found.data.pipeline_tag == "text-classification" and "reward-model" in (found.data.tags or [])
    assert "AutoModelForSequenceClassification" in str(found) and "| eval/rewards/accuracy | " in str(found)
    before = digest(one)
    (one / "README.md").write_text((one / "README.md").read_text().replace("eval/loss", "eval/lost"))
    assert digest(one) == before
    (one / "README.md").write_text("Somebody else's.")
    assert digest(one) != before


def test_rows_and_models_of_this_machine_have_their_last_names(alignment: Callable[..., Any], tmp_path: Path) -> None:
    rows = [{"prompt": f"What is {n}?", "chosen": f"It is {n}.", "rejected": "No"} for n in range(4)]
    secret = tmp_path / "secret" / "pairs.jsonl"
    secret.parent.mkdir()
    secret.write_text("".join(json.dumps(row) + "\n" for row in rows))
    words = [word for word in SMALL if not word.startswith("data.")]
    ended = alignment("run", "tiny_dpo", *words, "data=native", f"data.train.path={secret}", "output_dir=out")
    assert (ended.code, ended.err) == (0, [])
    text = (tmp_path / "out" / "model" / "README.md").read_text()
    assert "on `pairs.jsonl`" in text and "secret" not in text and "of a random llama" in text


def test_an_exported_checkpoint_has_one_too(alignment: Callable[..., Any], tmp_path: Path) -> None:
    words = [*SMALL, "train.max_steps=2", "checkpoint.every=1", "output_dir=out"]
    assert alignment("run", "tiny_sft", *words).code == 0
    ended = alignment("export", "out", "--step", "1", "--out", "model")
    assert (ended.code, ended.err) == (0, [])
    assert "After step 1;" in (tmp_path / "model" / "README.md").read_text()


def test_the_card_of_the_best_weights_has_their_own_numbers(alignment: Callable[..., Any], tmp_path: Path) -> None:
    words = ["train.best.metric=eval/loss", "train.best.mode=max"]  # a loss that falls is best before the first step
    words += ["train.max_steps=3", "train.eval_every=1", "train.learning_rate=0.01"]
    ended = alignment("run", "tiny_sft", *SIZE, *SMALL, *words, "output_dir=out")
    assert ended.code == 0
    rows = [json.loads(line) for line in (tmp_path / "out" / "metrics.jsonl").read_text().splitlines()]
    first, last = rows[0]["eval/loss"], rows[-1]["eval/loss"]
    assert last < first - 0.01
    for folder in ("model", "best"):
        text = str(card(tmp_path / "out" / folder))
        assert f"| eval/loss | {first:.4g} |" in text and "\nAfter step 0; " in text
    assert f"  eval/loss {first:.4g} (step 0)" in ended.out
