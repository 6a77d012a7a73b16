"""PPO with four roles on one backbone, through the command: nothing odd is said, and resumed to the bit."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

SIZE = ["model.init.hidden_size=32", "model.init.intermediate_size=48"]
FEW = ["log.progress=false", "seed=3", "data.train.limit=32", "data.eval.limit=8", "batch.size=8"]
RUN = ["run", "tiny_ppo", *FEW, "generation.max_new_tokens=10", "train.learning_rate=1.0e-2", "model.path=sft/model"]
LORA = ["model.lora.rank=4", "reward.function=null"]
SHARED = [*RUN, *LORA, "roles.share=lora", "reward.path=reward/model/adapter"]


def rows(folder: Path) -> list[dict[str, float]]:
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [{name: v for name, v in json.loads(line).items() if not name.startswith("time/")} for line in lines]


@pytest.fixture
def stages(alignment: Callable[..., Any]) -> Callable[[str], None]:
    """`stages("1.0e-2")`: an SFT model, and on it a reward model with an adapter, trained at this rate."""

    def build(rate: str) -> None:
        assert alignment("run", "tiny_sft", *SIZE, *FEW, "train.max_steps=3", "output_dir=sft").code == 0
        own = ["model.path=sft/model", "model.lora.rank=4", f"train.learning_rate={rate}", "train.warmup_steps=0"]
        assert alignment("run", "tiny_reward", *FEW, *own, "train.max_steps=3", "output_dir=reward").code == 0

    return build


def test_four_roles_on_one_backbone(
    alignment: Callable[..., Any], stages: Callable[[str], None], tmp_path: Path, ppo_interrupted: Callable[[int], Any]
) -> None:
    stages("1.0e-2")
    words = [*SHARED, "train.max_steps=4", "checkpoint.every=1", "ppo.ema=0.5"]
    ended = alignment(*words, "output_dir=whole")
    assert (ended.code, ended.err) == (0, [])
    with ppo_interrupted(2):
        assert alignment(*words, "output_dir=cut").code == 130
    ended = alignment(*words, "output_dir=cut")
    assert (ended.code, ended.err) == (0, [])
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    assert rows(cut) == rows(whole)
    for name in ("model/model", "model_ema/model", "model/adapter/adapter_model"):
        left, right = (load_file(folder / f"{name}.safetensors") for folder in (cut, whole))
        assert left.keys() == right.keys() and all(torch.equal(left[key], right[key]) for key in left), name
    logged = rows(whole)
    assert logged[0]["kl"] == 0 < logged[-1]["kl"]
    assert logged[0]["value/mean"] != logged[-1]["value/mean"] and logged[0]["reward"] != 0


def test_untrained_adapters_play_as_four_models_do(
    alignment: Callable[..., Any], stages: Callable[[str], None], tmp_path: Path
) -> None:
    """With adapters that are nothing yet, each number of an iteration but the gradients' norms is the same float."""
    stages("1.0e-30")  # too little to move a float
    one = ["train.max_steps=1", "ppo.epochs=1"]
    assert alignment(*SHARED, *one, "output_dir=shared").code == 0
    assert alignment(*RUN, *LORA, "reward.path=reward/model", *one, "output_dir=apart").code == 0
    (shared,), (apart,) = rows(tmp_path / "shared"), rows(tmp_path / "apart")
    before = {name for name in apart if not name.startswith("eval/") and not name.endswith("grad_norm")}
    assert {"reward", "kl", "loss", "entropy", "objective/entropy", "value/mean", "value/error", "value/loss"} <= before
    assert {name: shared[name] for name in before} == {name: apart[name] for name in before}
    assert apart["reward"] != 0 != apart["value/mean"]


def test_what_the_roles_hold_is_said_at_the_start(
    alignment: Callable[..., Any], stages: Callable[[str], None], tmp_path: Path
) -> None:
    """By hand, from the shapes: E = 2,048 x 32 embeddings (tied to the head), B = 2 layers of the body, a rank of 4."""
    stages("1.0e-2")
    body = 2 * (4 * 32 * 32 + 3 * 32 * 48 + 2 * 32) + 32
    policy, scalar = 2048 * 32 + body, 2048 * 32 + body + 32
    adapter = 2 * 4 * (4 * (32 + 32) + 3 * (32 + 48))
    one = ["train.max_steps=1", "ppo.epochs=1"]

    def said(*words: str) -> list[float]:
        lines = alignment(*words, *one, f"output_dir={len(list(tmp_path.iterdir()))}").out.splitlines()
        (line,) = (line for line in lines if line.startswith("roles: "))
        return [float(number) for number in re.findall(r"\d+\.\d+", line)]

    def mb(weights: int, trained: int, most: int) -> list[float]:
        held = [4 * weights / 1e6, 4 * most / 1e6, 8 * trained / 1e6]
        return [weights / 1e6, trained / 1e6, *held, sum(held)]

    four = said(*RUN, "reward.function=null", "reward.path=reward/model")
    assert four == pytest.approx(mb(2 * policy + 2 * scalar, policy + scalar, scalar), abs=0.06)
    shared = said(*SHARED)
    trained = 2 * adapter + 32
    assert shared == pytest.approx(mb(policy + 3 * adapter + 2 * 32, trained, adapter + 32), abs=0.06)
    assert shared[-1] < four[-1] / 4


