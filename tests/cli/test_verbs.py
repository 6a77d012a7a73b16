"""Verbs that look at models and rows: evaluate, score and chat, on random models."""

import io
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from alignment.cli.verbs.evaluate import names_of

Command = Callable[..., Any]
TEXTS = ["hello", "how are you?", "hello there, a system"]
ENDS = "<end_of_turn>\n<eos>"  # of a reply in the judge's training


@pytest.fixture
def files(tmp_path: Path) -> Path:
    pairs = [{"prompt": text, "chosen": "fine.", "rejected": "no " * 3, "n": n} for n, text in enumerate(TEXTS)]
    replies = [{"prompt": text, "completion": "fine.", "label": n > 0} for n, text in enumerate(TEXTS)]
    prompts = [{"prompt": text} for text in TEXTS]
    for name, rows in {"pairs": pairs, "replies": replies, "prompts": prompts}.items():
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path


@torch.no_grad()
def plain_score(folder: Path, prompt: str, reply: str) -> float:
    """By transformers alone."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.float64).eval()
    turns = [{"role": "user", "content": prompt}]
    text = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True) + reply + ENDS
    ids = torch.tensor([tokenizer(text, add_special_tokens=False)["input_ids"]])
    return float(model.score(model.base_model(ids).last_hidden_state[0, -1]))


def test_score_gives_pairs_two_scores_in_their_order(alignment: Command, families: Path, files: Path) -> None:
    ended = alignment("score", str(families / "judge"), "pairs.jsonl")
    assert ended.code == 0
    rows = [json.loads(line) for line in ended.out.splitlines()]
    assert [row["n"] for row in rows] == [0, 1, 2]
    for row in rows:
        assert row["chosen_score"] == pytest.approx(plain_score(families / "judge", row["prompt"], "fine."), abs=2e-5)
        told = plain_score(families / "judge", row["prompt"], "no no no")
        assert row["rejected_score"] == pytest.approx(told, abs=2e-5)
    right = sum(row["chosen_score"] > row["rejected_score"] for row in rows)
    assert f"3 pairs: the chosen reply scores higher in {100 * right / 3:.1f}% [" in ended.err[-1]


def test_score_keeps_a_row_s_own_columns_and_says_where_it_has_written(
    alignment: Command, families: Path, files: Path
) -> None:
    row = {"question": "hello", "better": "fine.", "worse": "no", "prompt": "not this", "chosen_score": 9}
    (files / "own.jsonl").write_text(json.dumps(row) + "\n")
    ours = ("pairs.columns.prompt=question", "pairs.columns.chosen=better", "pairs.columns.rejected=worse")
    ended = alignment("score", str(families / "judge"), "own.jsonl", "--out", "scored.jsonl", *ours)
    assert ended.code == 0, ended
    scored = json.loads((files / "scored.jsonl").read_text())
    assert list(scored) == [*row, "rejected_score"]
    assert {key: scored[key] for key in row if key != "chosen_score"} == {k: row[k] for k in row if k != "chosen_score"}
    assert scored["chosen_score"] == pytest.approx(plain_score(families / "judge", "hello", "fine."), abs=2e-5)
    assert "written: scored.jsonl" in ended.err
    assert "WARNING: the rows' own chosen_score gave way to the model's" in ended.err


def test_score_gives_a_reply_one_whatever_its_label_and_writes_a_file(
    alignment: Command, families: Path, files: Path
) -> None:
    run = files / "run"
    run.mkdir()
    (run / "model").symlink_to(families / "judge")
    ended = alignment("score", "run", "replies.jsonl", "--out", "scored.jsonl", "pairs.eval.limit=2")
    assert (ended.code, ended.out) == (0, "")
    rows = [json.loads(line) for line in (files / "scored.jsonl").read_text().splitlines()]
    assert [(row["prompt"], row["label"]) for row in rows] == [(TEXTS[0], False), (TEXTS[1], True)]
    assert rows[0]["score"] == pytest.approx(plain_score(families / "judge", TEXTS[0], "fine."), abs=2e-5)


def test_chat_answers_each_line_of_a_pipe_and_begins_anew(
    alignment: Command, families: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    said = {}
    for name, text in {"all": "hello\nhow are you?\n/reset\nhello\n/exit\nmore\n", "one": "hello"}.items():
        monkeypatch.setattr(sys, "stdin", io.StringIO(text))
        words = ["--max-new-tokens", "6", "--seed", "3", "generation.top_k=1"]
        ended = alignment("chat", str(families / "small"), *words)
        assert ended.code == 0 and [line for line in ended.err if line != "(cut after 6 tokens)"] == []
        said[name] = ended.out
    assert said["all"].startswith(said["one"]) and said["all"].endswith(said["one"])
    assert len(said["all"]) > 2 * len(said["one"])
    assert list(tmp_path.iterdir()) == []


def test_chat_says_what_it_forgets(alignment: Command, families: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    turn = "the user of the assistant " * 4
    monkeypatch.setattr(sys, "stdin", io.StringIO(f"{turn}\n{turn}\n{turn}\n{turn * 9}\n"))
    ended = alignment("chat", str(families / "small"), "--max-new-tokens", "100", "--system", "of the user")
    assert ended.code == 0
    told = "\n".join(ended.err)
    assert "turns are forgotten: the model reads 256 tokens)" in told
    assert " are more than the 256 that the model reads: say less, or lower --max-new-tokens)" in told


def test_chat_is_streamed_on_a_terminal_and_refuses_what_is_no_command(
    alignment: Command, families: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The pieces make the reply that a pipe gets, and what is said of it comes behind it."""
    text = "hello\n/help\nhow are you?\n"
    words = ["chat", str(families / "small"), "--max-new-tokens", "9", "--seed", "3"]
    monkeypatch.setattr(sys, "stdin", io.StringIO(text.replace("/help\n", "")))
    whole = alignment(*words)
    pieces: list[str] = []

    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

        def write(self, piece: str) -> int:
            pieces.append(piece)
            return len(piece)

    monkeypatch.setattr(sys, "stdin", io.StringIO(text))
    monkeypatch.setattr(sys, "stdout", Terminal())
    monkeypatch.setattr(sys, "stderr", sys.stdout)
    alignment(*words)
    shown = "".join(pieces)
    replies = whole.out.splitlines()
    assert len(replies) == 2 and len(pieces) > 9
    first, refused, second = (shown.find(each) for each in (replies[0], "(no such command '/help': /reset", replies[1]))
    assert 0 <= first < shown.find("(cut after 9 tokens)") < refused < second


