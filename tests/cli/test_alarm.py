"""The alarm of a PPO run through the command: with a held-out reward model, and over an interruption."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from alignment.tasks import ppo

SMALL = ["model.init.hidden_size=32", "model.init.intermediate_size=48", "data.train.limit=32", "data.eval.limit=4"]
PPO = ["run", "tiny_ppo", *SMALL, "batch.size=4", "train.max_steps=8", "train.eval_every=0", "ppo.epochs=1"]
ALARM = ["alarm.window=5", "alarm.patience=1", "alarm.sigmas=0.01", "alarm.max_unfinished=0.5"]
REPLIES = ["generation.max_new_tokens=6"]


def rows(folder: Path) -> list[dict[str, float]]:
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in row.items() if not name.startswith("time/")} for row in lines]


def alarms(out: str, folder: str) -> list[str]:
    """The last lines of a run, without the folder's name."""
    return [line.replace(folder, "") for line in out.splitlines() if line.startswith(("ALARM", "the gold"))]


def test_over_an_interruption_it_is_the_same(
    alignment: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = [*PPO, *ALARM, *REPLIES, "checkpoint.every=3"]
    whole = alignment(*words, "output_dir=whole")
    assert whole.code == 0, whole.err
    update, calls = ppo.update_actor_and_critic, []

    def cut(*arguments: Any, **more: Any) -> Any:
        calls.append(1)
        if len(calls) == 8:
            raise KeyboardInterrupt
        return update(*arguments, **more)

    with monkeypatch.context() as patched:
        patched.setattr(ppo, "update_actor_and_critic", cut)
        assert alignment(*words, "output_dir=broken").code == 130
    resumed = alignment(*words, "output_dir=broken")
    assert rows(tmp_path / "broken") == rows(tmp_path / "whole")
    flags = [row.get("alarm/unfinished") for row in rows(tmp_path / "whole")]
    assert flags == [None] * 4 + [1.0] * 4  # an untrained model does not come to an end
    expected = alarms(whole.out, "whole")
    assert expected[-2] == (
        "ALARM unfinished: the share of replies cut at generation.max_new_tokens is above alarm.max_unfinished; "
        "since step 5, at 4 of 4 judged steps"
    )
    assert alarms(resumed.out, "broken") == [
        line for line in expected if " at step " not in line
    ]  # said before the cut


def test_a_held_out_reward_model_is_the_gold_score(alignment: Callable[..., Any], tmp_path: Path) -> None:
    reward = ["run", "tiny_reward", *SMALL, "batch.size=4", "train.max_steps=1"]
    assert alignment(*reward, "output_dir=learned").code == 0
    assert alignment(*reward, "output_dir=held_out", "seed=1").code == 0
    words = [*PPO, *REPLIES, "train.max_steps=1", "reward={path: learned/model, function: null}", "gold=null"]
    assert alignment(*words, "gold_model=held_out/model", "output_dir=out").code == 0
    assert alignment(*words, "gold_model=learned/model", "output_dir=same").code == 0
    (watched,), (itself,) = rows(tmp_path / "out"), rows(tmp_path / "same")
    assert watched["reward"] == itself["reward"] == itself["gold"] != watched["gold"]


def test_a_held_out_reward_model_that_is_missing(alignment: Callable[..., Any]) -> None:
    ended = alignment(*PPO, "gold=null", "gold_model=nowhere")
    said = "alignment: tiny_ppo: gold_model: no such file or folder, got 'nowhere' (on the hub it is org/name, or"
    assert (ended.code, ended.err) == (2, [f"{said} hf://nowhere)"])
