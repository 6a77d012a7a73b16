"""PPO's reward and KL in whole runs: stopped at the limit with the best model, resumed, scored by several models."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM

from alignment.cli.compose import composing, resolve, single
from alignment.config.online import PPOConfig
from alignment.models.reward_normalization import FILE
from alignment.tasks import ppo
from alignment.tasks.ppo import unlike_its_authors
from alignment.training.best import BestWithinLimit

TINY = ["model.init.hidden_size=32", "model.init.intermediate_size=48", "log.progress=false", "seed=3"]
SMALL = [*TINY, "data.train.limit=32", "data.eval.limit=8", "batch.size=8", "generation.max_new_tokens=10"]
RUN = ["run", "tiny_ppo", *SMALL, "train.learning_rate=1.0e-3"]
NO_KL = ["kl.controller=fixed", "kl.target=null", "kl.weight=0"]
ADAPTIVE = ["kl.controller=adaptive", "kl.target=0.5", "kl.horizon=32", "checkpoint.every=2"]


def rows(folder: Path) -> list[dict[str, float]]:
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [{name: v for name, v in json.loads(line).items() if not name.startswith("time/")} for line in lines]


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return AutoModelForCausalLM.from_pretrained(folder).state_dict()


def same(one: Path, other: Path) -> bool:
    first, second = weights(one), weights(other)
    return all(torch.equal(first[name], second[name]) for name in first)


def test_an_adaptive_weight_goes_on_where_it_was(
    alignment: Callable[..., Any], tmp_path: Path, ppo_interrupted: Callable[[int], Any]
) -> None:
    words = [*RUN, *ADAPTIVE, "train.max_steps=5"]
    assert alignment(*words, "output_dir=whole").code == 0
    with ppo_interrupted(3):
        assert alignment(*words, "output_dir=cut").code == 130
    assert alignment(*words, "output_dir=cut").code == 0
    assert rows(tmp_path / "cut") == rows(tmp_path / "whole")
    assert same(tmp_path / "cut" / "model", tmp_path / "whole" / "model")
    used, weight = [], 0.2
    for row in rows(tmp_path / "whole"):
        used.append(weight)
        weight *= 1 + min(max((row["kl"] - 0.5) / 0.5, -0.2), 0.2) * 16 / 32  # 16 replies of a horizon of 32
    assert [row["kl/weight"] for row in rows(tmp_path / "whole")] == pytest.approx(used)
    assert used[1] < used[0] and len(set(used)) == len(used)  # the KL began below its target; the weight always moves


def test_another_weight_acts_at_once_and_adapts_from_there(
    alignment: Callable[..., Any], tmp_path: Path, ppo_interrupted: Callable[[int], Any]
) -> None:
    words = [*RUN, *ADAPTIVE, "checkpoint.every=1", "train.max_steps=4", "output_dir=cut"]
    with ppo_interrupted(2):
        assert alignment(*words).code == 130
    ended = alignment(*words, "kl.weight=0.7", "resume.accept=[kl.weight]")
    assert ended.code == 0, ended.err
    found = rows(tmp_path / "cut")
    grown = 0.7 * (1 + min(max((found[2]["kl"] - 0.5) / 0.5, -0.2), 0.2) * 16 / 32)
    assert [row["kl/weight"] for row in found[2:]] == pytest.approx([0.7, grown])


def test_the_limit_ends_the_run_with_the_best_model_before_it(
    alignment: Callable[..., Any], tmp_path: Path, ppo_interrupted: Callable[[int], Any]
) -> None:
    """The model is that with which the best iteration began to learn. Interrupted, the run ends the same."""
    (tmp_path / "rule_of_length.py").write_text(
        "def rule(prompts, replies):\n    return [float(len(r)) for r in replies]\n"
    )
    free = [*RUN, *NO_KL, "reward.function=rule_of_length.rule"]
    assert alignment(*free, "train.max_steps=6", "output_dir=free").code == 0
    kls = [row["kl"] for row in rows(tmp_path / "free")]
    limit, at = max(kls[:3]) * 1.01, next(step for step, kl in enumerate(kls, start=1) if kl > max(kls[:3]) * 1.01)
    words = [*free, "train.max_steps=6", f"kl.limit={limit}", "checkpoint.every=2"]
    ended = alignment(*words, "output_dir=out")
    assert (ended.code, ended.err) == (0, [])
    out = tmp_path / "out"
    assert [row["step"] for row in rows(out)] == list(range(1, at + 1)) and rows(out)[-1]["kl"] == kls[at - 1] > limit
    assert "loss" not in rows(out)[-1]
    stopped = json.loads((out / "finished.json").read_text())["stopped"]
    rewards = [row["reward"] for row in rows(out)][: at - 1]
    best = 1 + max(range(at - 1), key=lambda index: rewards[index])
    assert f"stopped at step {at}" in stopped and f"the model is that of step {best}" in stopped
    assert " ".join(stopped.split()) in " ".join(ended.out.split())
    assert best > 1 and same(out / "model", out / "best")
    assert alignment(*free, f"train.max_steps={best - 1}", "output_dir=short").code == 0
    assert same(out / "model", tmp_path / "short" / "model")
    again = alignment(*words, "output_dir=out")
    assert again.code == 0 and "finished already" in again.out

    with ppo_interrupted(at - 2):
        assert alignment(*words, "output_dir=cut").code == 130
    assert alignment(*words, "output_dir=cut").code == 0
    assert rows(tmp_path / "cut") == rows(out) and same(tmp_path / "cut" / "model", out / "model")


def test_an_interrupted_run_does_not_forget_its_best(
    alignment: Callable[..., Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    ppo_interrupted: Callable[[int], Any],
) -> None:
    """Every score is worse than those before it: the best iteration is the first, also for the resumed run."""
    (tmp_path / "rule_that_falls.py").write_text(
        "import itertools\ncalls = itertools.count()\n"
        "def rule(prompts, replies):\n    return [-float(next(calls))] * len(replies)\n"
    )
    words = [*RUN, *NO_KL, "reward.function=rule_that_falls.rule", "train.max_steps=5", "checkpoint.every=2"]
    with ppo_interrupted(2):
        assert alignment(*words, "kl.limit=1000", "output_dir=out").code == 130
    with monkeypatch.context() as patched:  # another limit would be another run's config
        measured = BestWithinLimit.before_update

        def limited(keeper: BestWithinLimit, step: int, *rest: Any) -> str | None:
            keeper.limit = -math.inf if step == 4 and keeper.step > 0 else keeper.limit
            return measured(keeper, step, *rest)

        patched.setattr(BestWithinLimit, "before_update", limited)
        assert alignment(*words, "kl.limit=1000", "output_dir=out").code == 0
    assert "the model is that of step 1 " in json.loads((tmp_path / "out" / "finished.json").read_text())["stopped"]


def test_several_reward_models_from_their_training_to_ppo(alignment: Callable[..., Any], tmp_path: Path) -> None:
    small = [*TINY, "data.train.limit=32", "batch.size=8", "train.max_steps=2"]
    for name, eval_limit, rate in (("help", "6", "1.0e-3"), ("safe", "null", "1.0e-2")):
        differs = [f"data.eval.limit={eval_limit}", f"train.learning_rate={rate}", f"output_dir={name}"]
        assert alignment("run", "tiny_reward", *small, *differs).code == 0
    found = [json.loads((tmp_path / name / "model" / FILE).read_text()) for name in ("help", "safe")]
    assert [(each["count"], each["split"]) for each in found] == [(12, "eval"), (64, "train")]

    one = "{path: help/model, normalize: true, weight: 0.5}"
    words = [*RUN, "train.max_steps=1", "reward.function=null"]
    ended = alignment(*words, f"reward.models={{a: {one}, b: {{function: alignment.toy.gold}}}}", "output_dir=sum")
    assert (ended.code, ended.err) == (0, [])
    (row,) = rows(tmp_path / "sum")
    normalized = (row["reward/a"] - found[0]["mean"]) / found[0]["std"]
    assert row["reward"] == pytest.approx(0.5 * normalized + row["reward/b"], rel=1e-4)
    assert row["eval/reward/a"] != row["reward/a"]

    models = "{helpfulness: {path: help/model}, safety: {path: safe/model}}"
    for tag, decides in (("safety", "safety"), ("other", "helpfulness")):  # a threshold of 0 leaves it to the tag
        prompts = "".join(json.dumps({"prompt": f"Tell me {n}", "tags": [tag]}) + "\n" for n in range(8))
        (tmp_path / f"{tag}.jsonl").write_text(prompts)
        own = [
            "data=native",
            f"data.train.path={tag}.jsonl",
            "data.train.limit=null",
            "data.eval.limit=null",
            "gold=null",
        ]
        combined = ["reward.combine=llama2", f"reward.models={models}", "reward.safety_threshold=0"]
        ended = alignment(*words, *own, *combined, f"output_dir=out_{tag}")
        assert (ended.code, ended.err) == (0, [])
        (row,) = rows(tmp_path / f"out_{tag}")
        assert row["reward"] == row[f"reward/{decides}"]
        assert row["reward/safety"] != row["reward/helpfulness"]
        assert row["objective/scores"] == pytest.approx(0.0, abs=1e-5)

    (tmp_path / "help" / "model" / FILE).unlink()
    ended = alignment(*words, f"reward.models={{a: {one}}}", "output_dir=none")
    assert ended.code == 2 and not (tmp_path / "none").exists()
    assert ended.err[0].startswith("alignment: tiny_ppo: reward.models.a.normalize needs the file that reward training")


def test_a_finished_run_made_longer_is_the_run_of_that_length(alignment: Callable[..., Any], tmp_path: Path) -> None:
    """To the last bit, with a schedule that does not ask for the end: controller, average and critic go on too."""
    words = [*RUN, *ADAPTIVE, "checkpoint.every=1", "data.eval.limit=null", "ppo.ema=0.8", "critic.warmup=1"]
    assert alignment(*words, "train.max_steps=2", "output_dir=out").code == 0
    ended = alignment(*words, "train.max_steps=4", "output_dir=out")
    assert (ended.code, ended.err) == (0, []) and "out: goes on to train.max_steps=4, where 2 was" in ended.out
    assert alignment(*words, "train.max_steps=4", "output_dir=whole").code == 0
    assert rows(tmp_path / "out") == rows(tmp_path / "whole")
    for model in ("model", "model_ema"):
        assert same(tmp_path / "out" / model, tmp_path / "whole" / model)
    shown = [(tmp_path / name / "samples.jsonl").read_text() for name in ("out", "whole")]
    assert shown[0] == shown[1] != ""


def test_prompts_whose_replies_score_alike_are_left_out_where_asked_for(
    alignment: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One of four prompts, with three replies each: neither learned from nor measured."""
    (tmp_path / "rule_with_a_tie.py").write_text(
        "def rule(prompts, replies):\n    return [float(max(k, 2)) for k in range(len(replies))]\n"
    )
    update, learned = ppo.update_actor_and_critic, []

    def counted(actor: Any, critic: Any, mini_batches: Any, *arguments: Any, **named: Any) -> Any:
        learned.append(sum(each.num_replies for mini_batch in mini_batches for each in mini_batch))
        return update(actor, critic, mini_batches, *arguments, **named)

    monkeypatch.setattr(ppo, "update_actor_and_critic", counted)
    few = ["batch.size=4", "num_samples=3", "train.max_steps=1", "train.eval_every=0"]
    words = ["run", "tiny_grpo", *SMALL, *few, "reward.function=rule_with_a_tie.rule"]
    for drop, replies, score in (("false", 12, 5.75), ("true", 9, 7.0)):
        assert alignment(*words, f"advantage.drop_alike={drop}", f"output_dir={drop}").code == 0
        (row,) = rows(tmp_path / drop)
        assert (learned.pop(), row["objective/scores"], row["groups/alike"]) == (replies, score, 0.25)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (
            "loss.policy.ratio=sequence loss.policy.normalization=sequence",
            ["loss.policy.ratio=sequence: GSPO's clips are 3e-4 and 4e-4 (loss.policy.clip, clip_high), not 0.2"],
        ),
        ("loss.policy.ratio=sequence loss.policy.clip=3e-4 loss.policy.clip_high=4e-4", []),
        (
            "advantage.estimator=dr_grpo",
            ["advantage.estimator=dr_grpo: Dr. GRPO's loss is loss.policy.normalization=constant, not sequence"],
        ),
        ("advantage.estimator=dr_grpo loss.policy.normalization=constant", []),
    ],
)
def test_a_choice_without_what_its_authors_have_with_it_is_said(words: str, said: list[str]) -> None:
    with composing([]):
        config = resolve(single("tiny_grpo", words.split()))
    assert isinstance(config, PPOConfig) and list(unlike_its_authors(config)) == said