def test_a_run_that_has_no_model_is_named(alignment: Command, tmp_path: Path) -> None:
    for task, told in {
        "evaluate": "that of an evaluation, which leaves no model: its report is",
        "rejection": "that of a rejection sampling, which trains no model: its rows",
        "pipeline": "that of a pipeline, whose models lie in its stages' folders",
        "dpo": "that of a run of dpo that has left no model yet",
    }.items():
        (tmp_path / task).mkdir()
        (tmp_path / task / "config.yaml").write_text(f"defaults:\n  - task: {task}\n  - _self_\n\nseed: 0\n")
        ended = alignment("chat", task)
        (line,) = ended.err
        assert ended.code == 2 and line.startswith(
            f"alignment: chat: MODEL must be the folder of a model, got {task!r}, "
        )
        assert told in line and "alignment export" not in line
    (tmp_path / "dpo" / "checkpoints" / "step-00000001").mkdir(parents=True)
    (line,) = alignment("chat", "dpo").err
    assert line.endswith("finish it first, or take that of a checkpoint: alignment export dpo")


def test_evaluate_is_the_recipe_in_other_words(alignment: Command, families: Path, files: Path) -> None:
    models = [str(families / "small"), str(families / "qwen")]
    words = ["--data", "prompts.jsonl", "generation.max_new_tokens=3", "output_dir=out", "log.progress=false"]
    ended = alignment("evaluate", *models, *words)
    assert (ended.code, ended.err) == (0, [])
    summary = json.loads((files / "out" / "summary.json").read_text())
    assert [method["name"] for method in summary["methods"]] == ["small", "qwen"] and summary["baseline"] == "small"
    for number, flag in enumerate((["--reward"], [])):  # one model that is asked for pairs is a reward model
        judge = [*flag, str(families / "judge"), "--pairs", "pairs.jsonl", f"output_dir=judged-{number}"]
        assert alignment("evaluate", *judge).code == 0
        found = json.loads((files / f"judged-{number}" / "summary.json").read_text())
        assert found["reward_model"]["accuracy"]["n"] == 3


