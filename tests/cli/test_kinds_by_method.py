"""Each kind of adapter, precision, packing and optimizer by DPO, as a reward model and by PPO: three steps, the same
bits where the run ends after the second and goes on, and what transformers and peft load is the run's own model."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, BitsAndBytesConfig

from alignment.config.model import Quantization
from alignment.config.optimizer import OptimizerName
from alignment.models.adapters import adapter_off
from alignment.models.load import save_model
from alignment.models.quantized import ASKED, keep_packing
from alignment.models.weight_dtype import forwards_in_float32
from alignment.runs.rows import read_rows
from alignment.training import setup

IDS = torch.tensor([[5, 6, 7, 8, 9, 10, 2], [11, 300, 12, 4, 1000, 9, 2], [20, 21, 22, 23, 24, 25, 2]])
METHODS = ("dpo", "reward", "ppo")
FEW = ["data.train.limit=12", "data.eval.limit=4", "batch.size=4", "log.progress=false", "checkpoint.every=1"]
FEW += ["train.schedule=constant", "train.warmup_steps=0", "train.eval_every=0", "train.learning_rate=1e-2"]
SCORE = "def count(prompts, replies):\n    return [float(sum(map(reply.count, 'aeiou'))) for reply in replies]\n"
REPLIES = ["generation.max_new_tokens=4", "reward.function=vowels_of_reply.count", "ppo.epochs=1"]
OF = {"dpo": [], "reward": [], "ppo": [*REPLIES, "critic.learning_rate=1e-2"]}
LORA = "model.lora.rank=4"


@dataclass(frozen=True)
class Kind:
    words: tuple[str, ...]
    near: float = 1e-4
    """How far what is loaded may be from the run's own model, as a share of what the run has changed."""
    packed: Quantization = Quantization.none
    methods: tuple[str, ...] = METHODS


def lora(*words: str, **how: Any) -> Kind:
    return Kind((LORA, *(f"model.lora.{word}" for word in words)), **how)


def packed(how: Quantization, *words: str, near: float = 1e-3) -> Kind:
    return Kind((LORA, f"model.quantization={how.value}", *words), near=near, packed=how)


def rate_of(name: OptimizerName) -> str:
    """That with which an update is about as long as AdamW's."""
    return {OptimizerName.sgd: "train.learning_rate=1", OptimizerName.lion: "train.learning_rate=3e-3"}.get(name, "")


HALF = ("distributed.precision=float16", "distributed.initial_loss_scale=256", "distributed.loss_scale_window=1")
KINDS = {
    "lora": lora(),
    "rslora": lora("rslora=true"),
    "dora": lora("dora=true"),
    "gaussian": lora("init=gaussian"),
    "pissa": lora("init=pissa"),
    "olora": lora("init=olora"),
    "loftq": packed(Quantization.nf4, "model.lora.init=loftq"),
    "eva": lora("init=eva", methods=("dpo", "reward")),
    "plus": lora("plus=16"),
    "dropout": lora("dropout=0.2", methods=("dpo", "reward")),
    "whole modules": lora("modules_to_save=[embed_tokens,norm]"),
    "targets": lora("targets=[q_proj,up_proj]"),
    "patterns": Kind(("model.adapter=patterned",)),
    "nf4": packed(Quantization.nf4),
    "int8": packed(Quantization.int8, near=0.1),
    "float32": Kind(("distributed.precision=float32",)),
    "bfloat16": Kind(("distributed.precision=bfloat16",)),
    "float16": Kind(HALF),
    "lora in bfloat16": Kind((LORA, "distributed.precision=bfloat16"), near=0.1),
    "lora in float16": Kind((LORA, *HALF), near=0.1),
    "nf4 in bfloat16": packed(Quantization.nf4, "distributed.precision=bfloat16", near=0.1),
    **{
        f"{name.value} of adapters": Kind((LORA, f"train.optimizer={name.value}", *rate_of(name).split()))
        for name in OptimizerName
    },
    **{name.value: Kind((f"train.optimizer={name.value}", *rate_of(name).split())) for name in OptimizerName},
}
OFTEN = [("dora", "reward"), ("olora", "ppo"), ("plus", "dpo"), ("patterns", "reward"), ("gaussian", "ppo")]
OFTEN += [
    ("float16", "ppo"),
    ("int8", "dpo"),
    ("lora in bfloat16", "reward"),
    ("rslora", "dpo"),
]
PAIRS = [(kind, method) for kind, each in KINDS.items() for method in each.methods]


