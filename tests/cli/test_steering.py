"""A run that goes on with changed settings: free, asked for, or refused with two ways out."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from alignment.training import supervised

SMALL = ["model.init.hidden_size=32", "model.init.intermediate_size=48", "data.train.limit=64", "data.eval.limit=4"]
RUN = ["run", "tiny_sft", *SMALL, "batch.size=4", "train.warmup_steps=0", "log.progress=false", "output_dir=out"]
FIVE = [*RUN, "train.max_steps=5", "train.schedule=constant", "checkpoint.every=1"]
RATE = ["train.learning_rate=0.001", "resume.accept=[train.learning_rate]"]


def rows(folder: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def history(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "history.jsonl").read_text().splitlines()]


@pytest.fixture
def cut(alignment: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """A run that is interrupted in the step after so many."""

    def interrupt(steps: int, *words: str) -> None:
        train_step, taken = supervised.train_step, []

        def counted(*arguments: Any) -> Any:
            if len(taken) == steps:
                raise KeyboardInterrupt
            taken.append(1)
            return train_step(*arguments)

        with monkeypatch.context() as patched:
            patched.setattr(supervised, "train_step", counted)
            assert alignment(*words).code == 130

    return interrupt


def test_a_run_that_has_saved_nothing_can_be_begun_anew(
    alignment: Callable[..., Any], cut: Callable[..., None]
) -> None:
    cut(0, *FIVE)
    ended = alignment(*FIVE, "batch.size=2")
    line = "output_dir holds a run of another config or other inputs (batch.size was 4 and is 2), got 'out'"
    way = "it has saved no step: without that folder one begins anew"
    assert (ended.code, ended.err) == (2, [f"alignment: tiny_sft: {line}; {way}"])


def test_an_interrupted_run_goes_on_with_another_rate_where_it_is_asked_for(
    alignment: Callable[..., Any], cut: Callable[..., None], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    cut(2, *FIVE)
    ended = alignment(*FIVE, RATE[0])
    line = "output_dir holds a run of another config or other inputs (train.learning_rate was 0.003 and is 0.001), "
    ways = "resume.accept=[train.learning_rate] goes on with it, another output_dir keeps both, "
    ways += "train.learning_rate=0.003 goes on as before"
    assert (ended.code, ended.err) == (2, [f"alignment: tiny_sft: {line}got 'out'; {ways}"])
    cut(2, *FIVE, *RATE)
    assert [row["lr"] for row in rows(out)] == [0.003, 0.003, 0.001, 0.001]
    assert yaml.safe_load((out / "config.yaml").read_text())["resume"] == {"accept": []}
    changed = [line for line in history(out) if "changed" in line]
    assert [{k: v for k, v in line.items() if k != "time"} for line in changed] == [
        {"changed": "train.learning_rate", "before": 0.003, "after": 0.001, "step": 2}
    ]
    ended = alignment(*FIVE, *RATE)  # the same command once more, as after a second interruption
    assert (ended.code, ended.err) == (0, [])
    assert [row["lr"] for row in rows(out)] == [0.003, 0.003, 0.001, 0.001, 0.001]
    assert [line for line in history(out) if "changed" in line] == changed
    assert "finished already" in alignment(*FIVE, *RATE).out
    assert "finished already" in alignment("run", "out/config.yaml").out


def test_a_change_is_said_as_the_run_goes_on(
    alignment: Callable[..., Any], cut: Callable[..., None], tmp_path: Path
) -> None:
    cut(1, *FIVE)
    ended = alignment(*FIVE, "train.weight_decay=0.5", "train.betas=[0.5,0.9]", "resume.accept=[train]")
    assert ended.code == 0, ended.err
    said = "out: goes on from step 1 with another train.betas (resume.accept): train.betas was [0.9, 0.999] and is "
    assert f"{said}[0.5, 0.9]\n" in ended.out and "another train.weight_decay (resume.accept)" in ended.out


def test_what_only_looks_may_change_without_a_word(
    alignment: Callable[..., Any], cut: Callable[..., None], tmp_path: Path
) -> None:
    cut(2, *FIVE, "train.eval_every=0")
    ended = alignment(*FIVE, "train.eval_every=2", "log.every=2", "checkpoint.keep=1", "batch.max_tokens=512")
    assert (ended.code, ended.err) == (0, [])
    assert [row["step"] for row in rows(tmp_path / "out") if "eval/loss" in row] == [4, 5]
    assert "finished already" in alignment(*FIVE, "train.eval_every=0").out


def test_where_evaluations_choose_the_model_their_number_is_asked_for(
    alignment: Callable[..., Any], cut: Callable[..., None]
) -> None:
    best = [*FIVE, "train.best.metric=eval/loss", "train.eval_every=1"]
    cut(2, *best)
    ended = alignment(*best, "train.eval_every=2")
    assert ended.code == 2 and "resume.accept=[train.eval_every] goes on with it" in ended.err[0]
    ended = alignment(*best, "data.eval.limit=3")
    assert ended.code == 2 and "data.eval.limit=4 goes on as before" in ended.err[0] and "accept" not in ended.err[0]


@pytest.mark.parametrize(
    ("words", "line"),
    [
        ("resume.accept=[seed] seed=1", "with another seed it is another run, in another output_dir, got 'seed'"),
        ("resume.accept=[log.every]", "log.every may change without being asked for; leave it out, got 'log.every'"),
        ("resume.accept=[train.max_steps]", "a run is made longer by train.max_steps itself; leave it out, got "),
        (
            "resume.accept=[train.lerning_rate] train.learning_rate=1e-4",
            "must hold keys of the config, or their beginnings, got 'train.lerning_rate' "
            "(did you mean 'train.learning_rate'?)",
        ),
        (
            "resume.accept=[train.eps,train.learning_rate] train.learning_rate=1e-4",
            "train.eps has not changed since the run began (changed: train.learning_rate)",
        ),
        ("resume.accept=[train.eps]", "train.eps has not changed since the run began (nothing has changed)"),
    ],
)
def test_what_cannot_be_accepted(
    words: str, line: str, alignment: Callable[..., Any], cut: Callable[..., None], tmp_path: Path
) -> None:
    cut(1, *FIVE)
    before = (tmp_path / "out" / "history.jsonl").read_text()  # that it was interrupted
    ended = alignment(*FIVE, *words.split())
    assert ended.code == 2 and len(ended.err) == 1 and line in ended.err[0], ended.err
    assert (tmp_path / "out" / "history.jsonl").read_text() == before


def test_a_folder_without_a_run_has_nothing_to_accept(alignment: Callable[..., Any], tmp_path: Path) -> None:
    ended = alignment(*FIVE, *RATE)
    assert ended.code == 2 and len(ended.err) == 1
    assert "resume.accept goes with a run that goes on, and none has begun in 'out'" in ended.err[0]
    assert not (tmp_path / "out").exists()


def test_a_finished_run_that_nobody_asked_checkpoints_of_goes_on_longer_and_otherwise(
    alignment: Callable[..., Any], tmp_path: Path
) -> None:
    two = [*RUN, "train.schedule=constant", "train.max_steps=2"]
    ended = alignment(*two)
    assert ended.code == 0 and "saved out/checkpoints/step-00000002: " in ended.out
    ended = alignment(*two, *RATE)
    assert ended.code == 2 and "train.learning_rate would act on further steps, and the run in 'out' is" in ended.err[0]
    ended = alignment(*two, *RATE, "train.max_steps=3")
    assert (ended.code, ended.err) == (0, [])
    assert [row["lr"] for row in rows(tmp_path / "out")] == [0.003, 0.003, 0.001]
    assert {"changed", "asked", "going_on_from"} <= {key for line in history(tmp_path / "out") for key in line}


def test_a_folder_of_a_version_without_a_key_goes_on(
    alignment: Callable[..., Any], cut: Callable[..., None], tmp_path: Path
) -> None:
    """What it says beside, as of keys that are free now, or lacks, as new ones at their default, is no change."""
    cut(2, *FIVE)
    started = tmp_path / "out" / "started.json"
    noted = json.loads(started.read_bytes())
    for key in ("train.min_learning_rate", "train.decay_ratio", "train.eval_every"):
        del noted["fingerprint"][key]
    noted["fingerprint"]["train.eval_on_start"] = True
    started.write_text(json.dumps(noted))
    ended = alignment(*FIVE, "train.min_learning_rate=1e-9", "train.schedule=cosine")
    assert ended.code == 2 and "(train.min_learning_rate was 0.0 and is 1e-09, train.schedule was" in ended.err[0]
    assert alignment(*FIVE).code == 0
    assert len(rows(tmp_path / "out")) == 5


def test_a_checkpoint_may_be_left_out(alignment: Callable[..., Any], tmp_path: Path) -> None:
    words = [*RUN, "train.max_steps=1", "checkpoint.save_last=false"]
    assert "saved" not in alignment(*words).out
    assert list((tmp_path / "out" / "checkpoints").iterdir()) == []


def test_what_a_course_without_a_checkpoint_has_kept_goes_as_it_begins_anew(
    alignment: Callable[..., Any], cut: Callable[..., None], tmp_path: Path
) -> None:
    """Its best weights are of steps that the run never comes to again."""
    words = [*RUN, "train.max_steps=3", "train.best.metric=eval/loss", "train.eval_every=1", "checkpoint.every=0"]
    cut(2, *words)
    (tmp_path / "out" / "best" / "mine").touch()
    cut(0, *words, "train.best.metric=null", "resume.accept=[train.best]")
    assert not (tmp_path / "out" / "best").exists()


def test_another_beta_acts_from_the_next_step_on(
    alignment: Callable[..., Any], cut: Callable[..., None], tmp_path: Path
) -> None:
    """Both runs find the same weights there: the rewards, beta times a log ratio, are those of the other times 3."""
    small = [*SMALL, "batch.size=4", "train.warmup_steps=0", "train.schedule=constant", "log.progress=false"]
    words = ["run", "tiny_dpo", *small, "train.max_steps=4", "checkpoint.every=1", "reference.cache=false"]
    for name, change in (("as_it_was", []), ("steered", ["loss.beta=0.3", "resume.accept=[loss.beta]"])):
        own = [*words, "loss.beta=0.1", f"output_dir={name}"]
        cut(2, *own)
        ended = alignment(*own, *change)
        assert (ended.code, ended.err) == (0, [])
    before, after = (rows(tmp_path / name) for name in ("as_it_was", "steered"))
    assert before[1]["rewards/margin"] == after[1]["rewards/margin"] != 0
    for name in ("rewards/margin", "rewards/chosen", "rewards/rejected"):
        assert after[2][name] == pytest.approx(3 * before[2][name], rel=1e-4)


def test_a_stage_of_a_pipeline_goes_on_with_a_change_that_is_asked_of_it(
    alignment: Callable[..., Any], cut: Callable[..., None], own: Callable[[str, str], str], tmp_path: Path
) -> None:
    """In the folder that it has; without the word it is another run, beside which the old one is kept."""
    settings = ", ".join(
        word.replace("=", ": ")
        for word in (*SMALL, "train.max_steps=5", "train.schedule=constant", "checkpoint.every=1")
    )
    stage = f"{{name: sft, recipe: tiny_sft, set: {{{settings}, batch.size: 4, train.warmup_steps: 0}}}}"
    head = "defaults: [{task: pipeline}, _self_]\nlog: {progress: false}\n"
    words = ["run", own("pipe", f"# One stage\n{head}stages: [{stage}]\n"), "output_dir=out"]
    cut(2, *words)
    change = ["stages.sft.set.train.learning_rate=0.001"]
    ended = alignment(*words, *change, "stages.sft.set.resume.accept=[train.learning_rate]")
    assert (ended.code, ended.err) == (0, [])
    assert [row["lr"] for row in rows(tmp_path / "out" / "sft")] == [0.003, 0.003, 0.001, 0.001, 0.001]
    again = alignment(*words, *change, "stages.sft.set.resume.accept=[train.learning_rate]")
    assert again.code == 0 and "unchanged, skipped" in again.out
    assert "\tsteered\t" in alignment("status", "out").out.splitlines()[0]
    assert alignment(*words).code == 0 and (tmp_path / "out" / "sft.old-1").is_dir()
