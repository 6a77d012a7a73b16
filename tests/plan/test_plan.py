"""The verb `plan`: what it says of a run, on this machine and on others, without a weight."""

import json
import re
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from alignment.cli.main import main
from alignment.cli.plan import SHAPES, composed
from alignment.config.distributed import DistributedConfig, Offload, Precision
from alignment.config.errors import ConfigError
from alignment.config.model import LoraConfig
from alignment.distributed.product_rate import product_rate
from alignment.models.held import held_of
from alignment.plan import work
from alignment.plan.buffers import casts
from alignment.plan.estimate import phases_of, plan_of
from alignment.plan.estimate import planned as config_to_plan
from alignment.plan.hardware import named
from alignment.plan.host import host_of
from alignment.plan.page import another_number_of, unused_of
from alignment.plan.passes import pass_tokens
from alignment.plan.rate import rate_line
from alignment.plan.roles import Counts

COUNTS = Counts()  # of shapes that are shipped, each counted once


def planned(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *words: str) -> str:
    monkeypatch.setattr(sys, "argv", ["alignment", "plan", *words])
    main()
    return capsys.readouterr().out


def test_a_run_here(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    said = planned(monkeypatch, capsys, "tiny_sft", "batch.max_tokens=1024")
    assert "tiny_sft on 1 process on this machine: without ZeRO, float32, batch.max_tokens=1024\n" in said
    assert "\nfits: " in said and "at the most, learning, model.init" in said
    assert "a step of the longest rows: " in said


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (
            ["tiny_sft"],
            "a pass has 128 tokens all the same, which go into it together: a row; fewer by a lower data.max",
        ),
        (
            ["tiny_dpo"],
            "a pass has 255 tokens all the same, which go into it together: a pair; fewer by a lower data.m",
        ),
        (
            ["tiny_grpo", "num_samples=4"],
            ": a prompt and its replies (4); fewer by a lower num_samples, generation.max_",
        ),
    ],
)
def test_a_row_that_is_longer_than_a_pass_is_told(
    words: list[str], line: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    limits = ["data.max_length=128", "data.max_prompt_length=64"]
    assert line in planned(monkeypatch, capsys, *words, *limits, "batch.max_tokens=32")
    assert "all the same" not in planned(monkeypatch, capsys, *words, *limits, "batch.max_tokens=4096")


def test_a_step_takes_as_long_as_its_products_at_the_rate_of_this_machine(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """They are timed as wide as the model, in its precision; of a card that is not here they are not."""
    timed = []

    def rate(device: torch.device, dtype: torch.dtype, rows: int, width: int, *, processes: int) -> float:
        timed.append((device.type, dtype, rows, width, processes))
        return 1e6

    monkeypatch.setattr(work, "product_rate", rate)
    words = ["tiny_sft", "batch.max_tokens=1024", "distributed.device=cpu"]
    said = planned(monkeypatch, capsys, *words)
    found = re.search(r"tokens, (\S+) FLOPs, (\S+) s at the 1e\+06 FLOPs a second that products were timed at", said)
    assert found is not None and float(found[2]) == pytest.approx(float(found[1]) / 1e6, rel=0.05)
    assert float(found[2]) > 1000 and found[2].isdigit()  # no 1.01e+04 s
    assert timed == [("cpu", torch.float32, 1024, 128, 1)]
    said = planned(monkeypatch, capsys, *words, "--for", "1xA100-80GB")
    assert "were timed" not in said and len(timed) == 1
    assert "s at 40% of the peak" in said
    assert "GB while 1 process reads its models" in said
    assert "distributed.device=cpu is left aside: the plan is for 1xA100-80GB (without --for, for this machine)" in said
    said = planned(monkeypatch, capsys, *words, "--for", "1x24GB")
    assert "FLOPs, no seconds: of this card no peak is known (--for 8xA100-80GB names one)" in said


def test_products_are_timed() -> None:
    assert product_rate(torch.device("cpu"), torch.float32, 32, 32) > 0


def test_heads_that_cannot_be_shared_out_are_refused() -> None:
    """Four of them among eight; and rows that are long are shared by as many as may."""
    words = ["distributed=zero3", "distributed.sequence_parallel={}", "batch.size=8"]
    four, eight = ([word.format(number) for word in words] for number in (4, 8))
    with pytest.raises(ConfigError, match="must divide the number of attention heads"):
        plan_of(config_to_plan(composed("tiny_dpo", eight, [], None)), named("8x80GB"), COUNTS)
    assert plan_of(config_to_plan(composed("tiny_dpo", four, [], None)), named("8x80GB"), COUNTS).fits


def test_a_folder_with_a_config_alone_is_a_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Weights of 4 bytes, gradients, DeepSpeed's copy and two moments, each a quarter under ZeRO 3 on four GPUs."""
    shape = {"model_type": "llama", "hidden_size": 64, "intermediate_size": 160, "num_hidden_layers": 6}
    (tmp_path / "config.json").write_text(json.dumps(shape | {"num_attention_heads": 4, "vocab_size": 500}))
    words = ["dpo", f"model.path={tmp_path}", "distributed=zero3", "--for", "4xA100-80GB"]
    said = planned(monkeypatch, capsys, *words)
    with torch.device("meta"):
        hf = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(tmp_path))
    number = sum(p.numel() for p in hf.parameters())
    row = next(line for line in said.splitlines() if line.startswith("  model.path"))
    assert row.split()[-5:] == [f"{number / 1e9:.2g}"] * 3 + [f"{2 * number / 1e9:.2g}", "-"]
    assert "dpo on 4 x A100-80GB: distributed.zero=3, bfloat16, batch.max_tokens=16384 (as chosen)\n" in said


@pytest.mark.parametrize(
    ("name", "billions"),
    [
        *(("llama-2-7b", 6.74), ("llama-2-13b", 13.0), ("llama-2-70b", 69.0), ("llama-3-8b", 8.03)),
        *(("llama-3-70b", 70.6), ("mistral-7b", 7.25), ("qwen2.5-7b", 7.62), ("qwen3-8b", 8.19)),
        *(("gemma-2-9b", 9.24), ("gemma-3-1b", 1.0), ("smollm2-1.7b", 1.71)),
    ],
)  # of the models' cards
def test_the_shapes_have_the_weights_of_their_models(name: str, billions: float) -> None:
    with torch.device("meta"):
        hf = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(SHAPES / name))
    assert sum(p.numel() for p in hf.parameters()) / 1e9 == pytest.approx(billions, rel=0.005)


