"""Jobs on a real Slurm: they run what was frozen, wait for each other, fail where a process fails, go on when told."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

REPOSITORY = Path(__file__).parents[2]
TINY = ["model.init.hidden_size=32", "model.init.intermediate_size=48"]
SMALL = {"data.train.limit": 16, "data.eval.limit": 4, "batch.size": 4, "train.max_steps": 2, "log.progress": False}
RUN = [*TINY, *(f"{key}={str(value).lower()}" for key, value in SMALL.items())]


def rows(folder: Path) -> list[dict[str, Any]]:
    whole = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{name: value for name, value in row.items() if not name.startswith("time/")} for row in whole]


def program(folder: Path, text: str) -> str:
    """`cluster.command` for a program of the test's own, which stands for `alignment`."""
    (folder / "program.py").write_text(text)
    return f"cluster.command='{sys.executable} program.py'"


def test_a_run_finishes_as_it_does_here(cluster: Any) -> None:
    words = ["tiny_dpo", *RUN]
    said = cluster.submit(*words, "output_dir=out")
    state = cluster.wait("out")
    assert (state.state, state.exit_code) == ("COMPLETED", "0:0"), cluster.log("out")
    assert cluster.command("run", *words, "output_dir=here").returncode == 0
    assert rows(cluster.folder / "out") == rows(cluster.folder / "here")

    job = said.split()[2].rstrip(":")
    lines = cluster.command("status", "out").stdout.splitlines()
    assert lines[1] == "  state     COMPLETED" and lines[2].startswith(f"  job       {job}, on 127.0.0.")
    assert "  step      2 of 2" in lines and lines[-1] == "  finished  yes"
    assert cluster.command("logs", "out", "-f").stdout == cluster.log("out")
    assert "train: 16 rows" in cluster.log("out")


def test_what_is_edited_while_the_job_waits_changes_nothing(cluster: Any) -> None:
    recipe = cluster.folder / "mine.yaml"
    recipe.write_text("# Mine\ndefaults: [tiny_sft, preset@model.lora: small, _self_]\nseed: 5\n")
    preset = cluster.folder / "preset" / "small.yaml"
    preset.parent.mkdir()
    preset.write_text("# Small\nrank: 2\n")
    cluster.submit("mine.yaml", *RUN, "output_dir=out", "cluster.extra=[--hold]")
    cluster.wait("out", until=lambda state: state.reason == "JobHeldUser")
    assert "PENDING (JobHeldUser)" in cluster.command("status", "out").stdout
    recipe.write_text("# Mine\ndefaults: [tiny_dpo, _self_]\nseed: -1\n")
    preset.unlink()
    subprocess.run(["scontrol", "release", json.loads((cluster.folder / "out/submitted.json").read_text())["job"]])
    assert cluster.wait("out").state == "COMPLETED", cluster.log("out")
    config = yaml.safe_load((cluster.folder / "out" / "config.yaml").read_text())
    assert (config["seed"], config["model"]["lora"]["rank"]) == (5, 2)
    assert len(rows(cluster.folder / "out")) == 2


def test_a_partition_that_is_not_there(cluster: Any) -> None:
    ended = cluster.command("submit", "tiny_sft", *RUN, "cluster=slurm", "cluster.partition=nope", "output_dir=out")
    message = "invalid partition specified: nope; Batch job submission failed: Invalid partition name specified"
    assert (ended.returncode, ended.stdout) == (2, "")
    assert ended.stderr == f"alignment: tiny_sft: sbatch: {message}\n"
    assert list(cluster.folder.iterdir()) == []


def test_an_array_of_three(cluster: Any) -> None:
    cluster.submit("tiny_sft", "-m", *RUN, "seed=4,5,6", "output_dir=sweep")
    for number, seed in enumerate((4, 5, 6)):
        assert cluster.wait(f"sweep/{number}").state == "COMPLETED", cluster.log(f"sweep/{number}")
        folder = cluster.folder / "sweep" / str(number)
        assert yaml.safe_load((folder / "config.yaml").read_text())["seed"] == seed
        assert len(rows(folder)) == 2 and "train: 16 rows" in cluster.log(f"sweep/{number}")
    assert cluster.command("status", "sweep").stdout.endswith("3 of 3 finished\n")


