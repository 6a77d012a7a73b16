"""Replies, training and evaluation through a real vLLM server: what no stand-in can show."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import torch
from transformers import AutoTokenizer

from alignment.config.distributed import DistributedConfig
from alignment.config.generation import Generation, GenerationConfig, VLLMConfig
from alignment.config.model import ModelConfig
from alignment.distributed.placement import WHOLE
from alignment.generation.generate import TransformersGenerator
from alignment.generation.vllm import build_vllm
from alignment.models.heads import LanguageModel
from alignment.models.load import load_language_model
from tests.vllm.conftest import PYTHON, ROOT, Served, run, serving

pytestmark = pytest.mark.vllm
TWO = ["distributed=zero3", "launch.processes=2"]
SCALINGS = {
    "linear": [],
    "yarn": ["model.rope.attention_factor=1.2", "model.rope.beta_fast=16"],
    "llama3": ["model.rope.high_freq_factor=8"],
}
FEW = ["log.samples=0", "log.progress=false", "batch.size=16", "data.eval.limit=50"]


def through(server: Served, *, engine: str = "vllm") -> list[str]:
    """A policy that is replied with by the server."""
    own = ["model=pretrained", f"model.path={server.policy}"]
    port = [f"generation.vllm.port={server.port}"] if engine == "vllm" else []
    return [*own, f"generation.engine={engine}", *port]


def other_than(policy: Path) -> LanguageModel:
    """With weights that reply otherwise."""
    model = load_language_model(ModelConfig(path=str(policy)), AutoTokenizer.from_pretrained(policy), WHOLE)
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * parameter.std() * torch.randn_like(parameter))
    return model


def rows(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_greedy_replies_are_ours_after_each_push(server: Served) -> None:
    """The weights of the moment, each time: a server that kept some of before would reply otherwise."""
    tokenizer = AutoTokenizer.from_pretrained(server.policy)
    model = load_language_model(ModelConfig(path=str(server.policy)), tokenizer, WHOLE)
    vllm = VLLMConfig(port=server.port)
    config = GenerationConfig(max_new_tokens=16, top_k=1, engine=Generation.vllm, vllm=vllm)
    theirs = build_vllm(model, tokenizer, config, DistributedConfig())
    ours = TransformersGenerator(model, tokenizer, GenerationConfig(max_new_tokens=16, top_k=1))
    texts = ("What does a cow say?", "Hello", "a")
    prompts = [np.array(tokenizer(text)["input_ids"], dtype=np.int32) for text in texts]
    seen = []
    torch.manual_seed(0)
    for push in range(3):
        generated = [each.generate(prompts, keys=[0, 1, 2], replies=1, seed=push) for each in (theirs, ours)]
        drawn, own = ([reply.ids.tolist() for (reply,) in each.replies] for each in generated)
        assert drawn == own
        seen.append(drawn)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.3 * parameter.std() * torch.randn_like(parameter))
        model.changed()
    assert seen[0] != seen[1] != seen[2]


def test_a_server_that_was_started_again_is_given_the_weights_again(policy: Path, tmp_path: Path) -> None:
    """It has come up with those of its folder, and the policy has others."""
    tokenizer = AutoTokenizer.from_pretrained(policy)
    model = other_than(policy)
    ours = TransformersGenerator(model, tokenizer, GenerationConfig(max_new_tokens=16, top_k=1))
    prompts = [np.array(tokenizer(text)["input_ids"], dtype=np.int32) for text in ("What does a cow say?", "a")]
    own = [reply.ids.tolist() for (reply,) in ours.generate(prompts, keys=[0, 1], replies=1, seed=0).replies]
    port, theirs = 0, None
    for start in range(2):
        with serving(policy, tmp_path / f"{start}.txt", port=port) as served:
            port = served.port
            config = GenerationConfig(
                max_new_tokens=16, top_k=1, engine=Generation.vllm, vllm=VLLMConfig(port=served.port)
            )
            theirs = theirs or build_vllm(model, tokenizer, config, DistributedConfig())
            drawn = theirs.generate(prompts, keys=[0, 1], replies=1, seed=0)
            assert [reply.ids.tolist() for (reply,) in drawn.replies] == own


@pytest.mark.parametrize(
    ("task", "more"),
    [
        ("ppo", []),
        ("ppo", TWO),
        ("ppo", ["model.lora.rank=4"]),
        ("online_dpo", []),
        ("online_dpo", [*TWO, "model.lora.rank=4"]),
    ],
    ids=["ppo", "ppo, zero3 of two", "ppo, lora", "online dpo", "online dpo, lora, zero3 of two"],
)
def test_it_learns_from_what_it_would_have_drawn_itself(
    server: Served, tmp_path: Path, task: str, more: list[str]
) -> None:
    before = set(Path("/dev/shm").glob("weights-*"))
    steps = ["train.max_steps=3", "train.eval_every=0", "output_dir=run", "train.learning_rate=1e-3", *more]
    ended = run("run", f"tiny_{task}", *through(server), *FEW, *steps, folder=tmp_path)
    assert ended.returncode == 0, ended.stderr
    for row in rows(tmp_path / "run"):
        assert 0 < row["generation/mismatch_max"] < 1e-3 and row["generation/mismatch_kl"] < 1e-6
    assert set(Path("/dev/shm").glob("weights-*")) <= before


@pytest.mark.parametrize("task", ["ppo", "grpo", "online_dpo"])
def test_it_gains_as_with_our_own_engine(server: Served, tmp_path: Path, task: str) -> None:
    gains = {}
    size = "batch.size=8" if task == "grpo" else "batch.size=32"
    for engine in ("vllm", "transformers"):
        steps = ["train.max_steps=20", "train.eval_every=20", "train.eval_on_start=true", f"output_dir={engine}"]
        words = [*through(server, engine=engine), *FEW, size, "data.eval.limit=200", *steps]
        ended = run("run", f"tiny_{task}", *words, folder=tmp_path)
        assert ended.returncode == 0, ended.stderr
        found = [row["eval/gold"] for row in rows(tmp_path / engine) if "eval/gold" in row]
        gains[engine] = found[-1] - found[0]
    assert gains["transformers"] > 0.05 and gains["vllm"] > 0.5 * gains["transformers"], gains


def test_groups_with_importance_weights(server: Served, tmp_path: Path) -> None:
    """Two engines that agree have weights of 1: the run is that without them."""
    found = []
    for name, more in (("plain", []), ("weighed", ["ppo.importance_clip=2"])):
        steps = ["train.max_steps=2", "train.eval_every=0", f"output_dir={name}"]
        ended = run("run", "tiny_grpo", *through(server), *FEW, "batch.size=4", *steps, *more, folder=tmp_path)
        assert ended.returncode == 0, ended.stderr
        found.append([row["loss"] for row in rows(tmp_path / name)])
    assert found[0] == pytest.approx(found[1], abs=1e-4)


def test_rejection_sampling_picks_as_with_our_own_engine(server: Served, tmp_path: Path) -> None:
    """At each temperature: means of 400 replies that differ by chance alone."""
    found = {}
    for engine in ("vllm", "transformers"):
        more = ["data.train.limit=100", "num_samples=8", "temperatures=[0.5,1.0]", f"output_dir={engine}"]
        ended = run("run", "tiny_rejection", *through(server, engine=engine), *more, "log.samples=0", folder=tmp_path)
        assert ended.returncode == 0, ended.stderr
        (found[engine],) = rows(tmp_path / engine)
    row, ours = found["vllm"], found["transformers"]
    assert row["reward/best"] > row["reward"] > row["reward/worst"]
    for name in ("reward/best", "reward/worst", "reward/temperature_0.5", "reward/temperature_1"):
        assert row[name] == pytest.approx(ours[name], abs=0.15), name


def test_an_evaluation_has_the_replies_of_our_own_engine(server: Served, tmp_path: Path) -> None:
    """Of two models, one after the other, to each of which the weights are pushed."""
    other_than(server.policy).hf.save_pretrained(tmp_path / "other")
    AutoTokenizer.from_pretrained(server.policy).save_pretrained(tmp_path / "other")
    found = []
    for engine in ("vllm", "transformers"):
        port = [f"generation.vllm.port={server.port}"] if engine == "vllm" else []
        words = [f"runs={{a: {server.policy}, b: other}}", "generation.top_k=1", f"generation.engine={engine}", *port]
        more = ["data.eval.limit=40", "log.samples=40", "log.progress=false", f"output_dir={engine}"]
        ended = run("run", "tiny_evaluate", *words, *more, folder=tmp_path)
        assert ended.returncode == 0, ended.stderr
        shown = [json.loads(line) for line in (tmp_path / engine / "samples.jsonl").read_text().splitlines()]
        found.append([(row["method"], row["reply"], row["gold"]) for row in shown])
    assert found[0] == found[1] and len(found[0]) == 80
    assert [each[1:] for each in found[0][:40]] != [each[1:] for each in found[0][40:]]


def test_a_run_starts_a_server_of_its_own_for_a_model_with_a_tied_head(tmp_path: Path) -> None:
    """In two processes that shard the weights, from an adapter's folder: the server has nothing of it but the shape."""
    few = ["train.max_steps=5", "data.train.limit=100", "data.eval.limit=8", "log.progress=false"]
    for name, more in (("sft", []), ("lora", ["model=pretrained", "model.path=sft", "model.lora.rank=4"])):
        ended = run("run", "tiny_sft", *few, *more, f"output_dir={name}", folder=tmp_path)
        assert ended.returncode == 0, ended.stderr
    own = ["generation.engine=vllm", "launch.vllm=1", f"generation.vllm.python={PYTHON}", "model=pretrained"]
    two = ["distributed=zero3", "launch.processes=2", "model.path=lora/model/adapter", "train.max_steps=2"]
    ended = run("run", "tiny_ppo", *own, *two, *FEW, "train.eval_every=0", "output_dir=run", folder=tmp_path)
    assert ended.returncode == 0, ended.stderr
    for row in rows(tmp_path / "run"):
        assert 0 < row["generation/mismatch_max"] < 1e-3 and row["generation/mismatch_kl"] < 1e-6
    assert "vLLM" in ended.stdout and (tmp_path / "run" / "logs" / "vllm.txt").stat().st_size > 0
    left = [each for each in psutil.process_iter(["cmdline"]) if str(tmp_path) in " ".join(each.info["cmdline"] or [])]
    assert not left


