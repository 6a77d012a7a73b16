"""Another model as the reference: reference.path of DPO, KTO and online DPO."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from alignment.training import supervised

SMALL = ["model.init.hidden_size=32", "model.init.intermediate_size=48", "log.progress=false", "train.warmup_steps=0"]
ROWS = ["data.train.limit=16", "data.eval.limit=4", "batch.size=4"]
SFT = ["run", "tiny_sft", *SMALL, *ROWS, "train.max_steps=1", "checkpoint.save_last=false"]
TRAINED = ["model=pretrained", "model.path=a/model", "log.progress=false", *ROWS, "train.warmup_steps=0"]
DPO = ["run", "tiny_dpo", *TRAINED, "train.max_steps=2", "reference.folder=kept"]


def rows(folder: Path) -> list[dict[str, float]]:
    found = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in row.items() if not name.startswith("time/")} for row in found]


@pytest.fixture
def models(alignment: Callable[..., Any]) -> None:
    """Two models of one architecture, `a` and `b`."""
    for name, seed in (("a", 1), ("b", 2)):
        assert alignment(*SFT, f"seed={seed}", f"output_dir={name}").code == 0


def test_the_policy_itself_by_its_path_is_the_reference_that_it_is_without(
    models: None, alignment: Callable[..., Any], tmp_path: Path
) -> None:
    for method in ("tiny_dpo", "tiny_kto"):
        words = ["run", method, *DPO[2:]]
        for name, more in (("plain", []), ("same", ["reference.path=a/model"])):
            ended = alignment(*words, *more, f"output_dir={method}-{name}")
            assert ended.code == 0, ended.err
        assert rows(tmp_path / f"{method}-plain") == rows(tmp_path / f"{method}-same")


def test_another_model_s_log_probs_are_what_a_policy_is_held_against(
    models: None, alignment: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: dict[str, Any] = {}
    tables_of_another, policy_loaded = supervised.tables_of_another, []
    load = supervised.load_language_model

    def kept(config: Any, prepared: Any, objective: Any) -> Any:
        assert not policy_loaded, "the reference is gone before the policy comes"
        seen["examples"], seen["tables"] = prepared.train.examples, tables_of_another(config, prepared, objective)
        return seen["tables"]

    def noted(*arguments: Any) -> Any:
        policy_loaded.append(1)
        return load(*arguments)

    with monkeypatch.context() as patched:
        patched.setattr(supervised, "tables_of_another", kept)
        patched.setattr(supervised, "load_language_model", noted)
        ended = alignment(*DPO, "reference.path=b/model", "output_dir=out")
    assert ended.code == 0, ended.err
    assert "reference: b/model, read before the policy; rewards are 0 before step 1 only where" in ended.out
    reference = AutoModelForCausalLM.from_pretrained(tmp_path / "b" / "model").eval()
    held_out, train = seen["tables"]
    assert (len(train), len(held_out)) == (16, 4)
    wanted = train[:, 0].isfinite().nonzero()[:, 0].tolist()
    assert len(wanted) == 8  # of two steps
    for row in wanted[:3]:
        example = seen["examples"][row]
        prompt = example.prompt_ids.tolist()
        for side, completion in enumerate(example.completion_ids):
            ids = torch.tensor([prompt + completion.tolist()])
            logits = reference(ids).logits[0, len(prompt) - 1 : -1].log_softmax(-1)
            want = logits.gather(-1, ids[0, len(prompt) :, None]).sum().item()
            assert train[row, side].item() == pytest.approx(want, rel=1e-4)
    assert abs(rows(tmp_path / "out")[0]["loss"] - math.log(2)) > 1e-4
    assert len(list((tmp_path / "kept").iterdir())) == 2
    assert alignment(*DPO, "output_dir=own").code == 0
    assert len(list((tmp_path / "kept").iterdir())) == 4, "another reference has a table of another name"


def test_the_reference_is_an_input_of_the_run(models: None, alignment: Callable[..., Any], tmp_path: Path) -> None:
    assert alignment(*DPO, "reference.path=b/model", "output_dir=out").code == 0
    ended = alignment(*DPO, "reference.path=a/model", "output_dir=out")
    assert ended.code == 2 and "(the contents of reference.path changed), got 'out'; another output_dir" in ended.err[0]
    ended = alignment(*DPO, "output_dir=out", "resume.accept=[reference.path]")
    assert ended.code == 2 and "with another reference.path it is another run" in ended.err[0]


@pytest.mark.parametrize("verb", ["run", "check"])
def test_a_reference_of_other_tokens_is_refused(
    verb: str, models: None, alignment: Callable[..., Any], tmp_path: Path
) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "b" / "model")
    content = json.loads((tmp_path / "b" / "model" / "tokenizer.json").read_bytes())
    vocabulary = content["model"]["vocab"]
    first, second = [piece for piece in vocabulary if piece not in tokenizer.all_special_tokens][5:7]
    vocabulary[first], vocabulary[second] = vocabulary[second], vocabulary[first]
    (tmp_path / "b" / "model" / "tokenizer.json").write_text(json.dumps(content))
    ended = alignment(verb, *DPO[1:], "reference.path=b/model", "output_dir=out")
    assert ended.code == 2 and len(ended.err) == 1, ended.err
    rule = "reference.path must have the vocabulary of the policy, whose tokens the reference reads"
    assert f"{rule}; null takes the policy itself, got 'b/model'" in ended.err[0]


def test_online_dpo_is_held_against_it_too(models: None, alignment: Callable[..., Any], tmp_path: Path) -> None:
    (tmp_path / "longer_is_better.py").write_text(
        "def score(prompts, replies):\n    return [float(len(r)) for r in replies]\n"
    )
    words = ["run", "tiny_online_dpo", *TRAINED, "train.max_steps=2", "generation.max_new_tokens=6"]
    words.append("reward.function=longer_is_better.score")
    for name, more in (("plain", []), ("same", ["reference.path=a/model"]), ("other", ["reference.path=b/model"])):
        ended = alignment(*words, *more, f"output_dir={name}")
        assert ended.code == 0, ended.err
    plain, same, other = (rows(tmp_path / name) for name in ("plain", "same", "other"))
    assert plain == same and plain[0]["loss"] == pytest.approx(math.log(2), abs=1e-5)
    assert abs(other[0]["loss"] - math.log(2)) > 1e-4
