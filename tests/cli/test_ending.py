"""The last lines of a run: what was learned, where it lies, what to do next."""

import json
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from alignment.cli.main import VERBS
from alignment.evaluate.metrics import proportion
from alignment.evaluate.rows import course, interval_of, value_words

SMALL = ["data.train.limit=16", "data.eval.limit=4", "batch.size=4", "train.max_steps=2", "train.warmup_steps=0"]


def rows(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_a_trained_model_beside_the_one_it_began_as(alignment: Callable[..., Any], tmp_path: Path) -> None:
    sft = alignment("run", "tiny_sft", *SMALL, "output_dir=sft").out.splitlines()
    found = rows(tmp_path / "sft")[-1]
    assert sft[-9:-3] == [
        "finished at step 2",
        *(
            f"  eval/{name} {found[f'eval/{name}']:.4g} (step 2)"
            for name in ("loss", "perplexity", "mean_token_accuracy")
        ),
        "model: sft/model",
        "logs: sft/metrics.jsonl",
    ]
    dpo = alignment("run", "tiny_dpo", *SMALL, "train.eval_every=1", "model.path=sft/model", "output_dir=dpo").out
    first, last = rows(tmp_path / "dpo")
    assert first["eval/rewards/pairs"] == last["eval/rewards/pairs"] == 4
    low, high = interval_of(last, "eval/rewards/accuracy") or (0, 0)
    assert f"-> {last['eval/rewards/accuracy']:.4g} [{low:.3g}, {high:.3g}] (step 1 -> 2)" in dpo
    told = [line.removeprefix("next: ") for line in (*sft, *dpo.splitlines()) if line.startswith("next: ")]
    assert told[:2] == ["alignment run tiny_dpo model.path=sft/model", "alignment chat sft"]
    assert told[4:] == ["alignment chat dpo", "alignment push dpo dpo --private"] and {"chat", "push"} <= set(VERBS)
    _, *words = shlex.split(told[3])
    ended = alignment(*words, "data.eval.limit=4", "generation.max_new_tokens=4", "output_dir=out")
    assert (ended.code, ended.err) == (0, [])
    again = alignment("run", "tiny_sft", *SMALL, "output_dir=sft").out.splitlines()
    assert "nothing to do" in again[0] and again[1:] == ["model: sft/model", "logs: sft/metrics.jsonl"]


def test_what_is_next_on_rows_of_one_s_own(alignment: Callable[..., Any], tmp_path: Path) -> None:
    row = {"prompt": "Which animal says moo?", "chosen": "The cow does.", "rejected": "No."}
    (tmp_path / "it's.jsonl").write_text(f"{json.dumps(row)}\n" * 4)
    own = ["data=native", 'data.train.path="it\'s.jsonl"', 'data.eval.path="it\'s.jsonl"', "data.eval.limit=null"]
    small = [*own, "data.train.limit=null", "batch.size=2", "train.max_steps=1", "train.warmup_steps=0"]
    for recipe in ("tiny_orpo", "tiny_reward"):
        said = alignment("run", recipe, *small, f"output_dir={recipe}").out.splitlines()
        command = next(line.removeprefix("next: ") for line in said if line.startswith("next: "))
        verb, *words = shlex.split(command)[1:]
        assert verb == "evaluate" in VERBS and words[-1] == "it's.jsonl"
        ended = alignment(verb, *words, "generation.max_new_tokens=4", f"output_dir=of_{recipe}")
        assert (ended.code, ended.err) == (0, []), command


def nexts(said: str) -> list[list[str]]:
    """The words of each command that a run's end proposes, behind `alignment`."""
    return [shlex.split(line)[2:] for line in said.splitlines() if line.startswith("next: ")]


def test_a_soft_prompt_is_what_is_trained_on(alignment: Callable[..., Any]) -> None:
    alignment("run", "tiny_sft", *SMALL, "output_dir=base")
    prompt = ["model.path=base/model", "model.soft_prompt.tokens=4", "output_dir=prompt"]
    said = alignment("run", "tiny_sft", *SMALL, *prompt).out
    words = next(words for words in nexts(said) if "tiny_dpo" in words)
    assert words == ["run", "tiny_dpo", "model.adapter=prompt/model"]
    ended = alignment(*words, *SMALL, "output_dir=dpo")
    assert (ended.code, ended.err) == (0, [])


def test_a_run_on_pairs_of_one_s_own_leads_to_dpo_and_ppo(alignment: Callable[..., Any], tmp_path: Path) -> None:
    """SFT on pairs to DPO with the same rows; a reward model to PPO of the model that it began as."""
    asked = [{"q": f"Which animal says {n}?", "chosen": "The cow does.", "rejected": "No."} for n in range(4)]
    for name in ("it's", "held"):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in asked))
    few = ["batch.size=2", "train.max_steps=1", "train.warmup_steps=0"]
    own = ['data.train.path="it\'s.jsonl"', "data.eval.path=held.jsonl", "data.columns={prompt: q}"]
    small = ["data=native", *own, "data.train.limit=null", "data.eval.limit=null", *few]
    to_dpo = nexts(alignment("run", "tiny_sft", *small, "output_dir=my sft").out)
    assert [words[0] for words in to_dpo] == ["run", "chat", "push"] and to_dpo[2][1:3] == ["my sft", "my sft"]
    assert to_dpo[0][1:3] == ["dpo", "model.path=my sft/model"]
    to_ppo = nexts(alignment("run", "tiny_reward", *small, "model.path='my sft/model'", "output_dir=judge").out)
    assert to_ppo[-1][:4] == ["run", "ppo", "model.path=my sft/model", "reward.path=judge/model"]
    rollouts = ["generation.max_new_tokens=4", "ppo.mini_batches=1", "train.epochs=null", "train.warmup_ratio=0"]
    for words, more in ((to_dpo[0], ["train.warmup_ratio=0"]), (to_ppo[-1], rollouts)):
        ended = alignment(*words, *few, *more, f"output_dir=of_{words[1]}")
        assert (ended.code, ended.err) == (0, []), words