@torch.no_grad()
def logits(hf: Any) -> Tensor:
    return hf.eval()(IDS).logits.float()


@pytest.fixture
def own(monkeypatch: pytest.MonkeyPatch) -> dict[str, Tensor]:
    """The logits of the model that a run has written last: `now`, and `before`, which are those without an adapter, or
    none."""
    said: dict[str, Tensor] = {}

    def write(model: Any, tokenizer: Any, folder: Path, **how: Any) -> None:
        save_model(model, tokenizer, folder, **how)
        with torch.no_grad(), forwards_in_float32(model.hf, model.placement):
            said["now"] = logits(model.hf)
            with adapter_off(model.hf):
                before = logits(model.hf)
            said["before"] = torch.zeros_like(before) if torch.equal(before, said["now"]) else before

    monkeypatch.setattr(setup, "save_model", write)
    return said


def patterned(base: Path) -> None:
    """An adapter of several ranks and scales, as peft makes one."""
    shapes: dict[str, Any] = {"rank_pattern": {"layers.1.self_attn.q_proj": 5}, "alpha_pattern": {"v_proj": 3}}
    config = peft.LoraConfig(r=2, lora_alpha=6, target_modules=["q_proj", "v_proj", "up_proj"], **shapes)
    model = peft.get_peft_model(AutoModelForCausalLM.from_pretrained(base), config)
    model.save_pretrained("patterned")


def weights(run: str) -> dict[str, Tensor]:
    found: dict[str, Tensor] = {}
    for path in Path(run).glob("model*/**/*.safetensors"):
        found |= {f"{path.relative_to(run)}: {name}": weight for name, weight in load_file(path).items()}
    return found


def logged(run: str) -> list[dict[str, Any]]:
    rows = read_rows(Path(run) / "metrics.jsonl")
    return [{name: value for name, value in row.items() if not name.startswith("time/")} for row in rows]


def loaded(method: str, kind: Kind, base: Path, folder: Path) -> Iterator[Tensor]:
    """What transformers makes of the model, and peft of the adapter on its base."""
    auto: Any = AutoModelForSequenceClassification if method == "reward" else AutoModelForCausalLM
    yield logits(auto.from_pretrained(folder))
    if (folder / "adapter").exists():
        more: dict[str, Any] = {"num_labels": 1, "pad_token_id": 0} if method == "reward" else {}
        if kind.packed is not Quantization.none:
            asked = {**ASKED[kind.packed], "llm_int8_skip_modules": ["lm_head", "score"]}
            more["quantization_config"] = BitsAndBytesConfig(**asked)
        plain = auto.from_pretrained(base, **more)
        keep_packing(plain)
        yield logits(peft.PeftModel.from_pretrained(plain, folder / "adapter"))


@pytest.mark.parametrize(
    ("kind", "method"),
    [pytest.param(*pair, marks=() if pair in OFTEN else pytest.mark.slow) for pair in PAIRS],
)
def test_it_learns_goes_on_and_is_loaded(
    kind: str, method: str, alignment: Callable[..., Any], families: Path, own: dict[str, Tensor]
) -> None:
    each, base = KINDS[kind], families / "small"
    Path("vowels_of_reply.py").write_text(SCORE)
    if kind == "patterns":
        patterned(base)
    words = ["run", f"tiny_{method}", *FEW, *OF[method], f"model.path={base}", *each.words]
    for steps in (2, 3):
        ended = alignment(*words, f"train.max_steps={steps}", "output_dir=cut")
        assert (ended.code, ended.err) == (0, [])
    assert "going on from" in ended.out
    ended = alignment(*words, "train.max_steps=3", "output_dir=whole")
    assert (ended.code, ended.err) == (0, [])
    rows, cut, whole = logged("whole"), weights("cut"), weights("whole")
    assert len(rows) == 3 and all(row["grad_norm"] > 0 for row in rows)
    assert cut.keys() == whole.keys() and all(torch.equal(cut[name], whole[name]) for name in cut)
    assert logged("cut")[2] == rows[2]
    changed = (own["now"] - own["before"]).norm()
    assert changed > 0
    for found in loaded(method, each, base, Path("whole/model")):
        assert (found - own["now"]).norm() <= each.near * changed
