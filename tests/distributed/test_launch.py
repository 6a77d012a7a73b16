"""`launch.processes` and torchrun, through the command line."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from alignment.cli.compose import compose, composing, resolve, single
from alignment.config.evaluate import EvaluateConfig
from alignment.config.online import PPOConfig
from alignment.config.supervised import DPOConfig, SFTConfig
from alignment.config.tasks import PipelineConfig, RejectionConfig
from alignment.tasks.pipeline import composed_stages

SMALL = [
    *("tiny_dpo", "model.init.hidden_size=32", "model.init.intermediate_size=48", "distributed.device=cpu"),
    *("data.train.limit=40", "data.eval.limit=7", "batch.size=8", "batch.max_tokens=400", "output_dir=run"),
]
Run = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def run(tmp_path: Path, environment: Callable[..., dict[str, str]]) -> Run:
    def call(*words: str, launcher: tuple[str, ...] = (), **settings: str) -> "subprocess.CompletedProcess[str]":
        broken = str(Path(__file__).with_name("broken")) if settings else ""
        env = environment(PYTHONPATH=broken, XDG_CACHE_HOME=str(tmp_path), **settings)
        command = [sys.executable, "-m", *launcher, "alignment", "run", *SMALL, *words]
        return subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=300)

    return call


def losses(folder: Path) -> list[float]:
    return [json.loads(line)["loss"] for line in (folder / "run" / "metrics.jsonl").read_text().splitlines()]


def test_two_processes_end_as_one(run: Run, tmp_path: Path) -> None:
    """The same numbers, told once, and one model that loads."""
    ended = run("train.max_steps=4", "launch.processes=2", "distributed=zero3")
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.count("train: 40 rows") == 1
    assert (tmp_path / "run" / "finished.json").exists()
    shared = losses(tmp_path)
    (tmp_path / "run").rename(tmp_path / "shared")
    again = run("train.max_steps=4", "reference.cache=false")
    assert again.returncode == 0, again.stderr
    assert len(shared) == 4 and losses(tmp_path) == pytest.approx(shared, abs=1e-5)
    sizes = [(tmp_path / name / "model" / "model.safetensors").stat().st_size for name in ("run", "shared")]
    assert sizes[0] == sizes[1]


def test_torchrun_works_too(run: Run, tmp_path: Path) -> None:
    torchrun = ("torch.distributed.run", "--nproc-per-node=2", "-m")
    ended = run("train.max_steps=2", "distributed=zero1", launcher=torchrun)
    assert ended.returncode == 0, ended.stderr
    assert len(losses(tmp_path)) == 2


def test_a_users_mistake_under_torchrun_is_exit_code_2_of_each_rank(run: Run, tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text('{"prompt": 3}\n')
    data = ("data=native", "data.train.path=rows.jsonl", "data.train.limit=null", "data.eval.limit=null")
    torchrun = ("torch.distributed.run", "--nproc-per-node=2", "-m")
    ended = run("train.max_steps=2", "distributed=zero1", *data, launcher=torchrun)
    assert re.findall(r"exitcode  : (\S+) ", ended.stderr) == ["2", "2"], ended.stderr
    said = [line for line in ended.stderr.splitlines() if line.startswith(("alignment:", "terminate"))]
    assert said == [
        "alignment: tiny_dpo: rows.jsonl:1: field `prompt` must be text or a list of turns, {role, content}, got 3"
    ]


@pytest.mark.parametrize(("rank", "said"), [({}, "in order\n"), ({"RANK": "1", "WORLD_SIZE": "2"}, "")])
@pytest.mark.parametrize(
    ("lines", "code", "last"),
    [
        ("from alignment.user_error import fail; fail('a mistake')", 2, "alignment: a mistake"),
        ("from alignment.distributed.launch import tell_launcher; tell_launcher(); {}['b']", 1, "KeyError: 'b'"),
    ],
)
def test_one_of_several_processes_ends_at_once(
    lines: str, code: int, last: str, rank: dict[str, str], said: str, environment: Callable[..., dict[str, str]]
) -> None:
    """Its group's threads, which can abort it at an orderly exit, have no say in its exit code."""
    command = [sys.executable, "-c", f"import atexit; atexit.register(print, 'in order'); {lines}"]
    ended = subprocess.run(command, env=environment(**rank), capture_output=True, text=True, check=False)
    assert (ended.returncode, ended.stdout, ended.stderr.splitlines()[-1]) == (code, said, last)


