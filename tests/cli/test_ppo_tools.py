"""What PPO carries along, in whole runs: other texts, the average of the weights, the critic's warm-up, early ends."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

TINY = ["model.init.hidden_size=32", "model.init.intermediate_size=48", "log.progress=false", "seed=3"]
SMALL = [*TINY, "data.train.limit=32", "data.eval.limit=8", "batch.size=8", "generation.max_new_tokens=10"]
RUN = ["run", "tiny_ppo", *SMALL, "train.learning_rate=1.0e-3", "train.eval_every=0"]
KEPT = ["checkpoint.every=1", "checkpoint.keep=9"]
ADAPTIVE = ["kl.controller=adaptive", "kl.weight=0.2", "kl.target=0.5", "kl.horizon=32"]
PTX = ["ptx.size=4", "ptx.data.format=toy", "ptx.data.train.limit=20"]


def rows(folder: Path) -> list[dict[str, float]]:
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [{name: v for name, v in json.loads(line).items() if not name.startswith("time/")} for line in lines]


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def parts(folder: Path, step: int) -> dict[str, Any]:
    """Everything that the checkpoint after `step` holds."""
    return torch.load(folder / "checkpoints" / f"step-{step:08d}" / "rank-00000.pt", weights_only=True)


def same(one: Any, other: Any) -> bool:
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, (list, tuple)):
        return len(one) == len(other) and all(same(a, b) for a, b in zip(one, other, strict=True))
    return bool(one == other)


def test_with_everything_on_an_interrupted_run_ends_as_if_nothing_had_happened(
    alignment: Callable[..., Any], tmp_path: Path, ppo_interrupted: Callable[[int], Any]
) -> None:
    """Twice interrupted, within the critic's warm-up and after it: log, models and all that a checkpoint holds."""
    few = [*TINY, "data.train.limit=32", "data.eval.limit=8", "batch.size=8", "train.max_steps=2"]
    assert alignment("run", "tiny_reward", *few, "output_dir=reward").code == 0
    texts = [json.dumps({"text": f"the {animal} sleeps ."}) for animal in ("fox", "bear", "deer", "owl", "rabbit")]
    (tmp_path / "texts.jsonl").write_text("\n".join(texts))
    ptx = ["ptx.weight=0.5", "ptx.size=2", "ptx.data.format=text", "ptx.data.train.path=texts.jsonl"]
    reward = ["reward.function=null", "reward.path=reward/model", "reward.normalize=true", "reward.whiten=true"]
    inner = ["ppo.mini_batches=2", "ppo.max_kl=0.003", "ppo.ema=0.8", "critic.warmup=2"]
    words = [*RUN, *reward, *inner, *ADAPTIVE, *ptx, *KEPT, "log.every=2", "train.max_steps=7"]
    assert alignment(*words, "output_dir=whole").code == 0
    for steps in (1, 3):
        with ppo_interrupted(steps):
            assert alignment(*words, "output_dir=cut").code == 130
    assert alignment(*words, "output_dir=cut").code == 0
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    assert rows(cut) == rows(whole)
    assert all(same(weights(cut / name), weights(whole / name)) for name in ("model", "model_ema"))
    left, right = parts(cut, 7), parts(whole, 7)
    assert {"actor", "critic", "kl", "ema", "alarm", "pending", "best", "nonfinite"} == left["parts"].keys()
    assert same(left, right)

    logged = rows(whole)  # steps 2, 4, 6 and 7: everything did act
    assert [row["step"] for row in logged] == [2, 4, 6, 7]
    assert logged[0]["policy/steps"] == 0 < logged[1]["policy/steps"] < 8
    assert logged[0]["kl/weight"] == 0.2 and len({row["kl/weight"] for row in logged}) == 4
    assert all("ptx/loss" in row for row in logged[1:])
    assert not same(weights(whole / "model"), weights(whole / "model_ema"))


def test_ptx_draws_on_nothing_of_the_run_s_own(alignment: Callable[..., Any], tmp_path: Path) -> None:
    """With a weight too small to move a float, everything but its own metrics is as without it, to the bit."""
    words = [*RUN, "train.max_steps=3"]
    assert alignment(*words, "output_dir=off").code == 0
    for name, weight in (("barely", "1.0e-30"), ("on", "0.5")):
        assert alignment(*words, *PTX, f"ptx.weight={weight}", f"output_dir={name}").code == 0
    off, barely, on = (rows(tmp_path / name) for name in ("off", "barely", "on"))
    own = {name for name in barely[0] if name.startswith("ptx/")}
    assert own == {"ptx/loss", "ptx/logps/token", "ptx/mean_token_accuracy"} and not [
        name for row in off for name in row if name.startswith("ptx")
    ]
    assert [{name: value for name, value in row.items() if name not in own} for row in barely] == off
    assert same(weights(tmp_path / "barely" / "model"), weights(tmp_path / "off" / "model"))
    assert on[-1]["ptx/loss"] < on[0]["ptx/loss"] < barely[0]["ptx/loss"]
    assert on[0]["reward"] == off[0]["reward"] and on[0]["grad_norm"] != off[0]["grad_norm"]


