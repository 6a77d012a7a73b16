"""`status` and `logs`: of a run here, and of one that was submitted."""

import io
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from alignment.config.metrics import METRICS
from alignment.overview import grid
from alignment.overview.grid import Column
from alignment.runs import endings
from alignment.runs.claim import Life, this_process
from alignment.runs.settings import DEPTH, runs_in
from alignment.slurm import logs
from alignment.slurm.folder import write_record

SMALL = ["data.train.limit=16", "data.eval.limit=4", "batch.size=4"]


@pytest.fixture
def slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """`slurm("JobState=RUNNING ...")`: what scontrol says of any job."""
    folder = tmp_path.parent / f"{tmp_path.name}-slurm"
    folder.mkdir()
    (folder / "scontrol").write_text('#!/bin/bash\n. "${0%/*}/said"\n')
    (folder / "scontrol").chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")

    def say(text: str) -> None:
        (folder / "new").write_text(f"echo '{text}'\n")
        (folder / "new").replace(folder / "said")

    return say


def run_folder(folder: Path, *, steps: int = 0, finished: bool = False, max_steps: int = 5, job: str = "") -> Path:
    (folder / "logs").mkdir(parents=True)
    (folder / "config.yaml").write_text(f"defaults: [{{task: sft}}, _self_]\ntrain: {{max_steps: {max_steps}}}\n")
    if steps:
        (folder / "started.json").write_text("{}")
        rows = [json.dumps({"step": step, "loss": 1 / step, "lr": 0.1}) for step in range(1, steps + 1)]
        (folder / "metrics.jsonl").write_text("\n".join(rows) + '\n{"step": 99, "lo')
    if finished:
        (folder / "finished.json").write_text("{}")
    if job:
        write_record(folder, job)
    return folder


def test_a_run_here(alignment: Callable[..., Any], tmp_path: Path) -> None:
    assert alignment("run", "tiny_sft", *SMALL, "train.max_steps=2", "output_dir=out").code == 0
    ended = alignment("status", "out")
    assert (ended.code, ended.err) == (0, [])
    row = json.loads((tmp_path / "out" / "metrics.jsonl").read_text().splitlines()[-1])
    lines = ended.out.splitlines()
    assert lines[:3] == ["out", "  state     finished", "  step      2 of 2"]
    names = ("loss", "perplexity", "mean_token_accuracy")
    train, held_out = ("  ".join(f"{e}{name} {row[e + name]:.4g}" for name in names) for e in ("", "eval/"))
    assert lines[3].startswith(f"  train     {train}  lr {row['lr']:.4g}  (step 2, ")
    assert lines[4:] == [
        f"  eval      {held_out}  (step 2)",
        "  model     out/model",
    ]
    ended = alignment("logs", "out")
    message = "alignment: out: no log, for it was not submitted: `alignment run` prints to its terminal"
    assert (ended.code, ended.out, ended.err) == (2, "", [message])


def test_an_unfinished_run_and_a_torn_row(alignment: Callable[..., Any], tmp_path: Path) -> None:
    run_folder(tmp_path / "out", steps=3)
    lines = alignment("status", "out").out.splitlines()
    assert lines[1:3] == ["  state     not finished", "  step      3 of 5"]
    assert lines[3].startswith("  train     loss 0.3333  lr 0.1  (step 3, ") and lines[3].endswith(" s ago)")
    assert lines[4:] == ["  to go on: alignment run out/config.yaml"]
    run_folder(tmp_path / "new")
    assert alignment("status", "new").out.splitlines()[1:] == [
        "  state     not started",
        "  step      -",
    ]