def test_devices_have_names() -> None:
    found = named("64xH100-80GB")
    assert (found.processes, found.memory, found.local, found.flops) == (64, 80_000_000_000, 8, 989e12)
    assert named("1x24GB").flops is None
    for wrong, rule in (
        ("8xA100", r"--for must be a number of GPUs .*8xA100-80GB \(4090-24GB, A10-24GB, .*got '8xA100'"),
        ("8xB100-80GB", "--for must name a card of 4090-24GB, A10-24GB"),
    ):
        with pytest.raises(ConfigError, match=rule):
            named(wrong)


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (["tiny_dpo", "--for", "many"], "alignment: tiny_dpo: --for must be a number of GPUs and their memory"),
        (["dpo"], "dpo: --shape must name one of gemma-2-9b, .*, or model.path a model: the recipe leaves it to you"),
        (["dpo", "--shape", "llama-3-9b"], "--shape must be one of gemma-2-9b, .*got 'llama-3-9b'.*did you mean"),
        (["dpo", "--shape", "llama-3-8b", "loss.bta=1"], "bta"),
        (["dpo", "--shape", "llama-3-8b", "model.path=here"], "leave out one of the two, got model.path='here'"),
        (["tiny_dpo", "--mfu", "40"], r"--mfu must be in \(0, 1\], got 40"),
        (["tiny_pipeline"], "plan takes a run that trains a model or draws replies of one"),
        (["tiny_dpo", "--for", "3x24GB", "distributed=zero1"], "batch.size must be a multiple of the number of proc"),
        (
            ["tiny_dpo", "distributed=zero1", "distributed.sequence_parallel=2"],
            r"must divide .* processes \(1; .*got 2",
        ),
    ],
)
def test_a_mistake_is_one_line(
    words: list[str], line: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        planned(monkeypatch, capsys, *words)
    assert ended.value.code == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert re.search(line, said)


def test_what_is_offloaded_is_beside_the_gpu() -> None:
    """Under ZeRO 3 weights, gradients, masters and moments; beside a CPU there is nowhere else."""
    config = DistributedConfig(zero=3, offload_optimizer=Offload.cpu, offload_param=Offload.cpu)
    held = held_of(8.0, 0.0, config, 4, is_gpu=True)
    assert (held.on_device, held.in_cpu_memory) == (0, 5 * 2)
    assert held_of(8.0, 0.0, config, 4, is_gpu=False).on_device == 5 * 2
    second = replace(config, zero=2, offload_param=Offload.none)
    held = held_of(8.0, 0.0, second, 4, is_gpu=True)
    assert (held.on_device, held.in_cpu_memory) == (8 + 2, 3 * 2)


def test_autocast_s_copies_are_there_together_but_under_zero_3() -> None:
    assert [casts(16e9, 1e9, DistributedConfig(zero=zero)) for zero in (None, 0, 1, 2, 3)] == [16e9] * 4 + [0.5e9]
    assert casts(0.0, 1e9, DistributedConfig(zero=3)) == 0.0  # in float32


def test_in_float16_the_actor_s_gradients_wait_for_the_critic_s() -> None:
    """A byte for a byte: neither of PPO's two models steps before it is known whether the other can."""
    words, counts = ["distributed.precision=float16", "model.init.num_hidden_layers=1", "batch.max_tokens=64"], COUNTS
    plan = plan_of(config_to_plan(composed("tiny_ppo", words, [], None)), named("1x80GB"), counts)
    other = replace(plan.config, distributed=replace(plan.config.distributed, precision=Precision.bfloat16))
    tokens = [pass_tokens(other, each, 1, 64) for each in plan.roles]
    phases = plan.phases, phases_of(other, plan.roles, 1, tokens, counts)
    (of_actor, of_critic), (actor, critic) = (
        [phase.held for phase in each if phase.name.startswith("learning")] for each in phases
    )
    gradients = [each.held.gradients_at(Offload.none) for each in plan.roles if each.role.is_trained]
    assert (of_actor, of_critic) == (actor, critic + gradients[0]) and gradients[0] > 0


@pytest.mark.slow
def test_replies_are_drawn_once_the_policy_is_narrow(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """ZeRO 3 makes 4 bytes of each weight whole; keys and values come when those of the layers' products have 2."""
    said = planned(monkeypatch, capsys, "grpo", "--shape", "llama-3-8b", "--for", "8x80GB", "distributed=zero3")
    parts = {line.split(": ")[0].strip(): line for line in said.splitlines() if " gathered weights" in line}
    sizes = [
        float(parts[name].split(" gathered weights")[0].split()[-1]) * 1e9
        for name in ("gathering the weights that draw", "drawing replies")
    ]
    layers, ends = 32 * (4096 * (2 * 4096 + 2 * 1024) + 3 * 4096 * 14_336), 2 * 128_256 * 4096
    assert sizes == pytest.approx([4 * (layers + ends), 2 * layers + 4 * ends], rel=0.05)
    assert "keys and values" not in parts["gathering the weights that draw"]


@pytest.mark.parametrize(
    ("words", "wanted"),
    [
        (["--shape", "llama-3-8b", "distributed=zero2"], 8 * 128_256 * 4096 * 4),
        (["--shape", "llama-3-8b", "distributed=zero3"], 128_256 * 4096 * 4),  # the main process reads for all
        (["--shape", "llama-2-13b", "distributed=zero1"], 8 * 4 * (4 * 5120**2 + 3 * 5120 * 13_824 + 2 * 5120)),
    ],
)
def test_the_host_has_a_weight_for_each_process_that_reads(
    words: list[str], wanted: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The embeddings, in float32, or at the most a layer: of 8B weights in 8 processes 17 GB, not 256."""
    said = planned(monkeypatch, capsys, "dpo", *words, "--for", "8x80GB")
    found = re.search(r"([0-9.]+) GB while 8 processes read their models", said)
    assert found is not None and float(found[1]) * 1e9 == pytest.approx(wanted, rel=0.05)


def test_pages_are_of_the_machine_s_memory_but_for_those_of_one_weight() -> None:
    """Of all weights of a Llama of 8 billion but its norms: two bytes each, of the embeddings eight, which are most."""
    words = ["batch.max_tokens=1024", "model.gradient_checkpointing=true"]
    of = {}
    for name in ("adamw_8bit", "paged_adamw_8bit"):
        config = composed("sft", [*words, f"train.optimizer={name}"], [], "llama-3-8b")
        of[name] = plan_of(config_to_plan(config), named("1x80GB"), COUNTS)
    plain, paged = (of[name].roles[0].held for name in of)
    embeddings, norms = 128_256 * 4096, 65 * 4096
    matrices = 8_030_261_248 - embeddings - norms
    assert paged.pages == 2 * matrices + 8 * embeddings and paged.page == 8 * embeddings
    assert paged.in_cpu_memory == paged.pages and plain.in_cpu_memory == 0
    assert plain.on_device - paged.on_device == paged.pages
    assert paged.moments == pytest.approx(2 * norms + 8 * (matrices + norms) / 256)  # of small weights; blocks' scales
    phase = next(each for each in of["paged_adamw_8bit"].phases if each.name == "an update, model.path")
    assert phase.parts == {"pages of the largest weight": paged.page} and phase.held == pytest.approx(paged.on_device)


@pytest.mark.parametrize(("name", "share"), [("adamw", 2), ("lion", 1), ("sgd", 0)])
def test_the_optimizer_s_states_are_its_own(
    name: str, share: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of the actor and of the critic; on disk beside the weights."""
    said = planned(monkeypatch, capsys, "tiny_ppo", f"train.optimizer={name}", "batch.max_tokens=1024")
    rows = [line.split() for line in said.splitlines() if " trained  " in line]
    weights = [int(row[row.index("trained") - 1].replace(",", "")) * 4 / 1e9 for row in rows]
    moments = [0.0 if row[-2] == "-" else float(row[-2]) for row in rows]
    assert len(rows) == 2 and moments == pytest.approx([share * each for each in weights], rel=0.05)
    checkpoint = re.search(r"^disk: (\S+) GB a checkpoint", said, re.MULTILINE)
    assert checkpoint is not None and float(checkpoint[1]) == pytest.approx((1 + share) * sum(weights), rel=0.05)


def test_a_rate_is_suggested_to_fine_tuning_alone() -> None:
    """504 rows of 2,000 tokens are about a quarter of four million."""
    words = ["batch.size=504", "batch.max_tokens=4096", "data.max_length=2001", "distributed=zero3"]
    config = config_to_plan(composed("sft", words, [], "llama-3-8b"))
    plan = plan_of(config, named("8x80GB"), COUNTS)
    (line,) = rate_line(plan)
    assert line.startswith("learning rate: train.learning_rate=0.00015 by LLaMA-Factory's")
    adapters = replace(config.model, lora=LoraConfig(rank=4))
    for other in (replace(config, model=adapters), composed("dpo", [], [], "llama-3-8b")):
        assert list(rate_line(replace(plan, config=config_to_plan(other)))) == []


def test_a_base_that_is_merged_into_is_held_in_float32() -> None:
    """The matrices of a Llama of 8 billion weights, but for embeddings and head, take two bytes more."""
    common = ["batch.max_tokens=4096", "model.lora.rank=16", "distributed.zero=0", "model.lora.merge_every={}"]
    held = []
    for every in (0, 100):
        words = [word.format(every) for word in common]
        plan = plan_of(config_to_plan(composed("sft", words, [], "llama-3-8b")), named("8x80GB"), COUNTS)
        held.append(plan.highest.held)
    assert 6.9e9 < (held[1] - held[0]) / 2 < 8.1e9


def test_processes_of_the_config_beside_other_devices_that_are_named() -> None:
    """The devices count, which is told; where they are as many, or the config names none, there is nothing to tell."""
    own = {"launch.processes=4": "launch.processes=4", "cluster=slurm cluster.nodes=2 cluster.gpus_per_node=8": ""}
    for words, told in own.items():
        config = config_to_plan(composed("tiny_dpo", ["distributed.zero=3", *words.split()], [], None))
        (line,) = another_number_of(config, named("8x80GB"))
        told = told or "cluster.nodes=2 of 8 GPUs"
        assert line == f"planned for the 8 of --for, not for {told}"
    for words in ("distributed.zero=3 launch.processes=8", "distributed.zero=3"):
        config = config_to_plan(composed("tiny_dpo", words.split(), [], None))
        assert not list(another_number_of(config, named("8x80GB")))


def test_a_checkpoint_in_the_background_is_in_a_machine_s_memory() -> None:
    """12 bytes of each of 8 billion weights: all of them in one process, or 8 of 16 shares."""
    for devices, zero, share in (("1x80GB", "null", 1.0), ("16x80GB", "3", 0.5)):
        words = ["batch.max_tokens=4096", f"distributed.zero={zero}"]
        found = []
        for more in ([], ["checkpoint.background=false"], ["checkpoint.every_minutes=0"]):
            plan = plan_of(config_to_plan(composed("sft", [*words, *more], [], "llama-3-8b")), named(devices), COUNTS)
            found.append(host_of(plan).copied)
        assert found[0] == pytest.approx(12 * 8_030_261_248 * share, rel=1e-3)
        assert found[1:] == [0.0, 0.0]


@pytest.mark.parametrize(
    ("size", "devices", "what"),
    [
        (32, "3x24GB", "distributed.zero=2 launch.processes=2 takes as many as batch.size=32 can"),
        (32, "8x24GB", "distributed.zero=2 launch.processes=8 takes all of a machine's"),
        (32, "64x80GB", "distributed.zero=2 launch.processes=8 takes all of a machine's"),
        (5, "4x24GB", "batch.size=5 can be dealt to no more of them"),
    ],
)
def test_devices_that_are_not_taken(size: int, devices: str, what: str) -> None:
    """And what would take them can be typed."""
    config = config_to_plan(composed("tiny_dpo", [f"batch.size={size}"], [], None))
    (line,) = unused_of(plan_of(config, named(devices), COUNTS), named(devices))
    assert line.endswith(f"the run as it is takes 1: {what}")