def test_the_critic_warms_up_alone(alignment: Callable[..., Any], tmp_path: Path) -> None:
    """For two iterations the actor is SFT's to the bit, and nothing that belongs to it has moved."""
    sft = [*TINY, "data.train.limit=32", "data.eval.limit=8", "batch.size=8", "train.max_steps=2"]
    assert alignment("run", "tiny_sft", *sft, "output_dir=sft").code == 0
    run = [word for word in RUN if not word.startswith("model.init.")]
    words = [*run, "model.path=sft/model", "critic.warmup=2", "train.max_steps=4", "train.schedule=linear", *KEPT]
    assert alignment(*words, *ADAPTIVE, "ppo.ema=0.8", "output_dir=out").code == 0
    out, start = tmp_path / "out", weights(tmp_path / "sft" / "model")
    states = [parts(out, step)["parts"] for step in (1, 2, 3, 4)]
    actors, critics = ([state[role]["model"] for state in states] for role in ("actor", "critic"))
    assert all(torch.equal(actors[1][f"hf.{name}"], weight) for name, weight in start.items())
    assert same(actors[0], actors[1]) and same(states[1]["ema"]["weights"], actors[1])
    assert not states[1]["actor"]["optimizer"]["state"] and states[1]["kl"] == states[0]["kl"] == {
        "weight": 0.2,
        "began": 0.2,
    }
    assert not same(critics[0], critics[1])
    for left, right in ((1, 2), (2, 3)):
        assert not same(actors[left], actors[right]) and not same(critics[left], critics[right])

    logged = rows(out)
    assert [row["policy/steps"] for row in logged] == [0, 0, 4, 4]
    assert [row["kl"] == 0 for row in logged] == [True, True, True, False]
    assert [{"loss", "grad_norm", "policy/ratio"} & row.keys() == set() for row in logged] == [True, True, False, False]
    assert all({"value/loss", "value/error", "value/grad_norm"} <= row.keys() for row in logged)
    assert [row["lr"] for row in logged] == pytest.approx([1e-3, 1e-3, 1e-3, 5e-4])  # the schedule is of the two left

    for name, weight in weights(out / "model_ema").items():  # m = 0.8 (0.8 w0 + 0.2 w3) + 0.2 w4
        want = 0.64 * start[name] + 0.16 * actors[2][f"hf.{name}"] + 0.2 * actors[3][f"hf.{name}"]
        torch.testing.assert_close(weight, want, rtol=1e-5, atol=1e-6)
        assert torch.equal(weights(out / "model")[name], actors[3][f"hf.{name}"])


def test_a_warm_up_as_long_as_the_run_is_refused(alignment: Callable[..., Any], tmp_path: Path) -> None:
    ended = alignment(*RUN, "critic.warmup=3", "train.max_steps=3", "output_dir=out")
    line = "alignment: tiny_ppo: critic.warmup must be < the run's 3 iterations, got 3"
    assert (ended.code, ended.err) == (2, [line]) and not (tmp_path / "out").exists()
    ended = alignment(*RUN, "critic.warmup=8", "train.max_steps=null", "train.epochs=2", "output_dir=out")
    assert (ended.code, ended.err) == (2, [line.replace("3 iterations, got 3", "8 iterations, got 8")])


def test_inner_steps_end_on_kl_and_are_counted(alignment: Callable[..., Any], tmp_path: Path) -> None:
    """The first step is at ratio 1, so its KL is 0 and passes no limit; with a tiny one the second is the last."""
    words = [*RUN, "train.max_steps=2", "ppo.epochs=3"]
    for name, limit, steps in (("never", "null", 3), ("huge", "1000", 3), ("tiny", "1.0e-9", 2)):
        assert alignment(*words, f"ppo.max_kl={limit}", f"output_dir={name}").code == 0
        assert [row["policy/steps"] for row in rows(tmp_path / name)] == [steps, steps]
    assert rows(tmp_path / "huge") == rows(tmp_path / "never")
    ended = alignment(*words, "ppo.max_kl=0", "output_dir=zero")
    assert ended.err == ["alignment: tiny_ppo: ppo.max_kl must be > 0, or null to never stop, got 0.0"]


def test_a_run_that_its_limit_ends_has_its_average_too(
    alignment: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = [*RUN, "kl.controller=fixed", "kl.target=null", "kl.weight=0", "ppo.ema=0.5", "train.max_steps=4", *KEPT]
    assert alignment(*words, "kl.limit=1.0e-6", "output_dir=out").code == 0
    out = tmp_path / "out"
    assert "stopped at step 2" in json.loads((out / "finished.json").read_text())["stopped"]
    average = parts(out, 1)["parts"]["ema"]["weights"]
    assert all(torch.equal(average[f"hf.{name}"], weight) for name, weight in weights(out / "model_ema").items())
