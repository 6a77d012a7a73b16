"""SFT, DPO and ORPO of a pretrained model by the installed command: the losses of plain transformers, and steps."""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from torch import Tensor
from torch.nn.functional import logsigmoid
from transformers import AutoModelForCausalLM

pytestmark = pytest.mark.real

Plain = Callable[[Path], list[tuple[Tensor, Tensor]]]
Run = Callable[..., Any]
STEPS = ["train.max_steps=3", "train.learning_rate=1e-5", "train.warmup_steps=0", "train.eval_every=0"]
LOSS = 1e-5  # a mean over all tokens or pairs, in which the tokens' roundings of about 1e-5 nats meet


@pytest.fixture(scope="module")
def words(hh: tuple[Path, Any], real_model: Path) -> list[str]:
    """All rows in each step, so that the first loss is known; and in two micro-batches, so that it is put together."""
    data = ["data=hh_rlhf", f"data.train.path={hh[0]}", f"batch.size={len(hh[1])}", "batch.max_tokens=400"]
    return [*data, f"model.path={real_model}", *STEPS]


def falls(ran: Any) -> bool:
    losses = [row["loss"] for row in ran.rows]
    return len(losses) == 3 and losses == sorted(losses, reverse=True) and losses[-1] < losses[0]


def test_sft(words: list[str], run: Run, plain: Plain, real_model: Path) -> None:
    ran = run("tiny_sft", "model=pretrained", *words)
    chosen = torch.cat([logprobs for logprobs, _ in plain(real_model)])
    assert ran.rows[0]["loss"] == pytest.approx(-chosen.mean().item(), abs=LOSS)
    assert falls(ran)


def test_orpo(words: list[str], run: Run, plain: Plain, real_model: Path) -> None:
    ran = run("tiny_orpo", "model=pretrained", *words, "loss.weight=0.5")
    chosen, rejected = (
        torch.stack([each.double().mean() for each in side]) for side in zip(*plain(real_model), strict=True)
    )
    log_odds = [side - torch.log1p(-side.exp()) for side in (chosen, rejected)]
    loss = -chosen - 0.5 * logsigmoid(log_odds[0] - log_odds[1])
    assert ran.rows[0]["loss"] == pytest.approx(loss.mean().item(), abs=LOSS)
    assert falls(ran)


def test_dpo(words: list[str], hh: tuple[Path, Any], run: Run, plain: Plain, real_model: Path, tmp_path: Path) -> None:
    """Its reference's log-probs, and the loss of the model that it ends with."""
    more = [f"data.eval.path={hh[0]}", "loss.beta=0.3", f"reference.folder={tmp_path}"]
    ran = run("tiny_dpo", "model=pretrained", *words, *more)
    assert ran.rows[0]["loss"] == pytest.approx(math.log(2), abs=LOSS)
    assert falls(ran)
    (cache,) = tmp_path.glob("*.safetensors")
    before, after = (torch.tensor([[s.sum() for s in pair] for pair in plain(m)]) for m in (real_model, ran.model))
    assert torch.allclose(load_file(cache)["logprobs"], before, rtol=0, atol=3e-4)  # sums over up to 30 tokens
    gains = after - before
    loss = -logsigmoid(0.3 * (gains[:, 0] - gains[:, 1])).mean().item()
    assert loss < math.log(2) - 0.01
    assert ran.rows[-1]["eval/loss"] == pytest.approx(loss, abs=1e-4)


def test_dpo_with_lora(words: list[str], run: Run, real_model: Path, texts: list[tuple[Any, Any]]) -> None:
    """The saved model is peft's own reading of base and adapter."""
    ran = run("tiny_dpo", "model=pretrained_lora", *words, "train.learning_rate=1e-3", "reference.cache=false")
    assert ran.rows[0]["loss"] == pytest.approx(math.log(2), abs=LOSS)
    assert falls(ran)
    base = AutoModelForCausalLM.from_pretrained(real_model, dtype=torch.float32)
    ids = texts[0][0].ids
    with torch.no_grad():
        before = base(ids).logits
        adapted = PeftModel.from_pretrained(base, ran.model / "adapter")(ids).logits
        merged = AutoModelForCausalLM.from_pretrained(ran.model)(ids).logits
    assert (adapted - before).abs().max() > 0.1
    assert torch.allclose(merged, adapted, rtol=0, atol=1e-3)  # of logits of some tens
