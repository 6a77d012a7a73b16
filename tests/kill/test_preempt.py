"""A run that is asked to stop saves, ends with its own exit code, and goes on later to the same end."""

import random
from pathlib import Path
from typing import Any

import pytest

ASKED = [("dpo", 0), ("dpo", 1), ("dpo", 2), ("ppo", 0), ("ppo", 1)]
PIPELINE = """# Two stages
defaults:
  - task: pipeline
  - _self_
stages:
  - name: sft
    recipe: tiny_sft
    set: {SMALL, model.init.hidden_size: 32, model.init.intermediate_size: 48}
  - name: dpo
    recipe: tiny_dpo
    set: {SMALL, model.path: "@sft/model", reference.cache: false}
""".replace(
    "SMALL",
    "data.train.limit: 24, data.eval.limit: 4, batch.size: 4, train.max_steps: 4, checkpoint.every: 2, "
    "log.progress: false",
)
MANY = [pytest.param(name, number, marks=pytest.mark.slow) for name in ("dpo", "ppo") for number in range(3, 23)]


@pytest.mark.parametrize(("name", "number"), [*ASKED, *MANY])
def test_asked_twice_and_run_again(
    name: str, number: int, runner: Any, whole: Any, command: Any, assert_same: Any, tmp_path: Path
) -> None:
    """Once at a random touch of a file, most of which are within saves, and once at a random time."""
    drawn = random.Random(f"{name} {number}")
    unbroken, folder = whole(name), tmp_path / "run"
    ask = drawn.choice(["SIGTERM", "SIGUSR1"])
    first = runner(command(name), folder, at=drawn.randint(1, unbroken.touches), signal=ask)
    assert first.code == 75 or (first.code == 0 and (folder / "out" / "finished.json").exists()), first.said
    if first.code == 75:
        *told, line = [line for line in first.said.splitlines() if line.startswith("alignment: ")]
        assert all(each.startswith(f"alignment: heard {ask}: finishing ") for each in told) and len(told) < 2
        assert line.startswith(f"alignment: tiny_{name}: stopped by {ask}")
        started = (folder / "out" / "config.yaml").exists()
        assert line.endswith(f"; to go on: {'alignment run out/config.yaml' if started else 'the same command'}")
    again = ["run", "out/config.yaml"] if (folder / "out" / "config.yaml").exists() else command(name)
    second = runner(again, folder, after_s=drawn.uniform(0.2, 0.9) * unbroken.seconds, signal=ask)
    assert second.code in (0, 75), second.said
    assert runner(command(name), folder).code == 0
    assert_same(folder / "out", unbroken.folder)


def test_a_user_s_interruption_saves_too(
    runner: Any, whole: Any, command: Any, assert_same: Any, tmp_path: Path
) -> None:
    unbroken, folder = whole("dpo"), tmp_path / "run"
    first = runner(command("dpo"), folder, at=int(0.6 * unbroken.touches), signal="SIGINT")
    assert first.code == 130, first.said
    told, ended = [line for line in first.said.splitlines() if line.startswith("alignment: ")]
    assert told.startswith("alignment: heard SIGINT: finishing step ")
    assert told.endswith(", then saving; Ctrl-C again stops at once")
    assert ended.startswith("alignment: tiny_dpo: stopped by SIGINT after step ")
    assert ended.endswith(", which is saved; to go on: alignment run out/config.yaml")
    assert runner(["run", "out/config.yaml"], folder).code == 0
    assert_same(folder / "out", unbroken.folder)


def test_a_pipeline_ends_with_its_stage_and_goes_on(runner: Any, assert_same: Any, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "two.yaml").write_text(PIPELINE)
    whole = runner(["run", "two.yaml", "output_dir=whole"], folder)
    assert whole.code == 0, whole.said
    at = whole.touches
    codes = []
    for part in (0.2, 0.5, 0.8):
        asked = runner(["run", "two.yaml", "output_dir=out"], folder, at=int(part * at), signal="SIGTERM")
        codes.append(asked.code)
        assert asked.code == 0 or "; to go on: alignment run out/config.yaml" in asked.said, asked.said
    assert 75 in codes and set(codes) <= {0, 75}
    last = runner(["run", "out/config.yaml"], folder)
    assert last.code == 0, last.said
    for stage in ("sft", "dpo"):
        assert_same(folder / "out" / stage, folder / "whole" / stage)


def test_a_sweep_ends_with_its_job_and_goes_on(runner: Any, command: Any, assert_same: Any, tmp_path: Path) -> None:
    words, folder = [*command("dpo", "train.learning_rate=0.01,0.001"), "-m"], tmp_path / "run"
    whole = runner([*words, "output_dir=whole"], folder)
    assert whole.code == 0, whole.said
    asked = runner(words, folder, at=int(0.7 * whole.touches), signal="SIGUSR1")
    assert asked.code == 75 and "; to go on: alignment run out/1/config.yaml" in asked.said, asked.said
    last = runner(words, folder)
    assert last.code == 0 and "out/0: finished already" in last.said
    for job in ("0", "1"):
        assert_same(folder / "out" / job, folder / "whole" / job)


def test_under_slurm_the_job_is_requeued_by_the_main_process(
    runner: Any, whole: Any, command: Any, tmp_path: Path
) -> None:
    at = whole("dpo").touches // 2
    programs = tmp_path / "bin"
    programs.mkdir()
    (programs / "scontrol").write_text(f'#!/bin/sh\necho "$@" >> {tmp_path}/asked\n')
    (programs / "scontrol").chmod(0o755)
    env = {"SLURM_JOB_ID": "17", "PATH": f"{programs}:/usr/bin:/bin"}
    asked = runner(command("dpo"), tmp_path / "run", at=at, signal="SIGUSR1", env=env)
    assert asked.code == 75
    assert asked.said.splitlines()[-1].endswith("; to go on: alignment run out/config.yaml; Slurm job 17 is requeued")
    assert (tmp_path / "asked").read_text() == "requeue 17\n"
    other = runner(command("dpo"), tmp_path / "other", at=at, signal="SIGUSR1", env={**env, "RANK": "1"})
    assert other.code == 75 and "alignment: " not in other.said
    assert (tmp_path / "asked").read_text() == "requeue 17\n"

    (programs / "scontrol").write_text("#!/bin/sh\necho slurm_load_jobs error: no such job >&2\nexit 1\n")
    refused = runner(command("dpo"), tmp_path / "refused", at=at, signal="SIGUSR1", env=env)
    assert refused.code == 75
    assert refused.said.splitlines()[-1].endswith("; Slurm job 17 is not requeued: slurm_load_jobs error: no such job")
    absent = runner(command("dpo"), tmp_path / "absent", at=at, signal="SIGUSR1", env={**env, "PATH": "nowhere"})
    assert absent.said.splitlines()[-1].endswith("; Slurm job 17 is not requeued: there is no scontrol")