JUDGE = ["run", "tiny_reward", *FEW, "model.path=sft/model", "train.warmup_steps=0", "train.max_steps=3"]
JUDGE += ["train.learning_rate=5.0e-2", "output_dir=judge"]
SCALED = "model.rope={rope_type: linear, factor: 8}"
ONE = ["train.max_steps=1", "ppo.epochs=1"]


@pytest.mark.parametrize(
    ("of_judge", "of_policy", "line"),
    [
        (
            ["model.lora.rank=4", "model.lora.modules_to_save=[norm]"],
            [],
            r"needs an adapter without model\.norm trained whole \(model\.lora\.modules_to_save\), got '.*adapter'",
        ),
        (
            ["model.soft_prompt.tokens=3"],
            [],
            "needs an adapter of LoRA, got \"one of PROMPT_TUNING in '.*judge/model'\"",
        ),
        (["model.lora.rank=4", "model.lora.dora=true"], [], r"needs an adapter without DoRA \(model\.lora\.dora\)"),
        ([], [], r"needs an adapter's folder \(adapter_config\.json\)"),
        (
            ["model.lora.rank=4", SCALED],
            [],
            r"whose roles are scaled alike \(none; model\.rope\), got .*linear.*judge/model",
        ),
        (
            ["model.lora.rank=4"],
            [SCALED],
            r"\(\{'rope_type': 'linear', 'factor': 8\.0\}; model\.rope\), got \"none in ",
        ),
    ],
    ids=["a norm", "a soft prompt", "DoRA", "no adapter", "scaled", "not scaled"],
)
def test_a_judge_that_the_backbone_cannot_have_is_refused_before_anything_is_read(
    of_judge: list[str], of_policy: list[str], line: str, alignment: Callable[..., Any]
) -> None:
    assert alignment("run", "tiny_sft", *SIZE, *FEW, "train.max_steps=1", "output_dir=sft").code == 0
    assert alignment(*JUDGE, *of_judge, "train.max_steps=1").code == 0
    ended = alignment(*RUN, *LORA, *of_policy, *ONE, "roles.share=lora", "reward.path=judge", "output_dir=out")
    assert ended.code == 2 and len(ended.err) == 1 and not Path("out").exists(), ended
    assert re.search(rf"tiny_ppo: reward\.path.*roles\.share=lora.*{line}", ended.err[0])


def test_a_judge_scaled_as_the_policy_is_taken(alignment: Callable[..., Any]) -> None:
    assert alignment("run", "tiny_sft", *SIZE, *FEW, "train.max_steps=1", "output_dir=sft").code == 0
    assert alignment(*JUDGE, "model.lora.rank=4", SCALED).code == 0
    assert alignment(*RUN, *LORA, SCALED, *ONE, "roles.share=lora", "reward.path=judge", "output_dir=one").code == 0
    assert alignment(*RUN, *LORA, SCALED, *ONE, "reward.path=judge", "output_dir=four").code == 0
    (one,), (four,) = rows(Path("one")), rows(Path("four"))
    assert one["reward"] == pytest.approx(four["reward"], rel=1e-5)


@pytest.mark.parametrize("path", ["judge", "judge/model/adapter"])
def test_a_judge_reads_by_its_own_template(path: str, alignment: Callable[..., Any]) -> None:
    """What it was trained on, whatever the policy's texts look like."""
    assert alignment("run", "tiny_sft", *SIZE, *FEW, "train.max_steps=1", "output_dir=sft").code == 0
    assert alignment(*JUDGE, "model.lora.rank=4", "model.chat_template=plain").code == 0
    words = [*RUN, *LORA, *ONE, f"reward.path={path}"]
    assert alignment(*words, "roles.share=lora", "output_dir=one").code == 0
    assert alignment(*words, "output_dir=four").code == 0
    assert alignment(*words, "reward.path=judge", "output_dir=whole").code == 0
    (one,), (four,), (whole,) = (rows(Path(name)) for name in ("one", "four", "whole"))
    assert one["reward"] == pytest.approx(whole["reward"], rel=1e-5)
    assert four["reward"] == pytest.approx(whole["reward"], rel=1e-5)


def test_a_critic_that_cannot_begin_as_the_judge_is_told_as_one(alignment: Callable[..., Any]) -> None:
    assert alignment("run", "tiny_sft", *SIZE, *FEW, "train.max_steps=1", "output_dir=sft").code == 0
    assert alignment(*JUDGE, "model.soft_prompt.tokens=3", "train.max_steps=1").code == 0
    ended = alignment(*RUN, *LORA, *ONE, "reward.path=judge", "output_dir=out")
    assert ended.code == 2 and len(ended.err) == 1
    line = r"without a soft prompt.*the critic, which trains, begins as it, or as what critic\.path names"
    assert re.search(line, ended.err[0])
