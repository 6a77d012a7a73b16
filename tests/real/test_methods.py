"""SFT, DPO and ORPO of a pretrained model by the installed command: the losses of plain transformers, and steps."""

import json
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

Plain = Callable[[Path, list[Any]], list[Tensor]]
Run = Callable[..., Any]
STEPS = ["train.epochs=null", "train.max_steps=2", "train.warmup_ratio=0", "train.learning_rate=1e-5"]
FAST = "model.gradient_checkpointing=false"
LOSS = 1e-5  # a mean over all tokens or pairs, in which the tokens' roundings of about 1e-5 nats meet


@pytest.fixture(scope="module")
def words(hh: tuple[Path, Any], real_model: Path) -> list[str]:
    """All rows in each step, so that the first loss is known; and in two micro-batches, so that it is put together."""
    data = ["data=hh_rlhf", f"data.train.path={hh[0]}", f"batch.size={len(hh[1])}", "batch.max_tokens=200"]
    return [*data, f"model.path={real_model}", *STEPS]


def falls(ran: Any) -> bool:
    first, second = (row["loss"] for row in ran.rows)
    return second < first


def by_pair(values: list[Tensor]) -> tuple[Tensor, Tensor]:
    """Chosen [P] and rejected [P], of values in the order of `both`."""
    chosen, rejected = torch.stack(values).double().view(-1, 2).unbind(1)
    return chosen, rejected


@pytest.fixture(scope="module")
def both(texts: list[tuple[Any, Any]]) -> list[Any]:
    return [text for pair in texts for text in pair]


@pytest.fixture(scope="module")
def before(plain: Plain, real_model: Path, both: list[Any]) -> list[Tensor]:
    return plain(real_model, both)


def test_sft(
    hh: tuple[Path, Any], laid_out: Callable[..., Any], run: Run, plain: Plain, real_model: Path, tmp_path: Path
) -> None:
    """All of the assistant's turns are learned, the mean is over their tokens."""
    dialogues = [[*pair.prompt, {"role": "assistant", "content": pair.chosen}] for pair in hh[1]]
    path = tmp_path / "dialogues.jsonl"
    path.write_text("".join(json.dumps({"messages": dialogue}) + "\n" for dialogue in dialogues))
    data = ["data=messages", f"data.train.path={path}", f"batch.size={len(dialogues)}", "batch.max_tokens=200"]
    ran = run("sft", *data, f"model.path={real_model}", *STEPS, FAST)
    turns = [(turns[:k], turns[k]["content"]) for turns in dialogues for k in range(1, len(turns), 2)]
    assert len(turns) > len(dialogues)
    logprobs = torch.cat(plain(real_model, [laid_out(*turn) for turn in turns]))
    assert ran.rows[0]["loss"] == pytest.approx(-logprobs.mean().item(), abs=LOSS)
    assert falls(ran)


def test_orpo(words: list[str], run: Run, before: list[Tensor]) -> None:
    ran = run("orpo", *words, FAST, "loss.weight=0.5")
    chosen, rejected = by_pair([logprobs.mean() for logprobs in before])
    log_odds = [side - torch.log1p(-side.exp()) for side in (chosen, rejected)]
    loss = -chosen - 0.5 * logsigmoid(log_odds[0] - log_odds[1])
    assert ran.rows[0]["loss"] == pytest.approx(loss.mean().item(), abs=LOSS)
    assert falls(ran)


def test_dpo(
    words: list[str],
    hh: tuple[Path, Any],
    run: Run,
    before: list[Tensor],
    plain: Plain,
    both: list[Any],
    tmp_path: Path,
) -> None:
    """Its reference's log-probs, and the loss of the model that it ends with."""
    more = [f"data.eval.path={hh[0]}", "loss.beta=0.3", f"reference.folder={tmp_path}"]
    ran = run("dpo", *words, FAST, *more)
    assert ran.rows[0]["loss"] == pytest.approx(math.log(2), abs=LOSS)
    assert falls(ran)
    (cache,) = tmp_path.glob("*.safetensors")
    reference = torch.stack(by_pair([logprobs.sum() for logprobs in before]), 1)
    assert torch.allclose(load_file(cache)["logprobs"].double(), reference, rtol=0, atol=3e-4)  # of up to 20 tokens
    trained = torch.stack(by_pair([logprobs.sum() for logprobs in plain(ran.model, both)]), 1)
    gains = trained - reference
    loss = -logsigmoid(0.3 * (gains[:, 0] - gains[:, 1])).mean().item()
    assert loss < math.log(2) - 0.01
    assert ran.rows[-1]["eval/loss"] == pytest.approx(loss, abs=1e-4)


def test_dpo_with_lora(words: list[str], run: Run, real_model: Path, texts: list[tuple[Any, Any]]) -> None:
    """The saved model is peft's own reading of base and adapter."""
    ran = run("dpo", "model=pretrained_lora", *words, "train.learning_rate=1e-3", "reference.cache=false")
    assert ran.rows[0]["loss"] == pytest.approx(math.log(2), abs=LOSS)
    assert falls(ran)
    base = AutoModelForCausalLM.from_pretrained(real_model, dtype=torch.float32)
    ids = texts[0][0].ids
    with torch.no_grad():
        unchanged = base(ids).logits
        adapted = PeftModel.from_pretrained(base, ran.model / "adapter")(ids).logits
        merged = AutoModelForCausalLM.from_pretrained(ran.model)(ids).logits
    assert (adapted - unchanged).abs().max() > 0.1
    assert torch.allclose(merged, adapted, rtol=0, atol=1e-3)  # of logits of some tens
