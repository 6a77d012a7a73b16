"""Evaluations of what there is: a reward model alone, models without one, what models give completions."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from alignment.evaluate.rewardbench import SECTIONS, overall, section_scores
from alignment.runs.scores import read_scores, text_id

Command = Callable[..., Any]
TEXTS = ["hello", "how are you?", "hello there, a system", "the user of the assistant"]
SUBSETS = ["alpacaeval-easy", "mt-bench-hard", "donotanswer", "hep-go"]
RUN = ["run", "evaluate", "generation.max_new_tokens=4", "log.progress=false", "output_dir=out"]


@pytest.fixture
def files(tmp_path: Path) -> Path:
    pairs = [
        {
            "prompt": text,
            "chosen": "fine. " * (2 if n % 2 else 9),
            "rejected": "hello " * 4 + ".",
            "rating": "better" if n < 3 else "unsure",
            "source": "web" if n else "book",
            "subset": SUBSETS[n % 4],
            "tags": ["x", "y"] if n == 1 else "x",
        }
        for n, text in enumerate([*TEXTS, "hello hello", "fine?"])
    ]
    demonstrations = [{"prompt": text, "completion": "fine. " * n} for n, text in enumerate(TEXTS, start=1)]
    for name, rows in {
        "pairs": pairs,
        "demonstrations": demonstrations,
        "prompts": [{"prompt": text} for text in TEXTS],
    }.items():
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path


def found(folder: Path) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    return json.loads((folder / "out" / "summary.json").read_text()), read_scores(folder / "out" / "scores.jsonl")


def test_a_reward_model_alone(alignment: Command, families: Path, files: Path) -> None:
    ended = alignment(*RUN, f"reward={families / 'judge'}", "pairs.eval.path=pairs.jsonl")
    assert (ended.code, ended.err) == (0, [])
    summary, scores = found(files)
    assert summary.keys() == {"facts", "reward_model"}
    right = [row["correct"] for row in scores]
    assert [row["chosen"] > row["rejected"] for row in scores] == [bool(each) for each in right]
    assert {row["part"] for row in scores} == {"pairs"} and len({row["id"] for row in scores}) == 6
    accuracies = summary["reward_model"]
    assert accuracies["accuracy"]["mean"] == sum(right) / 6
    groups = {
        "rating": {"better": right[:3], "unsure": right[3:]},
        "source": {"web": right[1:], "book": right[:1]},
        "subset": {subset: right[n::4] for n, subset in enumerate(SUBSETS)},
        "tags": {"x": right, "y": right[1:2]},
        "length": {"chosen over twice as long": right[::2], "chosen under half as long": right[1::2]},
    }
    for key, parts in groups.items():
        shown = {name: (each["mean"], each["n"]) for name, each in accuracies[f"accuracy_by_{key}"].items()}
        assert shown == {name: (sum(part) / len(part), len(part)) for name, part in parts.items()}
    sections = {name: sum(right[n::4]) / len(right[n::4]) for n, name in enumerate(SECTIONS)}
    assert {name: accuracies["rewardbench"][name] for name in SECTIONS} == sections
    assert "Score" not in accuracies["rewardbench"] and "so that there is no overall score" in ended.out
    html = (files / "out" / "report.html").read_text()
    assert "A reward model on 6 held-out pairs" in html and "Samples" not in html
    assert "by subset" in ended.out and "Chat Hard" in ended.out


def test_rewardbench_weighs_subsets_as_its_leaderboard_does() -> None:
    accuracies = {subset: 1.0 for section in SECTIONS.values() for subset in section} | {"math-prm": 0.0}
    sections = section_scores(accuracies)
    assert {section.name: section.score for section in sections} == {
        "Chat": 1, "Chat Hard": 1, "Safety": 1, "Reasoning": 0.5
    }  # fmt: skip
    assert overall(sections) == 0.875
    assert overall(section_scores({"hep-go": 1.0})) is None


def test_one_model_without_gold_or_reward(alignment: Command, families: Path, files: Path) -> None:
    ended = alignment(*RUN, f"runs={{sft: {families / 'small'}}}", "data.eval.path=prompts.jsonl")
    assert (ended.code, ended.err) == (0, [])
    summary, scores = found(files)
    (method,) = summary["methods"]
    assert summary["baseline"] == "sft" and "wins_by" not in summary
    assert method.keys() == {"name", "kl", "length", "distinct_2", "finished"}
    assert [row["id"] for row in scores] == [text_id([{"role": "user", "content": text}]) for text in TEXTS]
    assert sum(row["length"] for row in scores) / 4 == method["length"]["mean"]
    assert sum(row["finished"] for row in scores) / 4 == method["finished"]["mean"]
    assert "KL" not in ended.out and "perplexity" not in ended.out
    assert "Samples" in (files / "out" / "report.html").read_text()


@torch.no_grad()
def plain_nll(folder: Path, prompt: str, completion: str, *, after: int = 0) -> tuple[float, int]:
    """By transformers alone; of the tokens that stand behind `after` others of the row."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float64).eval()
    turns = [{"role": "user", "content": prompt}]
    before = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
    whole = tokenizer.apply_chat_template([*turns, {"role": "assistant", "content": completion}], tokenize=False)
    end = whole.index(tokenizer.eos_token, len(before)) + len(tokenizer.eos_token)
    ids = tokenizer(whole[:end], add_special_tokens=False)["input_ids"]
    begin = max(after, len(tokenizer(before, add_special_tokens=False)["input_ids"]))
    logprobs = model(torch.tensor([ids])).logits[0].log_softmax(-1)
    nll = -sum(logprobs[at - 1, ids[at]].item() for at in range(begin, len(ids)))
    return nll, len(ids) - begin