def pipeline(folder: Path, **changed: object) -> None:
    """`tiny_pipeline` without the methods that add nothing here, with few steps; `sft={...}` sets more in a stage."""
    whole = yaml.safe_load((REPOSITORY / "recipes" / "tiny_pipeline.yaml").read_text())
    stages = [stage for stage in whole["stages"] if stage["name"] in ("sft", "reward", "ppo", "evaluate")]
    for stage in stages:
        if stage["name"] == "evaluate":
            few = {"runs": {"sft": "@sft", "ppo": "@ppo"}, "data.eval.limit": 4, "num_samples": 1}
            pairs = {**stage["set"]["pairs"], "eval": {"limit": 4}}
            stage["set"] |= {**few, "pairs": pairs, "generation.max_new_tokens": 4}
        else:
            stage.setdefault("set", {}).update(SMALL)
    for name, settings in changed.items():
        next(stage for stage in stages if stage["name"] == name)["set"].update(settings)
    (folder / "few.yaml").write_text("# Few\n" + yaml.safe_dump({**whole, "stages": stages}))


def test_a_pipeline_of_jobs_that_wait_for_each_other(cluster: Any) -> None:
    pipeline(cluster.folder)
    cluster.submit("few.yaml", "output_dir=out")
    assert cluster.wait("out/evaluate").state == "COMPLETED", cluster.command("status", "out").stdout
    assert cluster.command("status", "out").stdout.endswith("4 of 4 finished\n")
    assert (cluster.folder / "out" / "evaluate" / "report.html").is_file()


def test_after_a_stage_that_fails_none_starts(cluster: Any) -> None:
    pipeline(cluster.folder, sft={"cluster.command": "false"})
    cluster.submit("few.yaml", "output_dir=out")
    assert [cluster.wait(f"out/{name}").state for name in ("sft", "reward", "ppo", "evaluate")] == [
        "FAILED",
        *(["CANCELLED"] * 3),
    ]
    assert not (cluster.folder / "out" / "reward" / "started.json").exists()


FAILING = """
import os, sys, time
rank = int(os.environ["RANK"])
print(f"rank {rank} of {os.environ['WORLD_SIZE']}")
if rank == 2:
    time.sleep(1)
    sys.exit("out of luck")
time.sleep(600)
"""


def test_a_failed_rank_ends_all_and_the_job_is_failed(cluster: Any) -> None:
    words = ["cluster.nodes=2", "cluster.tasks_per_node=2", "distributed=zero1", program(cluster.folder, FAILING)]
    cluster.submit("tiny_sft", *RUN, *words, "output_dir=out")
    state = cluster.wait("out")
    assert state.state == "FAILED" and state.exit_code != "0:0"  # srun's is the highest, that of those it ended
    assert "srun: error: 127.0.0.2: task 2: Exited with exit code 1\n" in cluster.log("out")
    assert "  state     FAILED (NonZeroExitCode)\n" in cluster.command("status", "out").stdout
    assert cluster.command("logs", "out", "--rank", "2").stdout == "rank 2 of 4\nout of luck\n"


GROUP = """
import os, torch, torch.distributed as dist
dist.init_process_group("gloo")
total = torch.tensor([dist.get_rank(), int(os.environ["LOCAL_RANK"]), 1])
dist.all_reduce(total)
if dist.get_rank() == 0:
    print(total.tolist(), os.environ["SLURM_JOB_NUM_NODES"], os.environ["TEXT"], os.environ["SET"], flush=True)
dist.barrier()
os._exit(0)  # the group's threads may be late to let go of a tensor
"""


def test_the_processes_of_two_nodes_find_each_other(cluster: Any) -> None:
    words = [
        "cluster.nodes=2",
        "cluster.environment={TEXT: 'two words'}",
        "cluster.setup=['export SET=up']",
        "distributed=zero1",
    ]
    cluster.submit("tiny_sft", *RUN, *words, program(cluster.folder, GROUP), "output_dir=out")
    assert cluster.wait("out").state == "COMPLETED", cluster.log("out")
    assert "0: [1, 0, 2] 2 two words up\n" in cluster.log("out")