def test_a_reward_model_of_the_toy_task_leads_to_its_accuracy_and_to_ppo(alignment: Callable[..., Any]) -> None:
    accuracy, ppo = nexts(alignment("run", "tiny_reward", *SMALL, "output_dir=judge").out)
    ended = alignment(*accuracy, "pairs.eval.limit=8", "output_dir=accuracy")
    assert (ended.code, ended.err) == (0, []) and accuracy[:3] == ["evaluate", "--reward", "judge"]
    assert ppo == ["run", "tiny_ppo", "reward.path=judge/model", "reward.function=null"]
    assert alignment(*ppo, "--cfg", "job").code == 0


def test_what_was_selected_can_be_learned_at_once(alignment: Callable[..., Any], tmp_path: Path) -> None:
    few = ["data.train.limit=8", "num_samples=16", "generation.max_new_tokens=40", "output_dir=best"]
    said = alignment("run", "tiny_rejection", *few).out.splitlines()
    assert said[-3:-1] == ["rows: best/selected.jsonl", "logs: best/metrics.jsonl"]
    _, *words = shlex.split(said[-1].removeprefix("next: "))
    ended = alignment(*words, "train.max_steps=1", "batch.size=1", "output_dir=sft")
    assert (ended.code, ended.err) == (0, [])


def test_an_early_end_says_why(alignment: Callable[..., Any]) -> None:
    best = ["train.best.metric=eval/loss", "train.best.mode=max", "train.best.patience=1", "train.eval_every=1"]
    said = alignment("run", "tiny_sft", *SMALL, "train.max_steps=9", *best, "output_dir=out").out.splitlines()
    why = "finished at step 1, before its last one: stopped at step 1: 1 evaluations without a better eval/loss"
    assert why in said


def test_intervals_are_those_of_their_metric() -> None:
    row = {"step": 3, "eval/rewards/accuracy": 0.75, "eval/rewards/pairs": 40.0}
    share = proportion(30, 40)
    assert interval_of(row, "eval/rewards/accuracy") == pytest.approx((share.low, share.high))
    assert interval_of({**row, "eval/rewards/right": 1.0}, "eval/rewards/accuracy") is None  # steps of one reply
    drawn = {"step": 1, "eval/reward": 2.0, "eval/stderr/reward": 0.5, "eval/gold": 1.0, "reward": 3.0}
    assert interval_of(drawn, "eval/reward") == pytest.approx((2 - 0.98, 2 + 0.98), abs=1e-4)
    assert interval_of(drawn, "eval/gold") is None and interval_of(drawn, "reward") is None
    named = {"step": 1, "eval/own/rewards/accuracy": 1.0, "eval/own/rewards/pairs": 4.0}
    assert value_words(named, "eval/own/rewards/accuracy") == f"1 [{proportion(4, 4).low:.3g}, 1]"


def test_the_course_is_from_the_first_evaluation_to_the_last() -> None:
    found = [{"step": 0, "eval/loss": 2.0}, {"step": 1, "loss": 1.0}, {"step": 5, "eval/loss": 1.5, "eval/kl": 0.5}]
    assert course(found) == ["eval/loss 2 -> 1.5 (step 0 -> 5)", "eval/kl 0.5 (step 0 -> 5)"]
    assert course(found[:2]) == ["eval/loss 2 (step 0)"] and course(found[1:2]) == []


def test_a_pipeline_ends_with_its_stages_and_only_it_says_what_is_next(
    alignment: Callable[..., Any], own: Callable[[str, str], str]
) -> None:
    values = ", ".join(word.replace("=", ": ") for word in (*SMALL, "log.progress=false"))
    stages = f"[{{name: a, recipe: tiny_sft, set: {{{values}}}}}, {{name: b, recipe: tiny_orpo, set: {{{values}}}}}]"
    ended = alignment(
        "run", own("mine", f"defaults: [{{task: pipeline}}, _self_]\nstages: {stages}\n"), "output_dir=out"
    )
    assert ended.code == 0, ended.err
    said = ended.out.splitlines()
    assert said[-2:] == ["all 2 stages are done: out/a, out/b", "next: alignment status out"]
    assert [line for line in said if line.startswith("next: ")] == said[-1:]
    assert {"model: out/a/model", "model: out/b/model"} <= set(said)
