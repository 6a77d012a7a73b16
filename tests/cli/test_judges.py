"""Policies and reward models of different families through the command: each keeps its own tokenizer and template."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForSequenceClassification, AutoTokenizer, PreTrainedTokenizerBase

from alignment.config.model import ModelConfig
from alignment.distributed.placement import WHOLE
from alignment.models.load import load_language_model, load_scalar_model, save_model

Command = Callable[..., Any]
ENDS = "<end_of_turn>\n<eos>"  # of a reply in the judge's training
PROMPTS = ["hello", "how are you?", "hello there, a system", "the user of the assistant"]
OWN = ["data=native", "gold=null", "generation.max_new_tokens=6", "log.samples=4", "log.progress=false"]
PPO = ["run", "tiny_ppo", *OWN, "data.train.path=prompts.jsonl", "model=pretrained", "model.path=a", "batch.size=4"]
PPO += ["reward.function=null", "train.max_steps=1", "train.warmup_steps=0", "ppo.epochs=1"]


@pytest.fixture
def folders(
    tmp_path: Path,
    family: Callable[[str], PreTrainedTokenizerBase],
    tokenizer: PreTrainedTokenizerBase,
    tiny_init: dict[str, Any],
) -> Path:
    """Two policies of one vocabulary and two templates, a and c; a third of another, b; and a judge of yet another."""
    other = AutoTokenizer.from_pretrained(tokenizer.name_or_path)
    other.chat_template = "{% for m in messages %}{{ m['content'] + ' ' }}{% endfor %}"
    for name, own in (("a", tokenizer), ("c", other), ("b", family("qwen")), ("judge", family("gemma"))):
        torch.manual_seed(0)
        load: Any = load_scalar_model if name == "judge" else load_language_model
        save_model(load(ModelConfig(init={**tiny_init, "vocab_size": len(own)}), own, WHOLE), own, tmp_path / name)
    (tmp_path / "prompts.jsonl").write_text("".join(json.dumps({"prompt": text}) + "\n" for text in PROMPTS))
    return tmp_path


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def overflowing(folder: Path, name: str) -> dict[str, torch.Tensor]:
    """The weights of a model whose head, of this name, gives no numbers, though all of them are."""
    weights = load_file(folder / "model.safetensors")
    return {**weights, name: weights[name] * 1e30, "model.norm.weight": weights["model.norm.weight"] * 1e30}


@torch.no_grad()
def as_trained(folder: Path, row: dict[str, Any]) -> float:
    """transformers' own score of a row's text, laid out as the judge's training lays it out; in float64."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.float64).eval()
    prompt = tokenizer.apply_chat_template(row["prompt"], tokenize=False, add_generation_prompt=True)
    text = prompt + row["reply"] + (ENDS if row["finished"] or not row["reply"] else "")
    ids = torch.tensor([tokenizer(text, add_special_tokens=False)["input_ids"]])
    return float(model.score(model.base_model(ids).last_hidden_state[0, -1]))


def test_each_run_keeps_its_tokenizer_and_its_score_whoever_is_the_baseline(alignment: Command, folders: Path) -> None:
    words = ["run", "tiny_evaluate", *OWN, "data.eval.path=prompts.jsonl", "runs={a: a, b: b, c: c}", "reward=judge"]
    found = {}
    for baseline in ("a", "b"):
        ended = alignment(*words, f"baseline={baseline}", "num_samples=2", f"output_dir=by_{baseline}")
        assert (ended.code, ended.err) == (0, [])
        found[baseline] = json.loads((folders / f"by_{baseline}" / "summary.json").read_text())
        rows = lines(folders / f"by_{baseline}" / "samples.jsonl")
        assert {row["method"] for row in rows} == {"a", "b", "c", "best of 2"}
        for row in rows:
            assert row["score"] == pytest.approx(as_trained(folders / "judge", row), abs=2e-5)
    methods = {base: {row["name"]: row for row in summary["methods"]} for base, summary in found.items()}
    for name in ("a", "b", "c"):
        for figure in ("reward", "length"):
            assert methods["a"][name][figure] == pytest.approx(methods["b"][name][figure], abs=1e-5)
        assert (name == "a") != ("win_rate" in methods["a"][name])
    assert methods["a"]["a"]["reward"]["mean"] != methods["a"]["c"]["reward"]["mean"]  # same weights, another template
    assert methods["a"]["a"]["kl"]["mean"] == methods["b"]["b"]["kl"]["mean"] == 0
    assert methods["a"]["c"]["kl"]["mean"] != 0  # each behind the prompt as it is given it
    has_none = [("a", "b"), ("b", "a"), ("b", "c"), ("a", "best of 2")]
    assert ["kl" in methods[base][name] for base, name in has_none] == [False] * 4
    assert found["a"]["facts"]["tokens"].startswith("of b: another vocabulary than a,")


