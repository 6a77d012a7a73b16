"""A server that the run starts and ends, with a program in vLLM's place (fake_vllm.py)."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from transformers import PreTrainedTokenizerBase

from alignment.config.errors import ConfigError
from alignment.config.evaluate import EvaluateConfig
from alignment.config.generation import Generation, GenerationConfig, VLLMConfig, VLLMTransfer, require_launch
from alignment.config.launch import LaunchConfig
from alignment.config.model import ModelConfig
from alignment.distributed.placement import WHOLE
from alignment.generation.launched import Asked, LaunchedVLLM, at, environment, words
from alignment.models.load import load_language_model
from alignment.models.save import write_weights

ROOT, FAKE = Path(__file__).parents[2], Path(__file__).with_name("fake_vllm.py")
SMALL = ["data.train.limit=40", "log.samples=0", "output_dir=run", "generation.engine=vllm", "launch.vllm=1"]
STEPS = ["batch.size=4", "data.eval.limit=4", "train.eval_every=0", "checkpoint.every=1", "log.progress=false"]
NCCL_ASLEEP = VLLMConfig(transfer=VLLMTransfer.nccl, sleep=True)
GONE_S = 30


@dataclass
class Runs:
    """Starts the command in a folder, with the stand-in as its Python that has vLLM."""

    folder: Path

    def start(self, *words: str, recipe: str = "tiny_ppo", fake: str = "", **more: str) -> "subprocess.Popen[str]":
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), "FAKE_VLLM": fake, **more}
        own = ["model=pretrained", "model.path=policy", f"generation.vllm.python={self.folder / 'python'}", *SMALL]
        own += [] if recipe == "tiny_rejection" else STEPS
        return subprocess.Popen(
            [sys.executable, "-m", "alignment", "run", recipe, *own, *words],
            cwd=self.folder,
            env={**environment, "FAKE_VLLM_NOTE": str(self.folder / "note.json")},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
            preexec_fn=lambda: signal.signal(
                signal.SIGINT, signal.default_int_handler
            ),  # a background shell ignores it
        )

    def end(self, *words: str, **more: str) -> tuple[int, str, str]:
        process = self.start(*words, **more)
        out, err = process.communicate(timeout=300)
        return process.returncode, out, err

    def log(self) -> list[str]:
        """What the stand-in was asked for: `weights`, `replies`, a line each; each several times is told once."""
        said = (self.folder / "run" / "logs" / "vllm.txt").read_text().splitlines()
        return [line for line, before in zip(said, ["", *said], strict=False) if line != before]

    def note(self) -> dict[str, Any]:
        return dict(json.loads((self.folder / "note.json").read_text()))

    def wait_for(self, holds: Callable[[], bool]) -> None:
        until = time.monotonic() + 120
        while not holds():
            assert time.monotonic() < until
            time.sleep(0.1)

    def require_no_server(self) -> None:
        """Neither it nor its worker lives on, seconds after the run has gone."""
        until = time.monotonic() + GONE_S
        if not (self.folder / "note.json").exists():  # it was ended before it could write
            return
        while any(map(is_alive, self.note()["pids"])):
            assert time.monotonic() < until
            time.sleep(0.1)


def is_alive(pid: int) -> bool:
    try:
        return bool(psutil.Process(pid).status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


@pytest.fixture
def runs(tmp_path: Path, tiny_init: dict[str, Any], tokenizer: PreTrainedTokenizerBase) -> Runs:
    torch.manual_seed(0)
    model = load_language_model(ModelConfig(init={**tiny_init, "tie_word_embeddings": True}), tokenizer, WHOLE)
    write_weights(model.hf, dict(model.hf.state_dict()), tmp_path / "policy", torch.float32)
    tokenizer.save_pretrained(tmp_path / "policy")
    python = tmp_path / "python"
    python.write_text(f'#!/bin/sh\nexec "{sys.executable}" "{FAKE}" "$@"\n')
    python.chmod(0o755)
    return Runs(tmp_path)


@pytest.mark.parametrize("distributed", [[], ["distributed=zero3", "launch.processes=2"]], ids=["one", "zero3 of two"])
def test_the_server_of_a_run_is_its_own_from_the_start_to_the_end(runs: Runs, distributed: list[str]) -> None:
    foreign = {"PYTORCH_CUDA_ALLOC_CONF": "expandable_segments:True", "SLURM_NODEID": "3"}
    code, out, err = runs.end("train.max_steps=2", *distributed, **foreign)
    assert code == 0, err
    assert "vLLM: a server starts on the CPU" in out and "run/logs/vllm.txt" in out
    runs.require_no_server()
    note = runs.note()
    given = " ".join(note["words"])
    assert f"--model {runs.folder / 'policy'} " in given
    assert "--load-format dummy" in given and "--dtype float32" in given and "--max-model-len 104" in given
    for name in (*foreign, "RANK", "WORLD_SIZE", "MASTER_PORT", "LOCAL_RANK", "PYTHONPATH", "ALIGNMENT_LAUNCHED_BY"):
        assert name not in note["environment"]
    assert not [name for name in note["environment"] if name.startswith("TORCHELASTIC")]
    assert note["environment"]["VLLM_SERVER_DEV_MODE"] == "1"
    weights = json.loads((runs.folder / "weights.json").read_text())
    assert weights == ["head.safetensors", "model.safetensors"]  # of a tied model, whose head is a weight there


@pytest.mark.parametrize("distributed", [[], ["distributed=zero3", "launch.processes=2"]], ids=["one", "zero3 of two"])
def test_weights_are_pushed_once_they_have_changed_and_not_again(runs: Runs, distributed: list[str]) -> None:
    """A step draws from what its evaluation before it has had pushed, however often replies are drawn anew; and so does
    the run that goes on, whose server is another."""
    groups = ["num_samples=2", "advantage.redraws=2", "train.eval_every=1", "train.eval_on_start=true", *distributed]
    each = ["weights", "replies"]
    for steps, pushes in ((2, 3), (3, 5)):
        code, _, err = runs.end(f"train.max_steps={steps}", *groups, recipe="tiny_grpo")
        assert code == 0, err
        assert runs.log() == each * pushes
    rows = [json.loads(line) for line in (runs.folder / "run" / "metrics.jsonl").read_text().splitlines()]
    assert sum(row["groups/redrawn"] for row in rows if "groups/redrawn" in row) > 0
    assert len([row for row in rows if "eval/gold" in row]) == 4


def test_online_dpo_watches_how_far_the_server_is_from_the_trainer(runs: Runs) -> None:
    """The stand-in gives each token a log-prob of -1, where a model that has learned nothing has one of about -7."""
    watched = ["alarm.max_mismatch=2", "alarm.window=5", "generation.temperature=1.0", "log.every=1"]
    code, out, err = runs.end("train.max_steps=5", *watched, recipe="tiny_online_dpo")
    assert code == 0, err
    assert "ALARM mismatch at step 5: the engine's log-probs are further" in out
    rows = [json.loads(line) for line in (runs.folder / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [row.get("alarm/mismatch") for row in rows] == [None] * 4 + [1.0]
    for row in rows:
        off, most, kl = (row[f"generation/mismatch{end}"] for end in ("", "_max", "_kl"))
        assert 5 < off < most and kl == pytest.approx(off - 1, abs=0.1)  # as k3 is of tokens that are so unlikely


def test_replies_at_several_temperatures_are_of_weights_pushed_once(runs: Runs) -> None:
    code, _, err = runs.end("num_samples=6", "temperatures=[0.5,1.0,1.5]", recipe="tiny_rejection")
    assert code == 0, err
    assert runs.log() == ["weights", "replies"]


def test_a_mistake_in_the_data_leaves_neither_server_nor_folder(runs: Runs) -> None:
    (runs.folder / "rows.jsonl").write_text('{"prompt": 3}\n')
    rows = ["data=native", "data.train.path=rows.jsonl", "data.eval.path=rows.jsonl", "data.train.limit=null"]
    rows += ["data.eval.limit=null", "gold=null", "reward.function=launched_lengths.lengths"]
    (runs.folder / "launched_lengths.py").write_text(
        "def lengths(prompts, replies):\n    return [0.0] * len(replies)\n"
    )
    code, _, err = runs.end(*rows)
    assert code == 2 and "rows.jsonl" in err and len(err.splitlines()) == 1, err
    assert not (runs.folder / "run").exists()
    runs.require_no_server()


@pytest.mark.parametrize("distributed", [[], ["distributed=zero3", "launch.processes=2"]], ids=["one", "zero3 of two"])
def test_a_server_that_does_not_start_is_one_line_that_names_its_log(runs: Runs, distributed: list[str]) -> None:
    code, _, err = runs.end(*distributed, fake="refuses")
    said = "the vLLM server that the run started has ended: ValueError: no room for the model (run/logs/vllm.txt)"
    assert code == 2 and err.splitlines()[-1] == f"alignment: tiny_ppo: {said}", err
    assert "no room" in (runs.folder / "run/logs/vllm.txt").read_text()
    runs.require_no_server()


def test_an_engine_that_dies_behind_its_server_is_told_with_the_log(runs: Runs) -> None:
    code, _, err = runs.end("train.max_steps=4", fake="breaks")
    assert code == 2 and len(err.splitlines()) == 1, err
    assert "failed at v1/completions (status 500): RuntimeError: the engine is gone (run/logs/vllm.txt)" in err
    runs.require_no_server()


def test_a_run_whose_server_dies_goes_on_to_the_weights_of_one_unbroken(runs: Runs) -> None:
    """The same prompts are asked for with the same seeds: from the same replies there come the same bits."""
    code, _, err = runs.end("train.max_steps=4", fake="10")
    assert code == 2 and len(err.splitlines()) == 1, err
    assert "does not answer any more: RuntimeError: out of memory (run/logs/vllm.txt); the run goes on" in err
    runs.require_no_server()
    code, out, err = runs.end("train.max_steps=4")
    assert code == 0 and "finished at step 4" in out, err
    code, _, err = runs.end("train.max_steps=4", "output_dir=unbroken")
    assert code == 0, err
    one, other = (runs.folder / run / "model" / "model.safetensors" for run in ("run", "unbroken"))
    assert one.read_bytes() == other.read_bytes() != (runs.folder / "policy" / "model.safetensors").read_bytes()


@pytest.mark.parametrize("distributed", [[], ["distributed=zero3", "launch.processes=2"]], ids=["one", "zero3 of two"])
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_it_goes_with_a_run_that_is_stopped(runs: Runs, number: signal.Signals, distributed: list[str]) -> None:
    process = runs.start("train.max_steps=100000", *distributed)
    runs.wait_for(lambda: any((runs.folder / "run/checkpoints").glob("step-*")) or process.poll() is not None)
    if number is signal.SIGINT:
        os.killpg(process.pid, number)  # as a terminal does, to all that are in its foreground
    else:
        process.send_signal(number)
    _, err = process.communicate(timeout=120)
    assert process.returncode == (130 if number is signal.SIGINT else -number), err
    assert "does not answer" not in err
    runs.require_no_server()


def test_it_goes_with_a_run_whose_keeper_was_killed(runs: Runs) -> None:
    """As the system may do for memory."""
    process = runs.start("train.max_steps=100000")
    runs.wait_for(lambda: any((runs.folder / "run/checkpoints").glob("step-*")) or process.poll() is not None)
    (keeper,) = (each for each in psutil.Process(process.pid).children() if "keeper.py" in " ".join(each.cmdline()))
    keeper.kill()
    os.killpg(process.pid, signal.SIGINT)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 130, err
    runs.require_no_server()


def test_ctrl_c_twice_waits_for_no_reply(runs: Runs) -> None:
    """Of a server that never answers: `communicate` would not outlast it."""
    process = runs.start("train.max_steps=2", fake="hangs")
    log = runs.folder / "run" / "logs" / "vllm.txt"
    runs.wait_for(lambda: process.poll() is not None or (log.exists() and "replies" in log.read_text()))
    assert process.poll() is None and process.stderr is not None
    process.send_signal(signal.SIGINT)
    said = iter(process.stderr.readline, "")
    assert any("Ctrl-C again stops at once" in line for line in said)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    runs.require_no_server()


@pytest.mark.slow
@pytest.mark.parametrize("distributed", [[], ["distributed=zero1", "launch.processes=2"]], ids=["one", "two"])
def test_a_server_that_never_answers_is_one_line(runs: Runs, distributed: list[str]) -> None:
    code, _, err = runs.end("train.max_steps=2", "generation.vllm.request_timeout_s=2", *distributed, fake="hangs")
    assert code == 2 and "Traceback" not in err, err
    assert "that the run started has not answered v1/completions in 2 s (generation.vllm.request_timeout_s)" in err
    assert "vllm.txt" in err
    runs.require_no_server()


def test_a_log_that_another_process_has_cleared_is_said(tmp_path: Path) -> None:
    gone = tmp_path / "vllm.txt"
    assert LaunchedVLLM(log=str(gone)).why() == f"its log, {gone}, is gone with the run's folder"


def test_the_keys_say_what_goes_with_what() -> None:
    vllm = GenerationConfig(engine=Generation.vllm)
    one = LaunchConfig(vllm=1)
    require_launch(vllm, one, num_nodes=1)
    require_launch(replace(vllm, vllm=VLLMConfig(transfer=VLLMTransfer.nccl)), one, num_nodes=1)
    require_launch(replace(vllm, vllm=NCCL_ASLEEP), LaunchConfig(), num_nodes=1)  # on GPUs of its own
    for generation, launch, nodes, rule in (
        (GenerationConfig(), one, 1, r"^launch\.vllm needs generation\.engine=vllm, got 1$"),
        (replace(vllm, vllm=VLLMConfig(python="p")), LaunchConfig(), 1, r"^generation\.vllm\.python goes with launch"),
        (replace(vllm, vllm=VLLMConfig(flags=["--x"])), LaunchConfig(), 1, r"^generation\.vllm\.flags goes with"),
        (replace(vllm, vllm=VLLMConfig(host="a", folder="f")), one, 1, r"^generation\.vllm\.host must be this machine"),
        (replace(vllm, vllm=NCCL_ASLEEP), one, 1, r"^generation\.vllm\.transfer must be files with launch.vllm and s"),
        (vllm, one, 2, r"^launch\.vllm must be 0 with cluster\.nodes > 1: start the server apart"),
    ):
        with pytest.raises(ConfigError, match=rule):
            require_launch(generation, launch, num_nodes=nodes)
    with pytest.raises(ConfigError, match=r"^launch\.vllm must be >= 0, got -1"):
        LaunchConfig(vllm=-1)
    with pytest.raises(
        ConfigError, match=r"^generation\.vllm\.flags must not hold what the run gives .*'--dtype=half'"
    ):
        VLLMConfig(flags=["--dtype=half"])
    with pytest.raises(ConfigError, match=r"^launch\.vllm must be 0 for an evaluation that draws no replies"):
        EvaluateConfig(reward="r", launch=one, generation=vllm)


def test_on_gpus_it_is_one_server_of_all_that_it_is_given(tmp_path: Path) -> None:
    asked = Asked(tmp_path, tmp_path, trusted=True, dtype="bfloat16", longest=768, gpus=["6", "7"])
    config = VLLMConfig(flags=["--gpu-memory-utilization=0.8"])
    given = words(config, asked, 8001)
    assert given[:3] == [sys.executable, "-m", "vllm.entrypoints.openai.api_server"]
    assert given[given.index("--tensor-parallel-size") + 1] == "2" and given[-1] == "--gpu-memory-utilization=0.8"
    assert "--trust-remote-code" in given and "--enforce-eager" not in given and "--hf-overrides" not in given
    on_a_cpu = words(config, replace(asked, gpus=()), 8001)
    assert {"--enforce-eager", "--hf-overrides", "--no-enable-chunked-prefill"} <= set(on_a_cpu)
    assert "--no-enable-chunked-prefill" not in given
    scaled = replace(asked, config={"rope_parameters": {"rope_type": "yarn", "factor": 4.0}})
    for gpus, more in ((["6"], {}), ([], {"tie_word_embeddings": False})):
        flags = words(config, replace(scaled, gpus=gpus), 8001)
        assert flags.count("--hf-overrides") == 1
        assert json.loads(flags[flags.index("--hf-overrides") + 1]) == {**scaled.config, **more}
    assert "--weight-transfer-config" not in given
    over_nccl = replace(config, transfer=VLLMTransfer.nccl, group_port=5)
    flags = words(over_nccl, asked, 8001)
    assert flags[flags.index("--weight-transfer-config") + 1] == '{"backend": "nccl"}'
    told = at(over_nccl, 8001, tmp_path, 0)
    assert (told.transfer, told.group_port, told.at()) == (VLLMTransfer.nccl, 5, "127.0.0.1:8001")
    assert "--enable-sleep-mode" not in given
    assert "--enable-sleep-mode" in words(replace(config, sleep=True), asked, 8001)
    own = {"CUDA_VISIBLE_DEVICES": "4,5,6,7", "PYTORCH_ALLOC_CONF": "x", "PATH": "p", "PYTHONPATH": "here"}
    found = environment(config, asked, own)
    assert found["CUDA_VISIBLE_DEVICES"] == "6,7" and "PYTORCH_ALLOC_CONF" not in found and found["PATH"] == "p"
    assert found["PYTHONPATH"] == "here" and "VLLM_CPU_OMP_THREADS_BIND" not in found
    on_cpu = environment(replace(config, python="/p"), replace(asked, gpus=[]), own)
    assert "PYTHONPATH" not in on_cpu and on_cpu["VLLM_CPU_OMP_THREADS_BIND"] == "nobind"
    assert on_cpu["VLLM_CPU_KVCACHE_SPACE"] == "1"
    own |= {"VLLM_CPU_KVCACHE_SPACE": "4"}
    assert environment(config, replace(asked, gpus=[]), own)["VLLM_CPU_KVCACHE_SPACE"] == "4"


def test_of_its_log_the_cause_is_told(tmp_path: Path) -> None:
    """As vLLM writes it: a worker's error, with lines before it that are none, and its front end's behind it."""
    log = tmp_path / "vllm.txt"
    log.write_text(
        "(APIServer pid=1) WARNING 11-28 [utils.py:255] this can cause errors like `OSError: [Errno 24] Too many`\n"
        "(Worker pid=2) ERROR 11-28 [executor.py:953] Traceback (most recent call last):\n"
        "(Worker pid=2) ERROR 11-28 [executor.py:953] ValueError: Available memory is less than desired\n"
        "RuntimeError: Engine core initialization failed. See root cause above.\n"
    )
    assert LaunchedVLLM(log=str(log)).why() == f"ValueError: Available memory is less than desired ({log})"
    log.write_text("nothing\n")
    assert LaunchedVLLM(log=str(log)).why() == f"its log is {log}"


def test_a_verb_that_starts_none_refuses_it(runs: Runs) -> None:
    words = ["chat", "policy", "generation.engine=vllm", "launch.vllm=1"]
    ended = subprocess.run(
        [sys.executable, "-m", "alignment", *words], cwd=runs.folder, input="", capture_output=True, text=True
    )
    assert (
        ended.returncode == 2 and "launch.vllm must be 0 for `alignment chat`, which starts no server" in ended.stderr
    )