def test_perplexity_of_models_of_two_families(alignment: Command, families: Path, files: Path) -> None:
    runs = f"runs={{small: {families / 'small'}, qwen: {families / 'qwen'}}}"
    ended = alignment(*RUN, runs, "data.eval.path=demonstrations.jsonl", "num_samples=0")
    assert (ended.code, ended.err) == (0, [])
    summary, scores = found(files)
    assert {row["part"] for row in scores} == {"completions"} and len(scores) == 8
    for method in summary["methods"]:
        rows = [row for row in scores if row["method"] == method["name"]]
        for row, (n, text) in zip(rows, enumerate(TEXTS, start=1), strict=True):
            nll, tokens = plain_nll(families / method["name"], text, "fine. " * n)
            assert (row["nll"], row["tokens"]) == (pytest.approx(nll, rel=1e-5), tokens)
        nll, tokens, size = (sum(row[key] for row in rows) for key in ("nll", "tokens", "bytes"))
        assert method["nll"]["mean"] == pytest.approx(nll / tokens)
        assert method["perplexity"]["mean"] == pytest.approx(math.exp(nll / tokens))
        assert method["bits_per_byte"]["mean"] == pytest.approx(nll / math.log(2) / size)
        assert method["nll"]["low"] < method["nll"]["mean"] < method["nll"]["high"]
    small, qwen = summary["methods"]
    gap = qwen["bits_per_byte"]["mean"] - small["bits_per_byte"]["mean"]
    assert qwen["bits_per_byte_difference"]["mean"] == pytest.approx(gap)
    assert "length" not in small and "2 models on 4 completions" in ended.out


def test_perplexity_is_shown_against_length_where_rows_are_long(
    alignment: Command, families: Path, files: Path
) -> None:
    rows = [(text, "fine. " * count) for text in TEXTS[:2] for count in (20, 90)]
    found_rows = [{"prompt": text, "completion": reply} for text, reply in rows]
    (files / "long.jsonl").write_text("".join(json.dumps(row) + "\n" for row in found_rows))
    ended = alignment(*RUN, f"runs={{small: {families / 'small'}}}", "data.eval.path=long.jsonl", "num_samples=0")
    assert (ended.code, ended.err) == (0, [])
    assert "perplexity by position" in ended.out and "65 to 128" in ended.out
    summary, scores = found(files)
    spans = summary["perplexity_by_position"]["small"]
    assert [(span["after"], span["to"]) for span in spans] == [(64 * (2**n // 2), 64 * 2**n) for n in range(len(spans))]
    assert len(spans) > 1 and sum(span["tokens"] for span in spans) == sum(row["tokens"] for row in scores)
    for number, span in enumerate(spans):
        plain = [plain_nll(families / "small", *row, after=span["after"]) for row in rows]
        later = spans[number:]
        assert sum(each["tokens"] for each in later) == sum(max(0, tokens) for _, tokens in plain)
        nll = sum(each["tokens"] * math.log(each["perplexity"]["mean"]) for each in later)
        assert nll == pytest.approx(sum(nll for nll, _ in plain), rel=1e-5)
    assert "Perplexity at position" in (files / "out" / "report.html").read_text()


def test_completions_are_measured_beside_replies_where_rows_have_them(
    alignment: Command, families: Path, files: Path
) -> None:
    rows = [{"prompt": text} | ({"completion": "fine."} if n else {}) for n, text in enumerate(TEXTS)]
    (files / "some.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    run = f"runs={{sft: {families / 'small'}}}"
    ended = alignment(*RUN, run, "data.eval.path=some.jsonl")
    assert ended.code == 0 and "perplexity: of the 3 completions of data.eval" in ended.out
    ended = alignment(*RUN, run, "data.eval.path=some.jsonl", "perplexity=true", "output_dir=other")
    (line,) = ended.err
    assert ended.code == 2 and "some.jsonl:1: there is no reply" in line


@pytest.mark.parametrize(
    ("words", "told"),
    {
        "": "runs={name: FOLDER} must name what replies, or reward=FOLDER with pairs.eval.path=FILE a reward model",
        "reward=judge": "pairs.eval.path is required for reward without runs, the models whose replies it would score",
        "reward=judge pairs.eval.path=pairs.jsonl data.eval.path=prompts.jsonl": "data.eval.path must be null, which",
        "reward=judge pairs.eval.path=pairs.jsonl baseline=a": "baseline must be left out, which needs runs",
        "reward=judge pairs.eval.path=pairs.jsonl gold=a.b": "gold must be null, which needs runs",
        "reward=judge pairs.eval.path=pairs.jsonl num_samples=4": "num_samples must be 1, which needs runs",
        "pairs.eval.path=pairs.jsonl runs={a:.} data.eval.path=prompts.jsonl": "pairs.eval needs reward, the model it",
        "runs={a:.}": "data.eval.path is required, got null",
        "runs={a:.} data.eval.path=prompts.jsonl num_samples=0 gold=a.b": "gold must be null with num_samples=0",
        "runs={a:.} data.eval.path=prompts.jsonl num_samples=0 reward=judge": "reward must be null with num_samples=0",
        "runs={a:.} data.eval.path=prompts.jsonl num_samples=0 perplexity=false": "perplexity must be true or null",
        "runs={a:.} data=text data.eval.path=prompts.jsonl": "num_samples must be 0 for data.format=text",
    }.items(),
)
def test_what_needs_what_is_one_line(words: str, told: str, alignment: Command, files: Path) -> None:
    ended = alignment(*RUN, *words.split())
    (line,) = ended.err
    assert ended.code == 2 and line.startswith(f"alignment: evaluate: {told}")
    assert not (files / "out").exists()