def test_ppo_and_rejection_with_a_judge_of_another_family(alignment: Command, folders: Path) -> None:
    ended = alignment(*PPO, "reward.path=judge", "output_dir=ppo")
    assert (ended.code, ended.err) == (0, [])
    assert "critic: begins as the policy's body with a new head, for judge has another vocabulary" in ended.out
    words = ["model=pretrained", "model.path=a", "reward.path=judge", "reward.function=null", "num_samples=4"]
    own = [word for word in OWN if word != "gold=null"]
    limits = ["data.train.path=prompts.jsonl", "data.train.limit=null", "generation.stop=[e]"]
    ended = alignment("run", "tiny_rejection", *own, *limits, *words, "output_dir=rejection")
    assert (ended.code, ended.err) == (0, [])
    rows = [row for name in ("ppo", "rejection") for row in lines(folders / name / "samples.jsonl")]
    assert len(rows) == 4 * 2 + 4 * 4 and {row["finished"] for row in rows} == {True, False}
    for row in rows:
        assert row["score"] == pytest.approx(as_trained(folders / "judge", row), abs=2e-5)


def test_a_critic_reads_the_policy_s_tokens(alignment: Command, folders: Path) -> None:
    ended = alignment(*PPO, "reward.path=judge", "critic.path=judge", "output_dir=out")
    rule = "critic.path must have the vocabulary of the policy, whose tokens the critic reads, or be null, got 'judge'"
    assert (ended.code, ended.err) == (2, [f"alignment: tiny_ppo: {rule}"])
    assert not (folders / "out").exists()


def test_a_reward_model_that_gives_nan_is_named(alignment: Command, folders: Path) -> None:
    """Not the actor, which would have learned from it."""
    save_file(overflowing(folders / "judge", "score.weight"), folders / "judge" / "model.safetensors")
    ended = alignment(*PPO, "reward.path=judge", "output_dir=out")
    (line,) = ended.err
    assert ended.code == 2
    told = "alignment: tiny_ppo: step 1: reward.path must give finite scores, got nan of 'judge' for the reply "
    assert line.startswith(told)
    assert "prompts.jsonl:" in line and "(8 of 8)" in line


def test_a_critic_or_a_policy_that_gives_nan_is_named(
    alignment: Command, folders: Path, tokenizer: PreTrainedTokenizerBase, tiny_init: dict[str, Any]
) -> None:
    save_model(load_scalar_model(ModelConfig(init=tiny_init), tokenizer, WHOLE), tokenizer, folders / "critic")
    save_file(overflowing(folders / "critic", "score.weight"), folders / "critic" / "model.safetensors")
    ended = alignment(*PPO, "reward.path=judge", "critic.path=critic", "output_dir=out")
    (line,) = ended.err
    assert ended.code == 2 and line.startswith("alignment: tiny_ppo: step 1: ")
    assert " values of the critic are no finite numbers (a lower critic.learning_rate keeps it from that, if " in line
    assert "Actor" not in line and (folders / "out" / "nonfinite.json").exists()
    save_file(overflowing(folders / "a", "lm_head.weight"), folders / "a" / "model.safetensors")
    ended = alignment(*PPO, "reward.path=judge", "output_dir=other")
    (line,) = ended.err
    assert ended.code == 2 and "tiny_ppo: step 1: the logits of the policy are no finite numbers: look for " in line


def test_every_model_s_table_of_positions_is_held_against_the_rows_before_the_run(
    alignment: Command, tmp_path: Path, tokenizer: PreTrainedTokenizerBase
) -> None:
    """Each run's of an evaluation, the reward model's where pairs are, and the critic's; the judge's own texts are cut
    to what it reads, and that is said."""
    for name, positions in (("long", 256), ("short", 16), ("judge", 16)):
        load: Any = load_scalar_model if name == "judge" else load_language_model
        init = {"model_type": "gpt2", "n_positions": positions, "n_embd": 32, "n_layer": 1, "n_head": 2}
        save_model(load(ModelConfig(init=init), tokenizer, WHOLE), tokenizer, tmp_path / name)
    prompts = [{"prompt": f"{text} " * 3, "chosen": "yes " * 9, "rejected": "no"} for text in PROMPTS]
    (tmp_path / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in prompts))
    evaluate = ["run", "tiny_evaluate", *OWN, "data.eval.path=prompts.jsonl", "reward=judge", "baseline=long"]

    def told(*words: str) -> str:
        ended = alignment(*words, "output_dir=out")
        (line,) = ended.err
        assert ended.code == 2 and not (tmp_path / "out").exists()
        return str(line)

    line = told(*evaluate, "runs={long: long, short: short}")
    assert "runs.short: data.max_prompt_length + generation.max_new_tokens must be <= 16, the positions of " in line
    line = told(*evaluate, "runs={long: long}", "pairs.eval.path=prompts.jsonl")
    assert "tiny_evaluate: reward: pairs.max_length must be <= 16, the positions of the model, got rows of " in line
    line = told(*[word.replace("path=a", "path=long") for word in PPO], "reward.path=judge")
    assert "the critic, which begins as judge (critic.path names another): data.max_prompt_length + generation" in line
    ended = alignment(*evaluate, "runs={long: long}", "output_dir=out")
    assert ended.code == 0 and "reward: 4 texts are longer than the 16 tokens that it reads, and were cut" in ended.out
