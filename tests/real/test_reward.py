"""A reward model trained from a pretrained one: what it scores a reply with, in training, in PPO and in rejection."""

import gzip
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import logsigmoid
from transformers import AutoModelForSequenceClassification, PreTrainedModel

pytestmark = pytest.mark.real

Run = Callable[..., Any]
LaidOut = Callable[[list[dict[str, str]], str], Any]
MARGINS = {"significantly_better": 3.0, "better": 2.0, "slightly_better": 1.0, "negligibly_better": 0.0}
SCORE = 1e-4  # of scores about 1


@pytest.fixture(scope="module")
def graded(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[dict[str, str]]]:
    """Of each rating the shortest pair of replies with more to tell them apart than white space."""
    with gzip.open(shared / "data" / "alpaca_eval_graded.train.jsonl.gz", "rt") as file:
        rows = [json.loads(line) for line in file]
    rows = [row for row in rows if row["chosen"].split() != row["rejected"].split()]  # which is no pair
    rows.sort(key=lambda row: len(row["prompt"] + row["chosen"] + row["rejected"]))
    kept = [row for rating in MARGINS for row in [r for r in rows if r["rating"] == rating][:1]]
    path = tmp_path_factory.mktemp("graded") / "pairs.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in kept))
    return path, kept


@pytest.fixture(scope="module")
def start(real_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The pretrained body with a scalar head that is known before the run."""
    hf = AutoModelForSequenceClassification.from_pretrained(real_model, num_labels=1, dtype=torch.float32)
    with torch.no_grad():
        hf.score.weight.copy_(torch.linspace(-0.05, 0.05, hf.config.hidden_size))
    folder = tmp_path_factory.mktemp("start")
    hf.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def trained(run: Run, graded: tuple[Path, Any], start: Path, real_model: Path) -> Any:
    words = [f"model.path={start}", f"model.tokenizer={real_model}", "data=graded", f"data.train.path={graded[0]}"]
    steps = ["train.epochs=null", "train.max_steps=2", "train.learning_rate=2e-5", "train.warmup_ratio=0"]
    return run("reward", *words, *steps, "batch.size=4", "model.gradient_checkpointing=false")


def plain(folder: Path) -> Callable[[Any], float]:
    """transformers' model on one text, the head on what ends the reply."""
    hf: PreTrainedModel = AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.float32)

    @torch.no_grad()
    def score(text: Any) -> float:
        return hf.score(hf.model(text.ids).last_hidden_state[0, -1]).item()

    return score


def pair_scores(score: Callable[[Any], float], rows: list[dict[str, str]], laid_out: LaidOut) -> Tensor:
    """[P, 2] chosen and rejected."""
    prompts = [[{"role": "user", "content": row["prompt"]}] for row in rows]
    names = ("chosen", "rejected")
    scores = [[score(laid_out(p, row[n])) for n in names] for p, row in zip(prompts, rows, strict=True)]
    return torch.tensor(scores)


def test_first_loss_with_margins(trained: Any, start: Path, graded: tuple[Path, Any], laid_out: LaidOut) -> None:
    chosen, rejected = pair_scores(plain(start), graded[1], laid_out).unbind(1)
    margins = torch.tensor([MARGINS[row["rating"]] for row in graded[1]])
    first = trained.rows[0]
    assert first["loss"] == pytest.approx(-logsigmoid(chosen - rejected - margins).mean().item(), abs=SCORE)
    assert first["rewards/chosen"] == pytest.approx(chosen.mean().item(), abs=SCORE)
    assert first["rewards/accuracy"] == (chosen > rejected).float().mean().item()
    assert trained.rows[-1]["loss"] < first["loss"]


def test_what_is_saved_scores_as_in_training(trained: Any, graded: tuple[Path, Any], laid_out: LaidOut) -> None:
    """`reward_statistics.json` is of the scores that the run's own model gave its own pairs."""
    scores = pair_scores(plain(trained.model), graded[1], laid_out)
    statistics = json.loads((trained.model / "reward_statistics.json").read_text())
    assert statistics["mean"] == pytest.approx(scores.mean().item(), abs=SCORE)


@pytest.fixture(scope="module")
def policy(real_model: Path, trained: Any, hh: tuple[Path, Any]) -> list[str]:
    models = [f"model.path={real_model}", f"reward.path={trained.model}"]
    return [*models, "data=hh_rlhf", f"data.train.path={hh[0]}", "generation.max_new_tokens=12"]


def same_scores(ran: Any, score: Callable[[Any], float], laid_out: LaidOut) -> None:
    shown = [row for row in ran.table("samples.jsonl") if row["finished"]]
    assert shown
    for row in shown:
        assert row["score"] == pytest.approx(score(laid_out(row["prompt"], row["reply"])), abs=SCORE)


def test_ppo(policy: list[str], run: Run, trained: Any, laid_out: LaidOut) -> None:
    """Its first inner step changes nothing yet; a reply is worth what training would have given it."""
    words = ["train.epochs=null", "train.max_steps=2", "batch.size=4", "ppo.mini_batches=1", "num_samples=2"]
    ran = run("ppo", *policy, *words, "model.gradient_checkpointing=false", "log.samples=4")
    first, second = ran.rows
    assert first["policy/approx_kl"] == pytest.approx(0, abs=1e-8) and first["policy/clip_fraction"] == 0
    assert first["kl"] == pytest.approx(0, abs=1e-4) and second["kl"] != first["kl"]
    assert all(math.isfinite(row["loss"]) and row["grad_norm"] > 0 for row in ran.rows)
    same_scores(ran, plain(trained.model), laid_out)


def test_rejection(policy: list[str], run: Run, trained: Any, laid_out: LaidOut) -> None:
    ran = run("rejection", *policy, "num_samples=4", "log.samples=4")
    score = plain(trained.model)
    same_scores(ran, score, laid_out)
    shown = ran.table("samples.jsonl")
    for row in ran.table("selected.jsonl"):
        ended = [each["score"] for each in shown if each["prompt"] == row["prompt"] and each["finished"]]
        assert score(laid_out(row["prompt"], row["completion"])) == pytest.approx(max(ended), abs=SCORE)