def test_models_are_named_by_their_folders(tmp_path: Path) -> None:
    (tmp_path / "dpo" / "model").mkdir(parents=True)
    paths = [str(tmp_path / "dpo"), str(tmp_path / "dpo" / "model"), "org/Name-0.5B@main"]
    assert names_of(paths) == ["dpo", "dpo-2", "Name-0_5B"]
    assert names_of(["org/a-2", "org/a", "other/a"]) == ["a-2", "a", "a-3"]
    assert names_of(["beta/0", "beta/1", "7", "a/nan"]) == ["beta-0", "beta-1", "model-7", "a-nan"]
    assert names_of(["true", "modèle (2), neu", "模型", "model"]) == ["model-true", "modele_2_neu", "model", "model-2"]


@pytest.mark.parametrize("folder", ["sweep/0", "nan", "true", "modèle (2), neu", "1e5", "model"])
def test_a_model_may_have_any_name(alignment: Command, files: Path, folder: str) -> None:
    """To where its files are asked for: the words of the command are read."""
    (files / folder).mkdir(parents=True)
    ended = alignment("evaluate", folder, "--data", "prompts.jsonl")
    assert ended.err == [f"alignment: evaluate: MODEL must be the folder of a run or of a model, got {folder!r}"]


@pytest.mark.parametrize(
    ("words", "told"),
    {
        "evaluate": "evaluate needs a model: alignment evaluate MODEL --data FILE, or --reward MODEL --pairs FILE",
        "evaluate gone --data prompts.jsonl": "evaluate: MODEL: no such file or folder, got 'gone'",
        "evaluate MODELS/small --pairs pairs.jsonl": "evaluate: --pairs FILE measures a reward model (--reward",
        "evaluate MODELS/small MODELS/qwen --pairs pairs.jsonl": "evaluate: --pairs FILE measures a reward model, w",
        "evaluate MODELS/small MODELS/judge --data prompts.jsonl": "evaluate: MODEL judge must be a language",
        "evaluate MODELS/small --data prompts.jsonl --reward MODELS/qwen": "evaluate: --reward must be a reward model,",
        "score": "score needs a reward model and a file of rows: alignment score MODEL FILE [--out FILE]",
        "score gone pairs.jsonl": "score: MODEL: no such file or folder, got 'gone'",
        "score MODELS/judge gone.jsonl": "score: FILE: no such file or folder, got 'gone.jsonl'",
        "score MODELS/judge pairs.jsonl --out gone/out.jsonl": "score: --out must be in a folder that is there, got",
        "score MODELS/judge prompts.jsonl": "score: prompts.jsonl:1: there is no reply",
        "score MODELS/small pairs.jsonl": "score: MODEL must be a reward model, got a language model without",
        "score MODELS/judge pairs.jsonl pairs.max_lenght=3": "score: no such key 'pairs.max_lenght'",
        "chat": "chat needs one model: alignment chat MODEL",
        "chat gone": "chat: MODEL: no such file or folder, got 'gone'",
        "chat MODELS/judge": "chat: MODEL must be a language model, got a reward model (LlamaFor",
        "chat MODELS/small --temperature 0": "chat: generation.temperature must be > 0 and finite, got 0",
        "chat MODELS/small --temperature hot": "argument --temperature: invalid float value: 'hot'",
    }.items(),
)
def test_mistakes_are_one_line(words: str, told: str, alignment: Command, families: Path, files: Path) -> None:
    before = set(files.iterdir())
    ended = alignment(*words.replace("MODELS", str(families)).split())
    assert ended.code == 2 and ended.err[-1].startswith(f"alignment: {told}")
    assert ended.out == "" and set(files.iterdir()) == before
