"""The command with `model.adapter`: a run that goes on from an adapter, and what is refused."""

import json
import math
import re
import shlex
import shutil
from collections.abc import Callable
from pathlib import Path

import peft
import pytest
import torch
import yaml
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from alignment.api.result import Run
from tests.cli.conftest import Ended

SHORT = ("train.schedule=constant", "train.warmup_steps=0", "train.learning_rate=1e-2", "train.eval_every=0")
FEW = ("batch.size=4", "log.progress=false", "data.eval.limit=8", "data.train.limit=32", "checkpoint.every=1", *SHORT)
SCORE = "def count(prompts, replies):\n    return [float(sum(map(reply.count, 'aeiou'))) for reply in replies]\n"
REPLIES = ("generation.max_new_tokens=4", "reward.function=vowels_of_reply.count")
NEW = ("model.path=BASE", "model.lora.rank=4", "model.lora.targets=[q_proj,up_proj]")
SLOW = pytest.mark.slow
CASES: dict[str, tuple[str, tuple[str, ...], dict[str, float]]] = {  # recipe, model, what the first step says
    "dpo": ("tiny_dpo", ("model.adapter=adapter",), {"loss": math.log(2), "rewards/margin": 0.0}),
    "grpo": ("tiny_grpo", ("model.adapter=adapter", *REPLIES), {"kl": 0.0}),
    "pissa": ("tiny_dpo", (*NEW, "model.lora.init=pissa"), {"loss": math.log(2), "rewards/margin": 0.0}),
    "eva": ("tiny_dpo", (*NEW, "model.lora.init=eva"), {"loss": math.log(2), "rewards/margin": 0.0}),
    "eva of prompts": ("tiny_ppo", (*NEW, "model.lora.init=eva", *REPLIES), {"kl": 0.0}),
    "loftq": (
        "tiny_dpo",
        (*NEW, "model.lora.init=loftq", "model.quantization=nf4"),
        {"loss": math.log(2), "rewards/margin": 0.0},
    ),
    "whole modules": ("tiny_grpo", (*NEW, "model.lora.modules_to_save=[embed_tokens,lm_head]", *REPLIES), {"kl": 0.0}),
}


