"""README's commands for a model and data of one's own, run as they stand: a few steps, tiny files in the places."""

import gzip
import json
import re
import shlex
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hydra.core.global_hydra import GlobalHydra
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerBase

from alignment.cli import advice
from alignment.cli.main import main

README = (Path(__file__).parents[2] / "README.md").read_text()
SECTION = README.partition("## Your own data and model\n")[2].partition("\n## ")[0]
COMMANDS = [line.strip() for line in SECTION.splitlines() if line.startswith("    alignment run ")]
QUESTIONS = ["What does a cow say?", "What is two plus two?", "Name a colour.", "Who are you?"]
TRAINING = ["train.max_steps=2", "train.epochs=null", "batch.size=4", "log.progress=false"]
DRAWING = ["generation.max_new_tokens=6"]
STOP = "generation.stop=[e,a,o,i]"
ROUNDS = [
    *(f"stages.draw_{number}.set.{word}" for number in (1, 2, 3) for word in (*DRAWING, STOP)),
    *(f"stages.dpo_{number}.set.batch.size=2" for number in (1, 2, 3)),
]
FEW = {
    **dict.fromkeys(
        ("sft", "reward", "reward_regression", "reward_process", "dpo", "orpo", "simpo", "cpo", "kto"), TRAINING
    ),
    "ppo": [*TRAINING, *DRAWING, "ppo.mini_batches=2"],
    "grpo": [*TRAINING, *DRAWING, "num_samples=2"],
    "rloo": [*TRAINING, *DRAWING, "num_samples=2"],
    "reinforce_pp": [*TRAINING, *DRAWING, "ppo.mini_batches=2"],
    "online_dpo": [*TRAINING, *DRAWING],
    "iterative_dpo": ROUNDS,
    "rejection": [*DRAWING, "num_samples=2", "generation.min_new_tokens=1", STOP],
    "evaluate": DRAWING,
}
ROWS = {
    "alpaca": [{"instruction": q, "input": "", "output": f"Moo {n}."} for n, q in enumerate(QUESTIONS)],
    "graded": [
        {"prompt": q, "chosen": f"Well, {n}.", "rejected": "No", "rating": "better"} for n, q in enumerate(QUESTIONS)
    ],
    "hh_rlhf": [
        {side: f"\n\nHuman: {q}\n\nAssistant: {said}" for side, said in (("chosen", f"Yes {n}."), ("rejected", "No."))}
        for n, q in enumerate(QUESTIONS)
    ],
}


@pytest.fixture
def folder(
    tmp_path: Path, tokenizer: PreTrainedTokenizerBase, tiny_init: dict[str, object], monkeypatch: pytest.MonkeyPatch
) -> Path:
    """A pretrained model in `FOLDER`, prompts in `PROMPTS.jsonl`, replies with labels in `LABELED.jsonl`, with scores
    in `SCORED.jsonl`, in steps in `STEPS.jsonl`."""
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    init = {**tiny_init, "vocab_size": len(tokenizer), "max_position_embeddings": 4096}
    init |= {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    config = AutoConfig.for_model(init.pop("model_type"), **init)
    AutoModelForCausalLM.from_config(config).save_pretrained("FOLDER")
    tokenizer.save_pretrained("FOLDER")
    Path("PROMPTS.jsonl").write_text("".join(json.dumps({"prompt": q}) + "\n" for q in QUESTIONS))
    labeled = [{"prompt": q, "completion": f"Well, {n}.", "label": n % 2 == 0} for n, q in enumerate(QUESTIONS)]
    scored = [{"prompt": q, "completion": f"Well, {n}.", "score": n / 2} for n, q in enumerate(QUESTIONS)]
    steps = [{"prompt": q, "completions": ["Well.", f"{n}."], "labels": [True, n > 1]} for n, q in enumerate(QUESTIONS)]
    for name, rows in {"LABELED": labeled, "SCORED": scored, "STEPS": steps}.items():
        Path(f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """The command in this process; what it printed."""

    def call(*words: str) -> str:
        monkeypatch.setattr(sys, "argv", list(words))
        try:
            main()
        finally:
            GlobalHydra.instance().clear()
        return capsys.readouterr().out

    return call


def test_every_recipe_of_ones_own_is_shown() -> None:
    assert [command.split()[2] for command in COMMANDS] == [*FEW]


def test_the_commands_run_one_after_the_other(folder: Path, run: Callable[..., str]) -> None:
    for command in COMMANDS:
        words = shlex.split(command)
        for preset, rows in ROWS.items():
            if f"data={preset}" in words:
                for ending, opener in ((".json.gz", gzip.open), (".jsonl.gz", gzip.open)):
                    with opener(f"FILE{ending}", "wt") as file:
                        file.writelines(json.dumps(row) + "\n" for row in rows)
        assert "WARNING" not in run(*words, *FEW[words[2]])
    for task in FEW.keys() - {"iterative_dpo", "rejection", "evaluate"}:
        run_folder = folder / "runs" / task.removeprefix("reward_")
        logged = [json.loads(line) for line in (run_folder / "metrics.jsonl").read_text().splitlines()]
        assert [row["step"] for row in logged] == [1, 2]
        assert 0 <= logged[0]["lr"] <= 2e-5
        assert (run_folder / "model" / "model.safetensors").is_file()
    assert (folder / "runs" / "rounds" / "dpo_3" / "model" / "model.safetensors").is_file()
    assert (folder / "runs" / "best" / "selected.jsonl").read_text().count("\n") >= 1
    (compared,) = (folder / "runs" / "evaluate").glob("*/summary.json")
    assert {method["name"] for method in json.loads(compared.read_text())["methods"]} == {"sft", "dpo", "ppo"}


def test_a_toys_values_and_a_rate_for_all_weights_are_told(
    folder: Path, run: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = "".join(json.dumps({"prompt": q, "completion": "Moo."}) + "\n" for q in QUESTIONS)
    Path("rows.jsonl").write_text(rows)
    folders: list[str] = []
    data = ["model.path=FOLDER", "data.train.path=rows.jsonl", "train.max_steps=1", "train.epochs=null", "batch.size=4"]

    def ran(*words: str) -> str:
        folders.append(f"output_dir=out-{len(folders)}")  # named by the second, two would be one
        return run("alignment", "run", *words, folders[-1])

    calm = ["batch.size=4", "train.warmup_steps=0", "train.warmup_ratio=0"]  # its one step learns, of rows that it has
    said = ran("tiny_sft", "model=pretrained", "data=native", *data)
    line = "WARNING: tiny_sft's values (train.learning_rate=0.003, its lengths) are for toy models; for yours take the"
    assert f"{line} recipe sft\n" in said
    assert "WARNING" not in ran("tiny_sft", "model.path=FOLDER", "data.train.limit=8", data[2], *calm)
    monkeypatch.setattr(advice, "TOY_BYTES", 1000)  # so that this one is no toy, whose data may be a toy's
    assert line in ran("tiny_sft", "model.path=FOLDER", "data.train.limit=8", "seed=1", data[2])
    lora = ["sft", "model=pretrained_lora", *data]
    assert "adapters take about train.learning_rate=0.0002\n" in ran(*lora)
    assert "WARNING" not in ran(*lora, *calm, "train.learning_rate=2e-4")


def test_the_recipes_name_their_sources() -> None:
    for task in FEW:
        text = (Path(__file__).parents[2] / "recipes" / f"{task}.yaml").read_text()
        assert task == "evaluate" or re.search(r"arXiv:\d{4}\.\d{5}", text), task