def test_a_process_whose_reader_is_gone_keeps_its_exit_code(environment: Callable[..., dict[str, str]]) -> None:
    full = "import os; print('line'); os.dup2(os.open('/dev/full', os.O_WRONLY), 1)"
    lines = f"{full}; from alignment.process import end; end(3)"
    env = environment(RANK="0", WORLD_SIZE="2")
    env.pop("PYTHONUNBUFFERED", None)  # with it the line would be refused at once, and nothing be left to flush
    ended = subprocess.run([sys.executable, "-c", lines], env=env, stdout=subprocess.PIPE, check=False)
    assert ended.returncode == 3


@pytest.mark.skipif(sys.platform != "linux", reason="sets the threads' schedule")
@pytest.mark.parametrize(
    ("processes", "rank", "how", "code"), [(2, "1", "starves", 0), (1, "alone", "starves and raises", 1)]
)
def test_threads_that_are_late_to_let_go_of_a_tensor_abort_nothing(
    processes: int, rank: str, how: str, code: int, run: Run
) -> None:
    """Where nobody waits for them, about half of such runs end by SIGABRT."""
    words = (f"launch.processes={processes}", "train.max_steps=4", "distributed=zero3", "checkpoint.every=0")
    ended = run(*words, BROKEN_RANK=rank, BROKEN_HOW=how)
    assert (ended.returncode, ended.stderr.count("terminate")) == (code, 0), ended.stderr
    assert ended.stderr.count("RuntimeError: the third step") == code


def test_a_crash_that_cannot_be_printed_ends_at_once_too(environment: Callable[..., dict[str, str]]) -> None:
    hooked = "from alignment.distributed.launch import tell_launcher; tell_launcher()"
    lines = f"import atexit, sys; atexit.register(print, 'in order'); {hooked}; sys.__stderr__.close(); {{}}['b']"
    env = environment(RANK="1", WORLD_SIZE="2")
    ended = subprocess.run([sys.executable, "-c", lines], env=env, capture_output=True, text=True, check=False)
    assert (ended.returncode, ended.stdout) == (1, "")


CRASH = """
import os
from alignment.config.distributed import Device, DistributedConfig
from alignment.distributed import collectives
from alignment.distributed.launch import tell_launcher
tell_launcher()
collectives.init(DistributedConfig(device=Device.cpu, zero=1))
{}["b"]
"""


@pytest.mark.parametrize("word", ["", "/nonexistent/word"])
def test_a_crash_in_a_group_is_shown(word: str, environment: Callable[..., dict[str, str]]) -> None:
    """torch's own hook, which a group sets, prints what ours has printed only when ours has returned."""
    told = {"TORCHELASTIC_ERROR_FILE": word} if word else {}
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    env = environment(RANK="0", WORLD_SIZE="1", LOCAL_RANK="0", MASTER_ADDR="127.0.0.1", MASTER_PORT=port, **told)
    ended = subprocess.run([sys.executable, "-c", CRASH], env=env, capture_output=True, text=True, check=False)
    assert ended.returncode == 1 and "Traceback" in ended.stderr and "KeyError: 'b'" in ended.stderr, ended.stderr
    assert ("The launcher could not be told" in ended.stderr) == bool(word)


def test_the_rank_that_fails_is_shown_last_and_once(run: Run) -> None:
    ended = run("train.max_steps=6", "launch.processes=2", "distributed=zero2", BROKEN_RANK="1", BROKEN_HOW="raises")
    assert ended.returncode == 1
    assert ended.stderr.splitlines()[0] == "alignment: tiny_dpo: rank 1:"
    assert ended.stderr.splitlines()[-1] == "RuntimeError: the third step of this rank"
    assert ended.stderr.count("Traceback") == 1


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ("killed", ["alignment: tiny_dpo: rank 1 was ended by SIGKILL"]),
        ("killed behind bytes", ["alignment: tiny_dpo: \ufffd is no text", "rank 1 was ended by SIGKILL"]),
    ],
)
def test_a_killed_rank_ends_all(how: str, said: list[str], run: Run) -> None:
    ended = run("train.max_steps=6", "launch.processes=2", "distributed=zero2", BROKEN_RANK="1", BROKEN_HOW=how)
    assert ended.returncode == 128 + signal.SIGKILL
    assert ended.stderr.splitlines()[-len(said) :] == said


