"""Names of the hub where others start the processes: torchrun, and jobs on nodes that may have no network."""

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from alignment.config.hub import Kind, located
from tests.cli.conftest import Ended
from tests.cli.conftest import slurm as slurm
from tests.hub.adapters import make_adapter
from tests.hub.stand_in import StandIn

DPO = (
    *("tiny_dpo", "model=pretrained", "data=native", "data.train.path=org/pairs:train_prefs", "batch.size=4"),
    *("train.max_steps=1", "output_dir=out", "distributed=zero1", "distributed.device=cpu"),
)
TORCHRUN = ("torch.distributed.run", "--standalone", "--nproc-per-node=2", "-m")
PIPE = """# An adapter of the user's, and what is made of it
defaults: [{task: pipeline}, _self_]
output_dir: out
inputs: {adapter: ADAPTER, pairs: "org/pairs:train_prefs"}
stages:
  - name: first
    recipe: tiny_dpo
    set: {model: pretrained, model.path: "@adapter", data: native, data.train.path: "@pairs", train.max_steps: 1,
      batch.size: 4}
  - name: second
    recipe: tiny_dpo
    set: {model: pretrained, model.path: "@first/model", reference.path: org/tiny, data: native,
      data.train.path: "@pairs", train.max_steps: 1, batch.size: 4}
"""
NEWER = {"generation_config.json": '{"eos_token_id": 2}'}


def under_torchrun(*words: str) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", *TORCHRUN, "alignment", "run", *words]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, env=env, capture_output=True, text=True, timeout=300, check=False)


def test_of_the_processes_of_torchrun_one_asks_and_all_read_its_commits(
    hub: StandIn,
    alignment: Callable[..., Ended],
    model_folder: Path,
    pairs_repo: str,
    tmp_path: Path,
) -> None:
    """`alignment`: in the folder of the test."""
    commit = hub.commit("org/tiny", model_folder)
    path = f"model.path={make_adapter(model_folder, tmp_path / 'adapter')}"
    ended = under_torchrun(*DPO, path)
    assert ended.returncode == 0, ended.stderr
    assert hub.asked.count("GET /api/models/org/tiny") == hub.asked.count("GET /api/datasets/org/pairs") == 1
    written = OmegaConf.load("out/config.yaml")
    assert written.commits == {"org/tiny": commit}
    assert written.data.train.path == f"org/pairs:train_prefs@{pairs_repo}"
    hub.commit("org/tiny", NEWER)
    rerun = under_torchrun(*DPO, path)
    assert rerun.returncode == 0 and "finished already" in rerun.stdout, rerun.stderr
    assert OmegaConf.load("out/config.yaml").commits == {"org/tiny": commit}


def test_a_pipeline_under_torchrun_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    ended = under_torchrun("tiny_pipeline", "output_dir=out", "distributed=zero1")
    line = "a pipeline starts the processes of its stages itself (launch.processes), so no launcher must be around it"
    said = f"alignment: tiny_pipeline: {line}, got '2 processes'"
    assert said in ended.stderr.splitlines() and "exitcode  : 2 " in ended.stderr
    assert not Path("out").exists()


def test_the_jobs_of_a_pipeline_read_the_commits_of_its_submission(
    hub: StandIn,
    alignment: Callable[..., Ended],
    again: Callable[..., None],
    machine: Callable[[str], None],
    own: Callable[[str, str], str],
    slurm: Path,
    model_folder: Path,
    pairs_repo: str,
    tmp_path: Path,
) -> None:
    commit = hub.commit("org/tiny", model_folder)
    recipe = own("pipe", PIPE.replace("ADAPTER", str(make_adapter(model_folder, tmp_path / "adapter"))))
    submitted = alignment("submit", recipe, "cluster=slurm")
    assert (submitted.code, submitted.err) == (0, [])
    assert OmegaConf.load("out/config.yaml").commits == {"org/tiny": commit, "datasets/org/pairs": pairs_repo}
    hub.commit("org/tiny", NEWER)
    for node, stage in {"b": "first", "c": "second"}.items():
        machine(node)
        job = alignment("run", f"out/{stage}/config.yaml")
        assert (job.code, job.err) == (0, [])
    assert OmegaConf.load("out/first/config.yaml").commits == {"org/tiny": commit}
    assert OmegaConf.load("out/second/config.yaml").reference.path == f"org/tiny@{commit}"
    machine("b")
    resubmitted = alignment("submit", recipe, "cluster=slurm")
    assert resubmitted.code == 0 and resubmitted.out.count("finished already") == 2


def test_a_node_that_is_offline_reads_what_its_cache_has_and_says_how_to_fetch_what_it_has_not(
    hub: StandIn,
    alignment: Callable[..., Ended],
    again: Callable[..., None],
    machine: Callable[[str], None],
    own: Callable[[str, str], str],
    slurm: Path,
    model_folder: Path,
    pairs_repo: str,
    tmp_path: Path,
) -> None:
    commit = hub.commit("org/tiny", model_folder)
    recipe = own("pipe", PIPE.replace("ADAPTER", str(make_adapter(model_folder, tmp_path / "adapter"))))
    assert alignment("submit", recipe, "cluster=slurm").code == 0
    hub.commit("org/tiny", NEWER)
    again(offline=True)
    has_it = alignment("run", "out/first/config.yaml", "output_dir=here")
    assert (has_it.code, has_it.err) == (0, [])

    machine("node")
    told = list[str]()
    hf = str(Path(sys.executable).with_name("hf"))
    for _ in range(2):
        again(offline=True)
        lacks = alignment("run", "out/first/config.yaml")
        assert lacks.code == 2 and len(lacks.err) == 1
        assert "offline, as HF_HUB_OFFLINE says, and org/" in lacks.err[0]
        told += re.findall(r"`hf (download [^`]*)`, given where there is a network", lacks.err[0])
        subprocess.run([hf, *shlex.split(told[-1])], check=True, capture_output=True)
    assert sorted(told) == [
        f"download org/pairs --repo-type dataset --revision {pairs_repo}",
        f"download org/tiny --revision {commit}",
    ]
    again(offline=True)
    ended = alignment("run", "out/first/config.yaml")
    assert (ended.code, ended.err) == (0, [])
    assert located(f"org/pairs:train_prefs@{pairs_repo}", Kind.data).is_dir()