@pytest.fixture
def adapter(families: Path, tmp_path: Path) -> Path:
    """Of a model that it names as its base, and changes."""
    hf = AutoModelForCausalLM.from_pretrained(families / "small")
    model = peft.get_peft_model(hf, peft.LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj", "up_proj"]))
    torch.manual_seed(0)
    for name, weight in model.named_parameters():
        if ".lora_" in name:
            torch.nn.init.normal_(weight, std=0.2)
    model.save_pretrained(tmp_path / "adapter")
    return tmp_path / "adapter"


def weights(run: str) -> dict[str, torch.Tensor]:
    return load_file(f"{run}/model/adapter/adapter_model.safetensors")


@pytest.mark.parametrize("case", CASES)
def test_a_run_begins_at_its_reference_and_goes_on_to_the_same_bits(
    case: str, alignment: Callable[..., Ended], adapter: Path, families: Path
) -> None:
    Path("vowels_of_reply.py").write_text(SCORE)
    recipe, model, expected = CASES[case]
    words = ("run", recipe, *(word.replace("BASE", str(families / "small")) for word in model), *FEW)
    for more in (("train.max_steps=1", "output_dir=out"), ("train.max_steps=2", "output_dir=out")):
        ended = alignment(*words, *more)
        assert ended.code == 0, ended.err
    assert "going on from" in ended.out
    if case == "dpo":  # beside what it began as, which is no bare base
        words_next = next(line for line in ended.out.splitlines() if line.startswith("next: alignment run"))
        assert "before: adapter, after: out" in words_next
        shown = alignment(
            *shlex.split(words_next)[2:], "data.eval.limit=2", "generation.max_new_tokens=2", "output_dir=e"
        )
        assert (shown.code, shown.err) == (0, [])
    assert alignment(*words, "train.max_steps=2", "output_dir=whole").code == 0
    first, second = map(json.loads, Path("out/metrics.jsonl").read_text().splitlines())
    assert {key: first[key] for key in expected} == pytest.approx(expected, abs=1e-6)
    assert second["grad_norm"] == json.loads(Path("whole/metrics.jsonl").read_text().splitlines()[1])["grad_norm"]
    out, whole, was = weights("out"), weights("whole"), load_file(adapter / "adapter_model.safetensors")
    assert was.keys() <= out.keys() and not any(torch.equal(out[name], was[name]) for name in was)
    assert all(torch.equal(out[name], whole[name]) for name in out)
    assert alignment("export", "out", "--out", "exported").code == 0
    assert Path("exported/model.safetensors").read_bytes() == Path("out/model/model.safetensors").read_bytes()


@pytest.mark.parametrize("recipe", ["tiny_dpo", "tiny_reward"])
def test_a_run_goes_on_across_a_merge_to_the_same_bits_and_leaves_a_whole_model(
    recipe: str, alignment: Callable[..., Ended], families: Path
) -> None:
    """DPO's reference, which is read before the first step, too: with the merged one its loss would be another."""
    base, merges = str(families / "small"), ("model.lora.merge_every=2", "model.lora.restart_warmup_steps=0")
    words = ("run", recipe, *(word.replace("BASE", base) for word in NEW), *merges, *FEW)
    for steps in (1, 2, 3, 5):  # before, at and behind a merge
        ended = alignment(*words, f"train.max_steps={steps}", "output_dir=out")
        assert ended.code == 0, ended.err
    ended = alignment(*words, "train.max_steps=5", "output_dir=whole")
    assert ended.code == 0 and "2 merges in the run's 5 steps" in ended.out, ended.err
    out, whole, was = (load_file(f"{at}/model.safetensors") for at in ("out/model", "whole/model", base))
    assert all(torch.equal(out[name], whole[name]) for name in whole)
    changed = {name for name in was.keys() & whole.keys() if not torch.equal(was[name], whole[name])}
    assert {name.rpartition(".")[0].rpartition(".")[2] for name in changed} - {"score"} == {"q_proj", "up_proj"}
    assert not Path("out/model/adapter").exists()
    assert alignment("export", "out", "--out", "exported").code == 0
    assert Path("exported/model.safetensors").read_bytes() == Path("out/model/model.safetensors").read_bytes()
    plain = alignment(*words, "model.lora.merge_every=0", "model.lora.restart_warmup_steps=null", "train.max_steps=5")
    assert plain.code == 0, plain.err
    folder = next(path for path in Path().glob("**/metrics.jsonl") if path.parent.name not in ("out", "whole"))
    rows = [list(map(json.loads, path.read_text().splitlines())) for path in (Path("whole/metrics.jsonl"), folder)]
    losses = [[row["loss"] for row in each] for each in rows]
    assert losses[0][:3] == pytest.approx(losses[1][:3], abs=1e-5) and losses[0][4] != losses[1][4]


ONLINE = {  # recipe, words, the first step behind a merge, and the parts of a checkpoint with what was merged
    "grpo": ("tiny_grpo", NEW, 2, {"actor_merging"}),
    "ppo": ("tiny_ppo", (*NEW, "ppo.epochs=2"), 2, {"actor_merging", "critic_merging"}),
    "online_dpo": ("tiny_online_dpo", ("model.adapter=adapter",), 3, {"model_merging"}),
}


@pytest.mark.parametrize("case", ["grpo", pytest.param("ppo", marks=SLOW), pytest.param("online_dpo", marks=SLOW)])
def test_what_learns_from_its_own_replies_keeps_its_reference_across_merges(
    case: str, alignment: Callable[..., Ended], adapter: Path, families: Path
) -> None:
    """Merged or not, what the replies are to the reference in the step behind it is the same."""
    Path("vowels_of_reply.py").write_text(SCORE)
    recipe, model, step, parts = ONLINE[case]
    merges = ("model.lora.merge_every=2", "model.lora.restart_warmup_steps=0", "model.lora.init=default")
    words = ("run", recipe, *(word.replace("BASE", str(families / "small")) for word in model), *REPLIES, *FEW)
    for steps in (1, 2, 3):
        ended = alignment(*words, *merges, f"train.max_steps={steps}", "output_dir=out")
        assert ended.code == 0, ended.err
    ended = alignment(*words, *merges, "train.max_steps=3", "output_dir=whole")
    assert ended.code == 0 and "merges in the run's" in ended.out, ended.err
    saved = torch.load("whole/checkpoints/step-00000003/rank-00000.pt", weights_only=True)["parts"]
    assert {name for name in saved if name.endswith("_merging")} == parts
    assert all(saved[name]["base"] for name in parts)
    logs = [Path(f"{at}/metrics.jsonl").read_text().splitlines() for at in ("out", "whole")]
    rows, whole = (list(map(json.loads, lines)) for lines in logs)
    assert [row["grad_norm"] for row in rows] == [row["grad_norm"] for row in whole]
    out, own = (load_file(f"{at}/model/model.safetensors") for at in ("out", "whole"))
    assert all(torch.equal(out[name], own[name]) for name in own)
    assert alignment("export", "out", "--out", "exported").code == 0
    assert Path("exported/model.safetensors").read_bytes() == Path("out/model/model.safetensors").read_bytes()
    assert alignment(*words, f"train.max_steps={step}", "output_dir=plain").code == 0
    plain = json.loads(Path("plain/metrics.jsonl").read_text().splitlines()[-1])
    (name,) = {"kl", "rewards/margin"} & plain.keys()
    assert whole[step - 1][name] == pytest.approx(plain[name], abs=1e-5) != 0


@pytest.mark.parametrize("recipe", ["tiny_dpo", pytest.param("tiny_reward", marks=SLOW)])
def test_an_adapter_that_is_left_alone_is_the_model_on_its_base(
    recipe: str, alignment: Callable[..., Ended], families: Path
) -> None:
    """What the run leaves otherwise, in its place; and as `model.path` of a run that reads it."""
    words = ("run", recipe, *(word.replace("BASE", str(families / "small")) for word in NEW), *FEW, "train.max_steps=2")
    assert alignment(*words, "output_dir=whole").code == 0
    ended = alignment(*words, "model.lora.merge=false", "output_dir=alone")
    assert ended.code == 0, ended.err
    beside, alone = Path("whole/model/adapter"), Path("alone/model")
    assert not (alone / "model.safetensors").exists() and not (alone / "adapter").exists()
    assert (alone / "adapter_config.json").read_text() == (beside / "adapter_config.json").read_text()
    own, other = (load_file(at / "adapter_model.safetensors") for at in (alone, beside))
    assert own.keys() == other.keys() and all(torch.equal(own[name], other[name]) for name in own)
    assert "PeftModel.from_pretrained" in (alone / "README.md").read_text()
    model, _ = Run(Path("alone")).load()
    merged, _ = Run(Path("whole")).load()
    ids = torch.tensor([[5, 6, 7, 8, 9]])
    with torch.no_grad():
        torch.testing.assert_close(model(ids).logits, merged(ids).logits, rtol=1e-4, atol=1e-4)
    for name in ("whole", "alone"):
        again = alignment("run", recipe, f"model.path={name}", *FEW, "train.max_steps=1", f"output_dir=from_{name}")
        assert again.code == 0, again.err
    rows = [json.loads(Path(f"from_{name}/metrics.jsonl").read_text()) for name in ("whole", "alone")]
    assert rows[0]["grad_norm"] == pytest.approx(rows[1]["grad_norm"], rel=1e-4)
    assert alignment("export", "alone", "--out", "exported").code == 0
    assert {path.name for path in Path("exported").iterdir()} == {path.name for path in alone.iterdir()} - {
        "reward_statistics.json"
    }


def test_what_is_no_adapter_to_train_on_is_refused(
    alignment: Callable[..., Ended], adapter: Path, families: Path
) -> None:
    def said(*words: str, recipe: str = "tiny_dpo") -> str:
        ended = alignment("run", recipe, *words, "output_dir=out")
        assert ended.code == 2 and len(ended.err) == 1 and not Path("out").exists(), ended
        return ended.err[0]

    whole = families / "small"
    assert f"adapter (adapter_config.json), got a whole model; model.path={whole} trains it" in said(
        f"model.adapter={whole}"
    )
    assert "model.adapter: no such file or folder, got 'nowhere'" in said("model.adapter=nowhere")
    assert "model.lora.rank must be left out beside model.adapter, whose own is 4" in said(
        f"model.adapter={adapter}", "model.lora.rank=8"
    )
    experts = "model.lora.target_parameters=[experts.down_proj]"
    assert "model.lora.target_parameters must be left out beside model.adapter, whose own is []" in said(
        f"model.adapter={adapter}", experts
    )
    told = said(f"model.path={adapter}", "model.lora.rank=4", "model.lora.merge=false")
    assert re.search(
        r"model\.lora\.merge must be true .* an adapter's folder.*; model\.adapter=.* trains that one on", told
    )
    assert "model.adapter must be null for rejection" in said(f"model.adapter={adapter}", recipe="tiny_rejection")
    settings = json.loads((adapter / "adapter_config.json").read_text())
    for odd in ({"modules_to_save": 5}, {"modules_to_save": "lm_head"}, {"target_modules": 5}):
        (adapter / "adapter_config.json").write_text(json.dumps(settings | odd))
        told = said(f"model.adapter={adapter}")
        assert f"model.adapter: {next(iter(odd))} in" in told and "must be a list of names, got" in told
    (adapter / "adapter_config.json").write_text(json.dumps(settings | {"modules_to_save": ["model.embed_tokens"]}))
    named = "model.lora.modules_to_save="
    assert "whose own is ['model.embed_tokens']" in said(f"model.adapter={adapter}", f"{named}[lm_head]")
    assert "it has no model.embed_tokens.weight" in said(f"model.adapter={adapter}", f"{named}[embed_tokens]")
    (adapter / "adapter_config.json").write_text(json.dumps(settings))
    shutil.copytree(families / "small", "merged")
    shutil.copytree(adapter, "merged/adapter")
    assert "model.adapter must be apart from model.path=" in said("model.adapter=merged", "model.path=merged")
    packed = (
        "model.lora.rank=4",
        "model.lora.init=pissa",
        "model.quantization=nf4",
        f"model.path={families / 'small'}",
    )
    assert "model.quantization must be none with model.lora.init=pissa" in said(*packed)
    (adapter / "adapter_config.json").write_text(json.dumps(settings | {"base_model_name_or_path": "gone/base/x"}))
    assert "model.path must name the base of the adapter" in said(f"model.adapter={adapter}")
    (adapter / "adapter_config.json").write_text(json.dumps(settings | {"peft_type": "IA3"}))
    assert "model.adapter must be an adapter of LoRA or a soft prompt, got 'IA3'" in said(f"model.adapter={adapter}")
    (adapter / "adapter_config.json").write_text(json.dumps(settings | {"peft_type": "LILY"}))
    told = said(f"model.adapter={adapter}")
    assert "got 'LILY'" in told and "peft cannot merge its kind" in told
    (adapter / "adapter_config.json").write_text(json.dumps(settings | {"peft_type": "PREFIX_TUNING"}))
    told = said(f"model.adapter={adapter}")
    assert "got 'PREFIX_TUNING'" in told and "that a layer has of no token" in told and "merges" not in told


def test_an_adapter_that_was_trained_on_another_is_left_in_the_weights_alone(
    alignment: Callable[..., Ended], adapter: Path
) -> None:
    """peft would put it in the other's place; the whole model has both."""
    words = ("tiny_sft", f"model.path={adapter}", "model.lora.rank=4", "train.max_steps=1", *FEW)
    assert alignment("run", *words, "output_dir=out").code == 0
    assert Path("out/model/model.safetensors").is_file() and not Path("out/model/adapter").exists()


def test_a_preset_s_shape_is_left_unread_beside_it_and_a_typed_one_is_its_own(
    alignment: Callable[..., Ended], adapter: Path, families: Path
) -> None:
    """pretrained_lora has rank 16, scaled by its root; the adapter 4, by the rank. What is typed is read, were it the
    default."""
    own = "model.adapter=adapter"
    words = ("run", "tiny_dpo", "model=pretrained_lora", f"model.path={families / 'small'}", *FEW, "output_dir=out")
    own_root = ("rslora=true", "rslora must be left out .* whose own is False")
    for typed, rule in (("alpha=16", "alpha must be .* whose own is 8"), ("rank=0", "rank must be .* is 4"), own_root):
        ended = alignment(*words, own, f"model.lora.{typed}")
        assert ended.code == 2 and len(ended.err) == 1 and re.search(f"model.lora.{rule}", ended.err[0]), ended
    ended = alignment(*words, own, "model.lora.alpha=8", "model.lora.plus=2", "train.max_steps=1")
    assert (ended.code, ended.err) == (0, [])
    lora = yaml.safe_load(Path("out/config.yaml").read_text())["model"]["lora"]
    assert [lora[key] for key in ("rank", "alpha", "rslora", "plus")] == [4, 8, False, 2]
    assert [lora["targets"], lora["modules_to_save"]] == [["q_proj", "up_proj"], []]
    ended = alignment(*words[:-1], "model.lora.rank=0", "train.max_steps=1", "output_dir=whole")
    assert (ended.code, ended.err) == (0, []) and not Path("whole/model/adapter").exists()
    ended = alignment(*words[:-1], "model.lora.rank=0", "model.lora.alpha=32", "output_dir=refused")
    assert ended.code == 2 and "model.lora.alpha goes with model.lora.rank > 0, got 32" in ended.err[0]
