"""Each kind of adapter, precision, packing and optimizer by DPO, as a reward model and by PPO: three steps, the same
bits where the run ends after the second and goes on, and what transformers and peft load is the run's own model.

What is loaded has the run's own weights, base and all, as the run has rounded or packed them, so that it is near to the
last bits: peft's with the products of the run, and the merged one, whose weights are whole, with products of whole
weights."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn.functional import linear
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, BitsAndBytesConfig

from alignment.config.model import Quantization
from alignment.config.optimizer import OptimizerName
from alignment.models.adapters import adapter_off
from alignment.models.load import save_model
from alignment.models.quantized import ASKED, is_quantized, keep_packing, packed_layers, whole_weight
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
NEAR = 1e-4
"""How far what is loaded may be from the run's own model, as a share of what the run has changed."""
ROUNDED = 0.1
"""The same of products that round what they read, LLM.int8()'s and in bfloat16, beside what whole weights give."""


@dataclass(frozen=True)
class Kind:
    words: tuple[str, ...]
    packed: Quantization = Quantization.none
    computes: torch.dtype = torch.float32
    """To which a base is rounded that does not train, and packed weights are unpacked."""


def lora(*words: str) -> Kind:
    return Kind((LORA, *(f"model.lora.{word}" for word in words)))


def packed(how: Quantization, *words: str, computes: torch.dtype = torch.float32) -> Kind:
    return Kind((LORA, f"model.quantization={how.value}", *words), packed=how, computes=computes)


def rate_of(name: OptimizerName) -> str:
    """That with which an update is about as long as AdamW's."""
    own = {OptimizerName.sgd: "train.learning_rate=1", OptimizerName.lion: "train.learning_rate=3e-3"}
    return (own | {OptimizerName.lomo: "train.learning_rate=1 train.max_grad_norm=inf"}).get(name, "")


ON_CPU = [name for name in OptimizerName if name is not OptimizerName.paged_adamw_8bit]  # which tests/gpu has
HALF = ("distributed.precision=float16", "distributed.initial_loss_scale=256", "distributed.loss_scale_window=1")
KINDS = {
    "lora": lora(),
    "by the rank": lora("rslora=false"),
    "dora": lora("dora=true"),
    "gaussian": lora("init=gaussian"),
    "pissa": lora("init=pissa"),
    "olora": lora("init=olora"),
    "loftq": packed(Quantization.nf4, "model.lora.init=loftq"),
    "eva": lora("init=eva"),
    "plus": lora("plus=16"),
    "dropout": lora("dropout=0.2"),
    "whole modules": lora("modules_to_save=[embed_tokens,norm]"),
    "targets": lora("targets=[q_proj,up_proj]"),
    "patterns": Kind(("model.adapter=patterned",)),
    "nf4": packed(Quantization.nf4),
    "int8": packed(Quantization.int8),
    "dora on nf4": packed(Quantization.nf4, "model.lora.dora=true"),
    "dora on int8": packed(Quantization.int8, "model.lora.dora=true", "train.learning_rate=5e-2"),  # beyond rounding
    "float32": Kind(("distributed.precision=float32",)),
    "bfloat16": Kind(("distributed.precision=bfloat16",)),
    "float16": Kind(HALF),
    "lora in bfloat16": Kind((LORA, "distributed.precision=bfloat16"), computes=torch.bfloat16),
    "lora in float16": Kind((LORA, *HALF), computes=torch.float16),
    "nf4 in bfloat16": packed(Quantization.nf4, "distributed.precision=bfloat16", computes=torch.bfloat16),
    **{
        f"{name.value} of adapters": Kind((LORA, f"train.optimizer={name.value}", *rate_of(name).split()))
        for name in ON_CPU
    },
    **{name.value: Kind((f"train.optimizer={name.value}", *rate_of(name).split())) for name in ON_CPU},
}
OFTEN = [("dora", "reward"), ("olora", "ppo"), ("plus", "dpo"), ("patterns", "reward"), ("gaussian", "ppo")]
OFTEN += [
    ("float16", "ppo"),
    ("int8", "dpo"),
    ("lora in bfloat16", "reward"),
    ("by the rank", "dpo"),
]
REFUSED = {("dropout", "ppo"): "model.lora.dropout must be 0 for PPO: with it the ratio is not 1 before the first step"}
PAIRS = [(kind, method) for kind in KINDS for method in METHODS if (kind, method) not in REFUSED]


@torch.no_grad()
def logits(hf: Any) -> Tensor:
    return hf.eval()(IDS).logits.float()


@contextmanager
def unpacked(hf: nn.Module) -> Iterator[None]:
    """Inside, packed layers compute with the whole weights that they stand for, and round nothing else."""
    with pytest.MonkeyPatch.context() as patch:
        layer: Any
        for _, layer in packed_layers(hf):
            patch.setattr(layer, "forward", partial(linear, weight=whole_weight(layer).float(), bias=layer.bias))
        yield


@pytest.fixture
def own(monkeypatch: pytest.MonkeyPatch) -> dict[str, Tensor]:
    """The logits of the model that a run has written last: `now`, with products of `whole` weights, and `before`, which
    are those without an adapter, or none."""
    said: dict[str, Tensor] = {}

    def write(model: Any, tokenizer: Any, folder: Path, **how: Any) -> None:
        save_model(model, tokenizer, folder, **how)
        with torch.no_grad(), forwards_in_float32(model.hf, model.placement):
            said["now"] = logits(model.hf)
            with unpacked(model.hf):
                said["whole"] = logits(model.hf)
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


def auto_of(method: str) -> Any:
    return AutoModelForSequenceClassification if method == "reward" else AutoModelForCausalLM


def on_its_base(method: str, kind: Kind, base: Path, adapter: Path) -> Tensor:
    """What peft makes of the adapter on a base that is rounded or packed as the run's was."""
    more: dict[str, Any] = {"num_labels": 1, "pad_token_id": 0} if method == "reward" else {}
    if kind.packed is not Quantization.none:
        asked = {**ASKED[kind.packed], "llm_int8_skip_modules": ["lm_head", "score"]}
        more["quantization_config"] = BitsAndBytesConfig(**asked, bnb_4bit_compute_dtype=kind.computes)
    plain = auto_of(method).from_pretrained(base, **more)
    keep_packing(plain)
    for module in plain.modules():
        if is_quantized(module):
            state = vars(module.weight).get("quant_state")
            if state is not None:
                state.dtype = kind.computes
        elif isinstance(module, nn.Linear) and module.out_features > 1:
            module.weight.data = module.weight.data.to(kind.computes).float()
    return logits(peft.PeftModel.from_pretrained(plain, adapter))


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
    changed, folder = (own["now"] - own["before"]).norm(), Path("whole/model")
    assert changed > 0
    rounds = each.packed is not Quantization.none
    assert (own["whole"] - own["now"]).norm() <= (ROUNDED if rounds else 0) * changed
    assert (logits(auto_of(method).from_pretrained(folder)) - own["whole"]).norm() <= NEAR * changed
    if (folder / "adapter").exists():
        assert (on_its_base(method, each, base, folder / "adapter") - own["now"]).norm() <= NEAR * changed


@pytest.mark.parametrize(("kind", "method"), REFUSED)
def test_what_a_method_cannot_learn_with_is_refused(
    kind: str, method: str, alignment: Callable[..., Any], families: Path
) -> None:
    ended = alignment("run", f"tiny_{method}", *FEW, f"model.path={families / 'small'}", *KINDS[kind].words)
    assert ended.code == 2 and len(ended.err) == 1 and REFUSED[kind, method] in ended.err[0]
