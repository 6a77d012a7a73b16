"""Runs on names of the hub by several processes, and on machines that have yet to fetch what a run was made with."""

import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

from huggingface_hub import constants
from omegaconf import OmegaConf

from alignment.config.folders import find_model
from alignment.config.hub import Kind, located
from alignment.hub.fetch import fetch_base
from tests.cli.conftest import Ended
from tests.hub.adapters import make_adapter
from tests.hub.stand_in import StandIn

DPO = (
    *("tiny_dpo", "model=pretrained", "model.path=org/tiny", "data=native", "data.train.path=org/pairs:train_prefs"),
    *("batch.size=4", "train.max_steps=2", "output_dir=out"),
)
TWO = ("distributed=zero1", "launch.processes=2", "distributed.device=cpu")


def test_a_run_that_is_written_down_is_fetched_where_its_files_are_not(
    hub: StandIn,
    alignment: Callable[..., Ended],
    machine: Callable[[str], None],
    model_folder: Path,
    pairs_repo: str,
) -> None:
    commit = hub.commit("org/tiny", model_folder)
    assert alignment("run", *DPO).code == 0
    hub.commit("org/tiny", {"generation_config.json": '{"eos_token_id": 2}'})
    for name in ("b", "c"):
        machine(name)
        rerun = alignment("run", "out/config.yaml", *([f"output_dir={name}"] if name == "c" else []))
        assert (rerun.code, rerun.err) == (0, [])
        assert ("finished already" in rerun.out) is (name == "b")
        assert (located(f"org/tiny@{commit}") / "config.json").is_file()
    assert OmegaConf.load("c/config.yaml").model.path == f"org/tiny@{commit}"
    machine("d")
    assert alignment("check", "out/config.yaml").code in (0, 1)
    for blob in Path(constants.HF_HUB_CACHE).rglob("blobs/*"):
        blob.unlink()  # so that links lead nowhere
    assert "finished already" in alignment("run", "out/config.yaml").out


def test_what_was_fetched_is_judged_before_a_job_is_written(
    hub: StandIn, alignment: Callable[..., Ended], pairs_repo: str
) -> None:
    hub.commit("org/reward", {"config.json": json.dumps({"architectures": ["LlamaForSequenceClassification"]})})
    words = [*DPO, "model.path=org/reward", "cluster=slurm", "--dry-run"]
    ended = alignment("submit", *words)
    line = "alignment: tiny_dpo: model.path must be a language model, got a reward model"
    assert ended.code == 2 and len(ended.err) == 1 and ended.err[0].startswith(line)


def test_of_two_processes_the_hub_is_asked_by_one(
    hub: StandIn, alignment: Callable[..., Ended], machine: Callable[[str], None], model_folder: Path, pairs_repo: str
) -> None:
    commit = hub.commit("org/tiny", model_folder)
    ended = alignment("run", *DPO, *TWO)
    assert (ended.code, ended.err) == (0, [])
    assert hub.asked.count("GET /api/models/org/tiny") == hub.asked.count("GET /api/datasets/org/pairs") == 1
    assert hub.times_asked(f"GET /org/tiny/resolve/{commit}/model.safetensors") == 1
    machine("b")
    rerun = alignment("run", "out/config.yaml", "output_dir=again")
    assert (rerun.code, rerun.err) == (0, [])
    assert OmegaConf.load("again/config.yaml").model.path == f"org/tiny@{commit}"


def test_two_machines_take_the_commits_of_the_first(
    hub: StandIn, machine: Callable[[str], None], model_folder: Path, pairs_repo: str, tmp_path: Path
) -> None:
    """An adapter's base too, which the second has fetched before it moved."""
    stale = hub.commit("org/tiny", model_folder)
    adapter = make_adapter(model_folder, tmp_path / "adapter")
    machine("b")
    assert fetch_base(adapter, "model.path") == stale
    newer = hub.commit("org/tiny", {"generation_config.json": '{"eos_token_id": 2}'})
    hub.asked.clear()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    words = [*DPO, f"model.path={adapter}", "distributed=zero1", "distributed.device=cpu"]
    started = []
    for rank, name in enumerate("ab"):
        machine(name)
        own = {"RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1"}
        process = subprocess.Popen(
            [sys.executable, "-m", "alignment", "run", *words],
            cwd=tmp_path,
            env={**os.environ, **own, "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1"},
            stderr=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            text=True,
        )
        started.append(process)
    said = [process.communicate(timeout=300)[1] for process in started]
    assert [process.returncode for process in started] == [0, 0], said
    assert hub.asked.count("GET /api/models/org/tiny") == 1
    machine("b")
    assert find_model(str(adapter), "model.path").path == located(f"org/tiny@{newer}")
    assert (located(f"org/pairs:train_prefs@{pairs_repo}", Kind.data)).is_dir()