@pytest.mark.parametrize("scaling", SCALINGS)
def test_a_server_of_its_own_turns_positions_as_the_policy_does(policy: Path, tmp_path: Path, scaling: str) -> None:
    """Scaled 128 times, as if it had been trained on 32 positions, beyond which most replies go."""
    own = ["generation.engine=vllm", "launch.vllm=1", f"generation.vllm.python={PYTHON}", "model=pretrained"]
    rope = [
        f"model.rope.rope_type={scaling}",
        "model.rope.factor=128",
        "model.rope.original_max_position_embeddings=32",
    ]
    words = [*own, f"model.path={policy}", *rope, *SCALINGS[scaling], *FEW, "train.max_steps=2", "train.eval_every=0"]
    ended = run("run", "tiny_ppo", *words, "output_dir=run", folder=tmp_path)
    assert ended.returncode == 0, ended.stderr
    for row in rows(tmp_path / "run"):
        assert 0 < row["generation/mismatch_max"] < 1e-3 and row["generation/mismatch_kl"] < 1e-6


def test_a_server_that_dies_ends_the_run_in_one_line_and_the_run_goes_on(policy: Path, tmp_path: Path) -> None:
    words = ["log.samples=0", "batch.size=8", "train.eval_every=0", "checkpoint.every=1", "output_dir=run"]
    words += ["train.max_steps=12"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    with serving(policy, tmp_path / "log.txt") as served:
        command = [sys.executable, "-m", "alignment", "run", "tiny_ppo", *through(served), *words]
        training = subprocess.Popen(command, cwd=tmp_path, env=environment, stderr=subprocess.PIPE, text=True)
        until = time.monotonic() + 300
        while not list((tmp_path / "run" / "checkpoints").glob("step-*")) and time.monotonic() < until:
            time.sleep(0.2)
        served.kill()
        _, said = training.communicate(timeout=300)
    assert training.returncode == 2 and "does not answer any more" in said and "Traceback" not in said, said
    with serving(policy, tmp_path / "log.txt") as served:
        ended = run("run", "tiny_ppo", *through(served), *words, folder=tmp_path)
    assert ended.returncode == 0 and "step 12 of 12" in ended.stdout, ended.stderr
    assert [row["step"] for row in rows(tmp_path / "run")] == list(range(1, 13))