def test_a_submitted_run(alignment: Callable[..., Any], tmp_path: Path, slurm: Callable[[str], None]) -> None:
    run_folder(tmp_path / "out", steps=3, job="12")
    slurm("JobState=RUNNING Reason=None Restarts=2 NodeList=a[1-2] RunTime=00:01:00 TimeLimit=01:00:00")
    lines = alignment("status", "out").out.splitlines()
    assert lines[1:3] == [
        "  state     RUNNING",
        "  job       12, on a[1-2], for 00:01:00 of 01:00:00, requeued 2 times",
    ]
    slurm("JobState=FAILED Reason=NonZeroExitCode ExitCode=3:0")
    lines = alignment("status", "out").out.splitlines()
    assert lines[1:3] == ["  state     FAILED (NonZeroExitCode)", "  job       12, exit code 3:0"]
    assert lines[-1] == "  why: alignment logs out"


def test_a_job_that_slurm_forgot_or_cannot_be_asked_for(
    alignment: Callable[..., Any], tmp_path: Path, slurm: Callable[[str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    run_folder(tmp_path / "out", steps=3, finished=True, job="12")
    slurm("'; echo Invalid job id specified >&2; exit 1 #")
    lines = alignment("status", "out").out.splitlines()
    assert lines[1:3] == ["  state     finished", "  job       12, which Slurm does not know any more"]
    monkeypatch.setenv("PATH", "")
    lines = alignment("status", "out").out.splitlines()
    assert lines[0].startswith("Slurm cannot be asked, so this is from the files only: scontrol is not in PATH")
    assert lines[2] == "  state     finished"


def test_a_sweep_and_a_pipeline_are_tables(
    alignment: Callable[..., Any], tmp_path: Path, slurm: Callable[[str], None]
) -> None:
    for number in range(11):
        run_folder(tmp_path / "sweep" / str(number), steps=number, job=f"7_{number}")
    slurm("JobState=PENDING Reason=Priority")
    lines = alignment("status", "sweep").out.splitlines()
    assert [line.split()[0] for line in lines[1:-1]] == [str(number) for number in range(11)]
    assert lines[0].split("\t") == ["run", "state", "step", "job", "loss"]
    assert lines[3].split("\t") == ["2", "PENDING (Priority)", "2 of 5", "7_2", "0.5"]
    assert lines[-1] == "0 of 11 finished"

    run_folder(tmp_path / "pipe" / "b", steps=5, finished=True)
    (tmp_path / "pipe" / "config.yaml").write_text("stages: [{name: b}, {name: a}]\n")
    lines = alignment("status", "pipe").out.splitlines()
    assert lines[1].split() == ["b", "finished", "5", "of", "5", "0.2"]
    assert lines[2].split() == ["a", "not", "started", "-", "-"]
    assert lines[3] == "1 of 2 finished"
    assert runs_in(tmp_path / "pipe") == [tmp_path / "pipe" / "b", tmp_path / "pipe" / "a"]


@pytest.mark.parametrize(
    ("only", "there", "shown"), [("[b]", "", "b"), ("[c, b]", "", "bc"), ("[]", "", "bc"), ("[b]", "ac", "abc")]
)
def test_stages_that_a_pipeline_leaves_out_are_shown_where_they_were_run_before(
    only: str, there: str, shown: str, tmp_path: Path
) -> None:
    for name in there:
        run_folder(tmp_path / name)
    stages = "stages: [{name: a, enabled: false}, {name: b}, {name: c}]"
    (tmp_path / "config.yaml").write_text(f"{stages}\nonly: {only}\n")
    assert runs_in(tmp_path) == [tmp_path / name for name in shown]


def labelled(folder: Path) -> Path:
    (folder / "job.sbatch").write_text("srun --kill-on-bad-exit=1 --label bash\n")
    log = folder / "logs" / "12.log"
    log.write_text(" 1: one\n10: ten\n 1: \n 1: two\nsrun: error\n")
    return log


def test_the_log_of_all_processes_or_of_one(
    alignment: Callable[..., Any], tmp_path: Path, slurm: Callable[[str], None]
) -> None:
    log = labelled(run_folder(tmp_path / "out", job="12"))
    assert alignment("logs", "out").out == log.read_text()
    assert alignment("logs", "out", "--rank", "1").out == "one\n\ntwo\n"
    assert alignment("logs", "out", "--rank", "10").out == "ten\n"
    ended = alignment("logs", "out", "--rank", "3")
    assert (ended.code, ended.err) == (2, ["alignment: no line of rank 3 in out/logs/12.log"])
    (tmp_path / "out" / "job.sbatch").write_text("srun bash\n")
    assert alignment("logs", "out", "--rank", "0").out == log.read_text()
    ended = alignment("logs", "out", "--rank", "1")
    assert (ended.code, ended.err) == (2, ["alignment: --rank must be 0, for the job has one process, got 1"])


def test_the_newest_log_of_a_sweep(alignment: Callable[..., Any], tmp_path: Path, slurm: Callable[[str], None]) -> None:
    for number in range(2):
        run_folder(tmp_path / "sweep" / str(number), job=f"7_{number}")
    slurm("JobState=PENDING Reason=Priority")
    ended = alignment("logs", "sweep")
    assert (ended.code, ended.err) == (2, ["alignment: sweep: no log so far: job 7_0 is PENDING"])
    for number in (1, 0):
        (tmp_path / "sweep" / str(number) / "logs" / f"7_{number}.log").write_text(f"{number}\n")
        time.sleep(0.01)
    assert alignment("logs", "sweep").out == "0\n"


def test_following_ends_with_the_job(
    alignment: Callable[..., Any], tmp_path: Path, slurm: Callable[[str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logs, "POLL_S", 0.01)
    log = run_folder(tmp_path / "out", job="12") / "logs" / "12.log"
    slurm("JobState=PENDING Reason=Priority")

    def job() -> None:
        time.sleep(0.2)
        slurm("JobState=RUNNING")
        with log.open("w", buffering=1) as file:
            for number in range(3):
                file.write(f"line {number}")
                time.sleep(0.05)
                file.write("\n")
            file.write("end")
        slurm("JobState=COMPLETED")

    writer = threading.Thread(target=job)
    writer.start()
    ended = alignment("logs", "out", "-f")
    writer.join()
    assert (ended.code, ended.out) == (0, "line 0\nline 1\nline 2\nend")
    assert ended.err[0] == "alignment: job 12 is PENDING (Priority), waiting for its log"


DAMAGED = {
    "row": ("metrics.jsonl", '{"step": 1}\nnonsense\n', "metrics.jsonl:2 is no JSON"),
    "row of another kind": (
        "metrics.jsonl",
        "[1]\n",
        "metrics.jsonl:1 must be a JSON object with a step; without the line the others are",
    ),
    "config": ("config.yaml", "train: [1\n", "config.yaml cannot be read: while parsing"),
    "config's letters": ("config.yaml", b"\xff\xfe", "config.yaml cannot be read: 'utf-8'"),
    "config of another kind": ("config.yaml", "- 1\n", "config.yaml must hold keys and values, got [1]"),
    "stages": ("config.yaml", "stages: [a]\n", "config.yaml: stages must be a list of mappings with a name"),
    "job": ("submitted.json", "{}", "submitted.json cannot be read ('job')"),
}


@pytest.mark.parametrize("case", DAMAGED)
def test_a_damaged_file_is_one_line(case: str, alignment: Callable[..., Any], tmp_path: Path) -> None:
    name, content, line = DAMAGED[case]
    run_folder(tmp_path / "out", steps=1)
    (tmp_path / "out" / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    ended = alignment("status", "out")
    assert ended.code == 2 and len(ended.err) == 1 and ended.err[0].startswith(f"alignment: status: out/{line}")


def test_a_file_is_no_run(alignment: Callable[..., Any], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for verb in ("status", "logs"):
        assert alignment(verb, "file").err == [f"alignment: {verb} needs a run's folder, got the file 'file'"]


@pytest.mark.parametrize("words", ["recipes", "--help", "status out", "run tiny_dpo --help", "run tiny_dpo --cfg job"])
def test_what_only_prints_ends_with_its_reader(words: str, tmp_path: Path) -> None:
    """As before `| head`: nothing on stderr, and the end that shells know from other commands."""
    run_folder(tmp_path / "out", steps=1)
    read, write = os.pipe()
    os.close(read)
    command = [sys.executable, "-m", "alignment", *words.split()]
    ended = subprocess.run(command, stdout=write, stderr=subprocess.PIPE, cwd=tmp_path, check=False)
    os.close(write)
    assert (ended.returncode, ended.stderr) == (-signal.SIGPIPE, b"")


def test_a_run_outlives_its_reader(tmp_path: Path) -> None:
    read, write = os.pipe()
    os.close(read)
    command = [sys.executable, "-m", "alignment", "run", "tiny_sft", *SMALL, "train.max_steps=1", "output_dir=out"]
    ended = subprocess.run(command, stdout=write, stderr=subprocess.PIPE, cwd=tmp_path, check=False)
    os.close(write)
    assert (ended.returncode, ended.stderr) == (0, b"")
    assert (tmp_path / "out" / "finished.json").exists()


def test_a_damaged_run_is_shown_among_the_others(
    alignment: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each kind of damage, in a sweep and in a pipeline; the others are shown as ever."""
    damage = {name: case for name, case in DAMAGED.items() if name != "stages"}
    for number, (name, content, _) in enumerate(damage.values()):
        run_folder(tmp_path / "sweep" / str(number), steps=1)
        (tmp_path / "sweep" / str(number) / name).write_bytes(
            content if isinstance(content, bytes) else content.encode()
        )
    run_folder(tmp_path / "sweep" / "6", steps=5, finished=True)
    ended = alignment("status", "sweep")
    assert (ended.code, ended.err) == (0, [])
    lines = ended.out.splitlines()
    assert [line.split()[:2] for line in lines[1:7]] == [[str(number), "damaged"] for number in range(6)]
    assert lines[7].split() == ["6", "finished", "5", "of", "5", "0.2"]
    for number, (_, _, line) in enumerate(damage.values()):
        assert lines[8 + number].startswith(f"{number} is damaged: sweep/{number}/{line}")
    assert lines[-1] == "1 of 7 finished"

    (tmp_path / "sweep" / "config.yaml").write_text("stages: [{name: '6'}, {name: '0'}]\n")
    assert [line.split()[1] for line in alignment("status", "sweep").out.splitlines()[1:3]] == ["finished", "damaged"]
    (tmp_path / "sweep" / "config.yaml").unlink()

    exists = Path.exists

    def refused(path: Path) -> bool:
        if path.parent.name == "0":
            raise PermissionError(13, "Permission denied")
        return exists(path)

    monkeypatch.setattr(Path, "exists", refused)
    assert "0 is damaged: sweep/0/submitted.json cannot be read" in alignment("status", "sweep").out


@pytest.mark.parametrize(
    ("owner", "quiet_s", "word"),
    [
        ({}, 0.0, "running"),
        ({}, 600.0, "silent"),
        ({"pid": 2**22 + 1}, 0.0, "died"),
        ({"host": "other", "pid": 2**22 + 1}, 0.0, "running"),
        ({"host": "other", "boot": "b"}, 600.0, "died"),
    ],
)
def test_running_is_told_from_dead(
    owner: dict[str, Any], quiet_s: float, word: str, alignment: Callable[..., Any], tmp_path: Path
) -> None:
    """Here by the process, elsewhere by when its file last changed."""
    folder = run_folder(tmp_path / "out", steps=3)
    file = folder / "owner.json"
    file.write_text(json.dumps({"owner": {**asdict(this_process()), **owner}, "beat": 7}))
    os.utime(file, (time.time() - quiet_s,) * 2)
    lines = alignment("status", "out").out.splitlines()
    whose = owner.get("pid", os.getpid())
    assert lines[1].startswith(f"  state     {word}: process {whose} on ")
    assert ("  to go on: alignment run out/config.yaml" in lines) == (word == "died")
    assert file.exists()


def test_the_page_of_the_verb_has_every_state_and_how_deep_it_looks(alignment: Callable[..., Any]) -> None:
    page = alignment("status", "--help").out
    words = {line.split("  ")[1] for line in page.splitlines() if line.startswith("  ")}
    others = {"not started", "not finished", "finished", "damaged", endings.FAILED, endings.INTERRUPTED}
    assert {life.value for life in Life} | others <= words
    assert "three folders deep (runs/RECIPE/SWEEP/JOB)" in page and DEPTH == 3


def test_the_time_left_is_that_of_recent_steps(alignment: Callable[..., Any], tmp_path: Path) -> None:
    folder = run_folder(tmp_path / "out", max_steps=5)
    (folder / "started.json").write_text("{}")
    (folder / "progress.json").write_text('{"num_steps": 1000}')  # of its epochs, which config.yaml does not say
    times = [{"step": step, "loss": 1.0, "time/step_s": 900.0 if step == 10 else 20.0} for step in (10, 20, 30)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in times))
    assert "  step      30 of 1000" in alignment("status", "out").out.splitlines()  # nobody works on it
    (folder / "owner.json").write_text(json.dumps({"owner": asdict(this_process()), "beat": 0}))
    (line,) = (line for line in alignment("status", "out").out.splitlines() if line.startswith("  step"))
    assert line.startswith("  step      30 of 1000, about 0:32:")  # 970 steps of 2 seconds


def sweep(folder: Path) -> None:
    for number, (beta, loss) in enumerate([("0.1", 0.5), ("0.3", 0.25), ("0.2", None)]):
        inner = run_folder(folder / "dpo" / "today" / str(number), steps=2)
        settings = f"defaults: [{{task: dpo}}, _self_]\nloss: {{beta: {beta}}}\noutput_dir: o{number}\nseed: 0\n"
        (inner / "config.yaml").write_text(settings)
        if loss is not None:
            row = {"step": 2, "eval/loss": loss, "eval/rewards/accuracy": 1 - loss}
            (inner / "metrics.jsonl").write_text(json.dumps({"step": 1, "loss": 0.7}) + "\n" + json.dumps(row) + "\n")


def test_runs_below_a_folder_with_what_they_differ_in_and_their_evaluations(
    alignment: Callable[..., Any], tmp_path: Path
) -> None:
    sweep(tmp_path / "runs")
    lines = [line.split("\t") for line in alignment("status", "runs").out.splitlines()]
    assert lines[0] == ["run", "state", "step", "beta", "eval/loss", "eval/rewards/accuracy", "loss"]
    assert lines[1] == ["dpo/today/0", "not finished", "2", "0.1", "0.5", "0.5", "0.7"]
    assert lines[3][3:] == ["0.2", "-", "-", "0.5"]

    def order(*words: str) -> list[str]:
        said = alignment("status", "runs/dpo/today", *words)
        assert (said.code, said.err) == (0, [])
        return [line.split("\t")[0] for line in said.out.splitlines()[1:-1]]

    assert order("--sort", "eval/loss") == ["1", "0", "2"]
    assert order("--sort=-eval/loss") == order("--sort", "eval/loss", "--descending") == ["0", "1", "2"]
    head = alignment("status", "runs", "--metric", "loss", "--metric", "eval/loss").out.splitlines()[0]
    assert head.split("\t")[4:] == ["loss", "eval/loss"]
    ended = alignment("status", "runs", "--sort", "eval/los")
    line = "alignment: status: no run has the metric 'eval/los' (did you mean 'eval/loss'?)"
    assert ended.code == 2 and ended.err[0].startswith(line)
    for words in (["runs", "--all"], ["runs/dpo/today/0", "--sort", "loss"], ["runs", "--descending"]):
        ended = alignment("status", *words)
        assert (ended.code, len(ended.err)) == (2, 1)


def test_on_a_terminal_what_has_no_room_is_left_out_and_named(monkeypatch: pytest.MonkeyPatch) -> None:
    columns = [
        Column("run", ["a" * 20, "b"]),
        Column("beta", ["0.1", "0.3"], 100),
        Column("eval/loss", ["0.5", "0.25"], 200, is_number=True),
        Column("loss", ["0.5", "1"], 300, is_number=True),
    ]
    monkeypatch.setattr(grid, "console", Console(file=io.StringIO(), force_terminal=True, width=40))
    assert list(grid.lines(columns)) == [
        "run                   beta  eval/loss",
        "aaaaaaaaaaaaaaaaaaaa  0.1         0.5",
        "b                     0.3        0.25",
        "not shown for want of room: loss",
    ]


def test_every_metric_with_its_meaning(alignment: Callable[..., Any], tmp_path: Path) -> None:
    folder = run_folder(tmp_path / "out", steps=1)
    row = {"step": 1, "loss": 0.5, "own": 3.0, "eval/kl": 1.5, "time/step_s": 2.0}
    (folder / "metrics.jsonl").write_text(json.dumps(row) + "\n")
    lines = [line.split() for line in alignment("status", "out", "--all").out.splitlines()]
    assert ["own", "3", "?"] in lines
    assert ["eval/kl", "1.5", *METRICS["kl"].words().split()] in lines
    titles = [" ".join(line) for line in lines if " ".join(line) in ("training", "time and memory", "evaluation")]
    assert titles == ["training", "time and memory", "evaluation"]


def test_what_was_steered_is_shown(alignment: Callable[..., Any], tmp_path: Path) -> None:
    for name in ("a", "b"):
        run_folder(tmp_path / name, steps=3)
    change = {"changed": "train.learning_rate", "before": 0.5, "after": 0.25, "step": 2}
    (tmp_path / "a" / "history.jsonl").write_text(json.dumps(change) + '\n{"going_on_from": 2}\n')
    words = "at step 2: 0.5 -> 0.25"
    assert f"  steered   train.learning_rate {words}" in alignment("status", "a").out.splitlines()
    assert "steered" not in alignment("status", "b").out
    assert f"steered train.learning_rate\t{words}\t-" in alignment("compare", "a", "b").out.splitlines()
    (tmp_path / "a" / "history.jsonl").write_text("nonsense\n")
    ended = alignment("status", "a")
    assert ended.code == 2 and ended.err[0].startswith("alignment: status: a/history.jsonl:1 is no JSON")


def test_a_tree_is_looked_through_level_by_level_and_says_where_it_ends(
    alignment: Callable[..., Any], tmp_path: Path
) -> None:
    for name in ("run10", "run2", "a/run1", "a/b/run3", "a/b/c/run4", "a/b/d/e/run5", "2026-1", "2026-01b"):
        run_folder(tmp_path / "runs" / name)
    (tmp_path / "runs" / "a" / "b" / "empty").mkdir()
    lines = alignment("status", "runs").out.splitlines()
    order = ["2026-01b", "2026-1", "run2", "run10", "a/run1", "a/b/run3"]
    assert [line.split("\t")[0] for line in lines[1:-2]] == order
    said = "2 folders lie too deep to be looked into (3 levels are): alignment status runs/a/b/c"
    assert lines[-2:] == ["0 of 6 finished", said]
    assert alignment("status", "runs/a/b").out.splitlines()[-1] == "0 of 3 finished"
    run_folder(tmp_path / "far" / "1" / "2" / "3" / "run")
    (message,) = alignment("status", "far").err
    assert message.endswith(
        "got 'far'; a folder lies too deep to be looked into (3 levels are): alignment status far/1/2/3"
    )


def test_what_has_ended_says_how(alignment: Callable[..., Any], tmp_path: Path) -> None:
    """One that failed with its line, one that was stopped, the next attempt of it, and one that had nothing to save."""
    why = "step 3: the loss of DPO is nan"
    lines = {
        "failed": {"ended": "failed", "why": why, "step": 2},
        "stopped": {"ended": "interrupted", "why": "stopped by SIGTERM after step 2, which is saved", "step": 2},
        "early": {"ended": "interrupted", "why": "Ctrl-C", "step": None},
        "killed": {"going_on_from": 2},
    }
    for name, line in lines.items():
        folder = run_folder(tmp_path / "runs" / name, steps=2)
        (folder / "history.jsonl").write_text('{"ended": "failed", "why": "x", "step": 1}\n' + json.dumps(line) + "\n")
    run_folder(tmp_path / "runs" / "zero", max_steps=0, finished=True)
    owner = {"owner": {**asdict(this_process()), "host": "node7", "boot": "b"}, "beat": 7}
    (run_folder(tmp_path / "runs" / "away", steps=1) / "owner.json").write_text(json.dumps(owner))
    said = alignment("status", "runs").out.splitlines()
    assert {row.split("\t")[0]: row.split("\t")[1] for row in said[1:7]} == {
        "away": "running on node7",
        "early": "interrupted before a step was saved",
        "failed": "failed",
        "killed": "not finished",
        "stopped": "interrupted at step 2",
        "zero": "finished: nothing saved",
    }
    assert said[7:10] == [
        "early: interrupted before a step was saved: Ctrl-C",
        f"failed: failed: {why}",
        "stopped: interrupted at step 2: stopped by SIGTERM after step 2, which is saved",
    ]
    page = alignment("status", "runs/failed").out.splitlines()
    assert page[1] == f"  state     failed: {why}" and page[-1].startswith("  to go on: alignment run runs/failed/")
    assert alignment("status", "runs/zero").out.count("finished") == 1


def test_an_evaluation_has_a_page_of_its_own(alignment: Callable[..., Any], tmp_path: Path) -> None:
    folder = run_folder(tmp_path / "out", finished=True)
    (folder / "config.yaml").write_text("defaults: [{task: evaluate}, _self_]\nruns: {a: x, b: y}\n")
    methods = [{"name": "a", "gold": {"mean": 0.5, "low": 0.25, "high": 0.75, "n": 3}, "length": 7.0}]
    methods.append({"name": "b", "gold": {"mean": 1.0, "low": 0.9, "high": 1.1, "n": 3}})
    (folder / "summary.json").write_text(json.dumps({"methods": methods, "reward_model": {"accuracy": 0.75}}))
    (folder / "report.html").touch()
    assert alignment("status", "out").out.splitlines() == [
        "out",
        "  state     finished",
        "  found\tgold\tlength\taccuracy",
        "  a\t0.5 [0.25, 0.75]\t7\t-",
        "  b\t1 [0.9, 1.1]\t-\t-",
        "  reward model\t-\t-\t0.75",
        "  report    out/report.html",
    ]
    table = alignment("status", ".").out.splitlines()
    assert table[2:] == ["results of out, model by model: alignment status out", "1 of 1 finished"]


def test_the_table_marks_what_was_steered_and_what_was_made_longer(
    alignment: Callable[..., Any], tmp_path: Path
) -> None:
    for name in ("a", "b", "c"):
        run_folder(tmp_path / "runs" / name, steps=3)
    change = {"changed": "loss.beta", "before": 0.5, "after": 0.25, "step": 2}
    longer = {"asked": {"train.max_steps": 5}, "before": {"train.max_steps": 3}, "schedule": "linear"}
    (tmp_path / "runs" / "a" / "history.jsonl").write_text(json.dumps(change) + "\n" + json.dumps(longer) + "\n")
    (tmp_path / "runs" / "b" / "history.jsonl").write_text(json.dumps({**longer, "step": 3}) + "\n")
    rows = [line.split("\t") for line in alignment("status", "runs").out.splitlines()]
    assert rows[0][3:5] == ["steered", "extended by"]
    marks = [["loss.beta", "train.max_steps"], ["-", "train.max_steps"], ["-", "-"]]
    assert [row[3:5] for row in rows[1:4]] == marks
    assert "  extended  train.max_steps at step 3: 3 -> 5" in alignment("status", "runs/b").out.splitlines()
    assert "extended train.max_steps\t3 -> 5\tat step 3: 3 -> 5" in alignment("compare", "runs/a", "runs/b").out