REQUEUED = """
import os, signal, subprocess, time
from pathlib import Path
saved = Path("saved")
if saved.exists():
    print("goes on after", saved.read_text())
    raise SystemExit
def save(number, frame):
    for each in (signal.SIGUSR1, signal.SIGTERM):  # a requeue terminates what is left of the job
        signal.signal(each, signal.SIG_IGN)
    time.sleep(1)
    saved.write_text(signal.Signals(number).name)
    subprocess.run(["scontrol", "requeue", os.environ["SLURM_JOB_ID"]], check=True)
signal.signal(signal.SIGUSR1, save)
signal.signal(signal.SIGTERM, save)
Path("ready").touch()
print("starts")
time.sleep(600)
"""


SIGNALS = {
    # Slurm signals up to half a minute early, which must not be before the program is ready.
    "before the end": (["cluster.time=00:01:00", "cluster.signal_before_end=20"], [], "SIGUSR1"),
    "by hand": ([], ["scancel", "--signal=USR1", "JOB"], "SIGUSR1"),
    "preempted": ([], ["sbatch", "--partition=high", "--nodes=2", "--exclusive", "--wrap=sleep 1"], "SIGTERM"),
}


@pytest.mark.parametrize("case", SIGNALS)
def test_a_signal_reaches_the_program_which_requeues_its_job(cluster: Any, case: str) -> None:
    settings, command, name = SIGNALS[case]
    cluster.submit("tiny_sft", *RUN, program(cluster.folder, REQUEUED), *settings, "output_dir=out")
    cluster.wait("out", until=lambda state: (cluster.folder / "ready").exists())
    job = json.loads((cluster.folder / "out" / "submitted.json").read_text())["job"]
    if command:
        subprocess.run([job if word == "JOB" else word for word in command], check=True, cwd=cluster.folder)
    cluster.start_requeued("out")
    assert cluster.wait("out").state == "COMPLETED", cluster.story("out")
    assert "requeued 1 time" in cluster.command("status", "out").stdout
    log = cluster.log("out")
    assert log.startswith("starts\n") and log.endswith(f"goes on after {name}\n")


@pytest.mark.parametrize(("recipe", "zero"), [("tiny_dpo", "zero2"), ("tiny_ppo", "zero3")])
def test_two_nodes_compute_what_one_process_does(cluster: Any, recipe: str, zero: str) -> None:
    few = ["generation.max_new_tokens=4"] if recipe == "tiny_ppo" else []
    cluster.submit(recipe, *RUN, *few, "cluster.nodes=2", f"distributed={zero}", "output_dir=out")
    assert cluster.wait("out").state == "COMPLETED", cluster.log("out")
    assert cluster.command("run", recipe, *RUN, *few, "output_dir=here").returncode == 0
    for one, two in zip(rows(cluster.folder / "here"), rows(cluster.folder / "out"), strict=True):
        assert two["loss"] == pytest.approx(one["loss"], abs=1e-5)


def test_a_run_that_is_signalled_requeues_itself_and_ends_as_if_unbroken(cluster: Any) -> None:
    words = ["tiny_sft", *RUN, "train.max_steps=300", "checkpoint.keep=1", "cluster.nodes=2", "distributed=zero2"]
    cluster.submit(*words, "output_dir=out")
    log = cluster.folder / "out" / "metrics.jsonl"
    cluster.wait("out", until=lambda state: log.exists() and len(log.read_text().splitlines()) > 3)
    job = json.loads((cluster.folder / "out" / "submitted.json").read_text())["job"]
    subprocess.run(["scancel", "--signal=USR1", job], check=True)
    cluster.start_requeued("out")
    assert cluster.wait("out").state == "COMPLETED", cluster.story("out")
    cluster.submit(*words, "output_dir=unbroken")
    assert cluster.wait("unbroken").state == "COMPLETED"
    assert rows(cluster.folder / "out") == rows(cluster.folder / "unbroken")