def test_a_hang_is_an_error_with_rank_and_step(run: Run) -> None:
    words = ("launch.processes=2", "distributed=zero2", "distributed.timeout_minutes=0.2")
    ended = run("train.max_steps=6", *words, BROKEN_RANK="1", BROKEN_HOW="hangs")
    assert ended.returncode == 1
    assert "rank 0 of 2, step 3: a collective did not finish" in ended.stderr.splitlines()[-1]


def test_a_rank_that_starts_late_is_waited_for(run: Run, tmp_path: Path) -> None:
    words = ("launch.processes=2", "distributed=zero2", "distributed.timeout_minutes=0.2")
    ended = run("train.max_steps=2", *words, BROKEN_RANK="1", BROKEN_HOW="starts late")
    assert ended.returncode == 0, ended.stderr
    assert len(losses(tmp_path)) == 2


@pytest.mark.parametrize("broken", [{}, {"BROKEN_RANK": "0", "BROKEN_HOW": "cannot say"}])
def test_a_users_mistake_is_one_line_for_all_ranks(run: Run, tmp_path: Path, broken: dict[str, str]) -> None:
    """Also where a rank is ended by the launcher, for another one's failure, while it is writing down its own."""
    (tmp_path / "rows.jsonl").write_text('{"prompt": 3}\n')
    data = ("data=native", "data.train.path=rows.jsonl", "data.train.limit=null", "data.eval.limit=null")
    ended = run("train.max_steps=2", "launch.processes=2", "distributed=zero2", *data, **broken)
    assert ended.returncode == 2, ended.stderr
    assert ended.stderr.splitlines() == [
        "alignment: tiny_dpo: rows.jsonl:1: field `prompt` must be text or a list of turns, {role, content}, got 3"
    ]
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["launch.processes=2"], "distributed.zero must be set for launch.processes > 1"),
        (["launch.processes=3", "distributed=zero1"], "batch.size must be a multiple of the number of processes (3)"),
    ],
)
def test_what_cannot_run_in_many_is_told_before_it_starts(run: Run, words: list[str], said: str) -> None:
    ended = run("train.max_steps=2", *words)
    assert ended.returncode == 2 and len(ended.stderr.splitlines()) == 1
    assert said in ended.stderr


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere the processes are not told that their parent is gone")
def test_no_process_outlives_the_command(tmp_path: Path, environment: Callable[..., dict[str, str]]) -> None:
    words = ["train.max_steps=100000", "launch.processes=2", "distributed=zero1"]
    command = [sys.executable, "-m", "alignment", "run", *SMALL, *words]
    started = subprocess.Popen(command, cwd=tmp_path, env=environment(), stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while not (tmp_path / "run" / "metrics.jsonl").exists() and time.monotonic() < deadline:
        time.sleep(0.2)
    children = psutil.Process(started.pid).children()
    os.kill(started.pid, signal.SIGKILL)
    started.wait()
    _, alive = psutil.wait_procs(children, timeout=20)
    assert len(children) == 2 and alive == []


def test_a_pipeline_passes_processes_on_to_its_stages() -> None:
    with composing([]):
        config = resolve(single("tiny_pipeline", ["distributed=zero1", "launch.processes=2"]))
        assert isinstance(config, PipelineConfig)
        stages = [stage for _, stage in composed_stages(config, compose)[1]]
    kinds = {type(stage) for stage in stages}
    assert {SFTConfig, DPOConfig, PPOConfig, RejectionConfig, EvaluateConfig} <= kinds
    assert {(stage.launch.processes, stage.distributed.zero) for stage in stages} == {(2, 1)}
