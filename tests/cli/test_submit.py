"""What `submit` freezes, writes and hands to sbatch; a fake sbatch stands for the cluster."""

import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from omegaconf import OmegaConf

from alignment.cli.compose import composing, resolve, single, swept
from alignment.config.cluster import ClusterConfig
from alignment.runs.fingerprint import fingerprint
from alignment.training import supervised

SMALL = ["data.train.limit=16", "data.eval.limit=4", "batch.size=4", "train.max_steps=1"]
SUBMIT = ["submit", "tiny_sft", "cluster=slurm", *SMALL]
PIPELINE = """# Three stages
defaults:
  - task: pipeline
  - _self_
stages:
  - name: sft
    recipe: tiny_sft
    set: {small}
  - name: reward
    recipe: tiny_reward
    set: {small, cluster.mem: 2G}
  - name: ppo
    recipe: tiny_ppo
    set:
      {small, generation.max_new_tokens: 4, model.path: "@sft/model", reward: {path: "@reward/model", function: null}}
""".replace("small", ", ".join(word.replace("=", ": ") for word in SMALL))


def calls(slurm: Path, name: str) -> list[str]:
    path = slurm / "calls"
    return [line for line in path.read_text().splitlines() if line.startswith(name)] if path.exists() else []


def files(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


def test_a_run_is_frozen_and_submitted(alignment: Callable[..., Any], tmp_path: Path, slurm: Path) -> None:
    ended = alignment(*SUBMIT, "cluster.nodes=2", "distributed=zero1", "output_dir=a/out", "seed=3")
    assert (ended.code, ended.err) == (0, [])
    assert ended.out.splitlines() == [
        "submitted job 11: tiny_sft",
        "  alignment status a/out",
        "  alignment logs a/out -f",
        "  scancel 11",
    ]
    out = tmp_path / "a" / "out"
    assert files(out) == {"config.yaml", "job.sbatch", "submitted.json", "logs"}
    assert json.loads((out / "submitted.json").read_text()) == {"job": "11"}
    assert calls(slurm, "sbatch") == ["sbatch --parsable a/out/job.sbatch"]
    script = (out / "job.sbatch").read_text()
    assert "#SBATCH --nodes=2\n" in script and f"#SBATCH --chdir={tmp_path}\n" in script
    assert script.endswith(f" run {out}/config.yaml\n")

    frozen = yaml.safe_load((out / "config.yaml").read_text())
    assert (frozen["seed"], frozen["train"]["max_steps"], frozen["output_dir"]) == (3, 1, "a/out")
    assert frozen["cluster"]["scheduler"] == "local"
    assert "${" not in (out / "config.yaml").read_text()


def test_the_frozen_config_is_what_the_job_runs(alignment: Callable[..., Any], tmp_path: Path, slurm: Path) -> None:
    alignment(*SUBMIT, "output_dir=out")
    before = (tmp_path / "out" / "config.yaml").read_text()
    assert alignment("run", str(tmp_path / "out" / "config.yaml")).code == 0
    assert (tmp_path / "out" / "config.yaml").read_text() == before
    ended = alignment(*SUBMIT, "cluster.mem=1G", "output_dir=out")
    assert (ended.code, ended.out) == (0, "out: finished already, nothing to do (another output_dir runs it again)\n")
    assert len(calls(slurm, "sbatch")) == 1
    ended = alignment(*SUBMIT, "seed=5", "output_dir=out")
    assert ended.code == 2 and "output_dir holds a run of another config" in ended.err[0]
    assert (tmp_path / "out" / "config.yaml").read_text() == before


def test_a_submitted_run_goes_on_with_a_change_that_is_asked_for(
    alignment: Callable[..., Any], tmp_path: Path, slurm: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The frozen config asks for it; a job that is put back into its queue after it has begun goes on too."""
    words = ["train.max_steps=4", "train.schedule=constant", "train.warmup_steps=0", "checkpoint.every=1"]
    words = [*SUBMIT, *words, "output_dir=out"]
    change = ["train.learning_rate=0.001", "resume.accept=[train.learning_rate]"]
    train_step, taken = supervised.train_step, []

    def interrupted(*arguments: Any) -> Any:
        taken.append(1)
        if len(taken) in (2, 4):  # of the first job and of the second
            raise KeyboardInterrupt
        return train_step(*arguments)

    monkeypatch.setattr(supervised, "train_step", interrupted)
    job = ["run", str(tmp_path / "out" / "config.yaml")]
    assert alignment(*words).code == 0 and alignment(*job).code == 130
    ended = alignment(*words, change[0])
    assert ended.code == 2 and "resume.accept=[train.learning_rate] goes on with it" in ended.err[0]
    assert len(calls(slurm, "sbatch")) == 1
    ended = alignment(*words, *change)
    assert (ended.code, ended.err, len(calls(slurm, "sbatch"))) == (0, [], 2)
    assert [alignment(*job).code for _ in range(2)] == [130, 0]
    rows = [json.loads(line) for line in (tmp_path / "out" / "metrics.jsonl").read_text().splitlines()]
    assert [row["lr"] for row in rows] == [0.003, 0.001, 0.001, 0.001]


def test_the_cluster_is_no_part_of_what_a_run_computes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with composing([]):
        one, other, third = (
            resolve(single("tiny_sft", words)) for words in ([], ["cluster=slurm", "cluster.mem=1G"], ["seed=1"])
        )
    assert other.cluster != ClusterConfig()
    assert fingerprint(one) == fingerprint(other) != fingerprint(third)


def test_a_run_may_go_on_shared_out_in_another_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own.json").write_text("{}")
    ways = (
        [],
        ["batch.max_tokens=1024", "model.gradient_checkpointing=true", "generation.batch_size=4"],
        ["launch.processes=2", "distributed=zero2"],
        ["distributed=zero3_offload", "distributed.timeout_minutes=5", "distributed.deepspeed_config=own.json"],
        ["distributed=zero3", "generation.gather=layer"],
        ["distributed.precision=bfloat16"],
        ["batch.size=32"],
        ["generation.temperature=0.9"],
    )
    with composing([]):
        marks = [fingerprint(resolve(single("tiny_ppo", words))) for words in ways]
    assert len(set(marks[:5])) == 1 and len(set(marks)) == 4


def test_an_edited_function_makes_another_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "__init__.py").write_text("raise RuntimeError('imported')\n")
    words = ["reward.function=null", "reward.models={one:{function:own.judge.score}}", "gold=gone.nowhere"]

    def mark() -> str:
        with composing([]):
            return fingerprint(resolve(single("tiny_ppo", words)))

    (tmp_path / "own" / "judge.py").write_text("def score(prompts, replies): return [0.0] * len(replies)\n")
    (tmp_path / "own" / "other.py").write_text("")
    before = mark()
    (tmp_path / "own" / "other.py").write_text("x = 1\n")
    os.utime(tmp_path / "own" / "judge.py", (0, 0))
    assert mark() == before
    (tmp_path / "own" / "judge.py").write_text("def score(prompts, replies): return [1.0] * len(replies)\n")
    assert mark() != before


def test_a_dry_run_prints_the_script_and_does_nothing(
    alignment: Callable[..., Any], tmp_path: Path, slurm: Path
) -> None:
    ended = alignment(*SUBMIT, "output_dir=out", "--dry-run")
    assert (ended.code, ended.err) == (0, [])
    assert files(tmp_path) == set() and not (slurm / "calls").exists()
    alignment(*SUBMIT, "output_dir=out")
    assert ended.out == (tmp_path / "out" / "job.sbatch").read_text() + "\n"


def test_a_dry_run_needs_no_slurm(alignment: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    assert alignment(*SUBMIT, "--dry-run").code == 0
    ended = alignment(*SUBMIT)
    message = "alignment: tiny_sft: sbatch is not in PATH: this is no machine of a Slurm cluster"
    assert (ended.code, ended.out, ended.err) == (2, "", [message])


def test_a_sweep_is_an_array(alignment: Callable[..., Any], tmp_path: Path, slurm: Path) -> None:
    ended = alignment(*SUBMIT, "-m", "seed=4,5,6", "output_dir=sweep")
    assert (ended.code, ended.err) == (0, [])
    assert ended.out.splitlines()[0] == "submitted job 11: tiny_sft, 3 runs"
    sweep = tmp_path / "sweep"
    assert calls(slurm, "sbatch") == ["sbatch --parsable sweep/job.sbatch"]
    assert "#SBATCH --array=0-2\n" in (sweep / "job.sbatch").read_text()
    for number, seed in enumerate((4, 5, 6)):
        frozen = yaml.safe_load((sweep / str(number) / "config.yaml").read_text())
        assert (frozen["seed"], frozen["output_dir"]) == (seed, f"sweep/{number}")
        assert files(sweep / str(number)) == {"config.yaml", "submitted.json", "logs"}
        assert json.loads((sweep / str(number) / "submitted.json").read_text()) == {"job": f"11_{number}"}


def test_stages_are_jobs_after_those_they_use(
    alignment: Callable[..., Any], own: Callable[..., str], tmp_path: Path, slurm: Path
) -> None:
    ended = alignment("submit", own("three", PIPELINE), "cluster=slurm", "cluster.mem=1G", "output_dir=out")
    assert (ended.code, ended.err) == (0, [])
    assert re.findall(r"submitted job (\d+): three, stage (\w+)", ended.out) == [
        ("11", "sft"),
        ("12", "reward"),
        ("13", "ppo"),
    ]
    assert calls(slurm, "sbatch") == [
        "sbatch --parsable out/sft/job.sbatch",
        "sbatch --parsable out/reward/job.sbatch",
        "sbatch --parsable --dependency=afterok:11:12 --kill-on-invalid-dep=yes out/ppo/job.sbatch",
    ]
    memory = {name: (tmp_path / "out" / name / "job.sbatch").read_text() for name in ("sft", "reward", "ppo")}
    assert [re.findall("--mem=(.*)", text) for text in memory.values()] == [["1G"], ["2G"], ["1G"]]
    assert "#SBATCH --job-name=three-ppo\n" in memory["ppo"]
    frozen = yaml.safe_load((tmp_path / "out" / "ppo" / "config.yaml").read_text())
    assert (frozen["model"]["path"], frozen["reward"]["path"]) == ("out/sft/model", "out/reward/model")
    assert len(yaml.safe_load((tmp_path / "out" / "config.yaml").read_text())["stages"]) == 3


def test_a_pipeline_submitted_again_runs_what_has_changed(
    alignment: Callable[..., Any], own: Callable[..., str], tmp_path: Path, slurm: Path
) -> None:
    words = ["submit", own("three", PIPELINE), "cluster=slurm", "output_dir=out"]
    alignment(*words)
    for stage in ("sft", "reward", "ppo"):
        assert alignment("run", str(tmp_path / "out" / stage / "config.yaml")).code == 0
    (slurm / "calls").unlink()
    ended = alignment(*words)
    assert ended.out.count("finished already") == 3 and calls(slurm, "sbatch") == []

    own("three", PIPELINE.replace("cluster.mem: 2G", "train.learning_rate: 2.0e-4"))
    ended = alignment(*words)
    assert ended.code == 0 and ended.out.count("finished already") == 1
    assert calls(slurm, "sbatch") == [
        "sbatch --parsable out/reward/job.sbatch",
        "sbatch --parsable --dependency=afterok:11 --kill-on-invalid-dep=yes out/ppo/job.sbatch",
    ]
    assert {path.name for path in (tmp_path / "out").iterdir() if path.is_dir()} == {
        *("sft", "reward", "ppo"),
        *("reward.old-1", "ppo.old-1"),
    }
    assert files(tmp_path / "out" / "ppo") == {"config.yaml", "job.sbatch", "submitted.json", "logs"}


def test_a_refusal_leaves_nothing(alignment: Callable[..., Any], tmp_path: Path, slurm: Path) -> None:
    (slurm / "refuse").write_text("11")
    for words in ([], ["-m", "seed=1,2"]):
        ended = alignment(*SUBMIT, *words, "output_dir=a/out")
        message = "alignment: tiny_sft: sbatch: invalid partition specified: nope"
        assert (ended.code, ended.out, ended.err) == (2, "", [message])
        assert files(tmp_path) == set()
        (slurm / "calls").unlink()


def test_a_refused_stage_takes_back_those_before_it(
    alignment: Callable[..., Any], own: Callable[..., str], tmp_path: Path, slurm: Path
) -> None:
    (slurm / "refuse").write_text("13")
    recipe = own("three", PIPELINE)
    ended = alignment("submit", recipe, "cluster=slurm", "output_dir=out")
    assert ended.code == 2 and len(ended.err) == 1
    assert sorted(calls(slurm, "scancel")) == ["scancel 11", "scancel 12"]
    assert files(tmp_path) == {"own", recipe}


def test_a_folder_whose_job_is_not_over_is_refused(alignment: Callable[..., Any], tmp_path: Path, slurm: Path) -> None:
    alignment(*SUBMIT, "output_dir=out")
    (slurm / "state").write_text("PENDING")
    ended = alignment(*SUBMIT, "output_dir=out")
    message = "output_dir holds job 11, which is PENDING (scancel 11 ends it), got 'out'"
    assert (ended.code, ended.err) == (2, [f"alignment: tiny_sft: {message}"])
    (slurm / "state").write_text("FAILED")
    assert alignment(*SUBMIT, "output_dir=out").code == 0
    assert json.loads((tmp_path / "out" / "submitted.json").read_text()) == {"job": "12"}


def test_a_mistake_in_the_data_leaves_no_claim_but_its_log(
    alignment: Callable[..., Any], tmp_path: Path, slurm: Path
) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"prompt": "Hi"}\n')
    words = ["submit", "tiny_sft", "cluster=slurm", "data=native", "data.train.path=rows.jsonl", "train.max_steps=1"]
    assert alignment(*words, "output_dir=out").code == 0
    (tmp_path / "out" / "logs" / "11.log").write_text("what the job says")
    ended = alignment("run", str(tmp_path / "out" / "config.yaml"))
    assert ended.code == 2 and "rows.jsonl:1: " in ended.err[0]
    assert files(tmp_path / "out") == {"config.yaml", "job.sbatch", "submitted.json", "logs", "logs/11.log"}
    rows.write_text('{"prompt": "Hi", "completion": "Hello"}\n')
    assert alignment(*words, "batch.size=1", "output_dir=out").code == 0


def test_a_script_that_no_submission_has_written_is_kept(
    alignment: Callable[..., Any], tmp_path: Path, slurm: Path
) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "job.sbatch").write_text("mine")
    ended = alignment(*SUBMIT, "output_dir=out")
    assert ended.code == 2 and len(ended.err) == 1
    assert "no submission has written, as 'out/job.sbatch'; another output_dir keeps it, got 'out'" in ended.err[0]
    assert files(tmp_path) == {"out", "out/job.sbatch"} and (tmp_path / "out" / "job.sbatch").read_text() == "mine"


def test_dependencies_of_the_users_own_are_for_single_jobs(
    alignment: Callable[..., Any], own: Callable[..., str]
) -> None:
    extra = "cluster.extra=['--dependency=afterok:7']"
    assert "#SBATCH --dependency=afterok:7\n" in alignment(*SUBMIT, extra, "--dry-run").out
    ended = alignment("submit", own("three", PIPELINE), "cluster=slurm", extra, "--dry-run")
    assert ended.code == 2 and "must not set the dependencies of a pipeline's stages" in ended.err[0]


def test_the_jobs_of_a_sweep_have_one_folder_however_long_they_take_to_compose() -> None:
    seconds = iter(range(100))
    with composing([]):
        OmegaConf.register_new_resolver("now", lambda _: f"at_{next(seconds)}", use_cache=True, replace=True)
        jobs = swept("tiny_dpo", ["loss.beta=0.1,0.2,0.3"])
        folders = [resolve(job).output_dir for job in jobs]
    assert len(folders) == 3 and len(set(folders)) == 1
