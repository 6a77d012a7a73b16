"""The page on the library: its blocks of Python run as they stand, in a folder with a model and a file of pairs."""

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerBase

from alignment.config.batch import BatchConfig, Layout
from alignment.data.batches import Packer
from alignment.losses import SimPOLoss
from alignment.training.objectives import SimPO

PAGE = (Path(__file__).parents[2] / "recipes" / "library.md").read_text()
SECTIONS = dict(re.findall(r"^## (.*?)\n.*?```python\n(.*?)```", PAGE, flags=re.MULTILINE | re.DOTALL))


@pytest.fixture
def here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tokenizer: PreTrainedTokenizerBase, tiny_init: dict[str, Any]
) -> Path:
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    settings = {key: value for key, value in tiny_init.items() if key != "model_type"}
    config = AutoConfig.for_model("llama", **settings, vocab_size=len(tokenizer), pad_token_id=0, eos_token_id=2)
    AutoModelForCausalLM.from_config(config).save_pretrained("my_sft_model")
    tokenizer.save_pretrained("my_sft_model")
    rows = [{"prompt": f"What is {n}?", "chosen": f"It is {n}.", "rejected": "No"} for n in range(8)]
    Path("pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path


def ran(title: str) -> dict[str, Any]:
    names: dict[str, Any] = {"__name__": "library"}
    exec(compile(SECTIONS[title], title, "exec"), names)
    return names


def lines(title: str) -> int:
    """Of code, imports and blank lines apart."""
    return sum(
        bool(line.strip()) and not line.startswith(("import ", "from ")) for line in SECTIONS[title].splitlines()
    )


def test_the_page_has_four_blocks() -> None:
    assert list(SECTIONS) == [
        "A run in six lines",
        "A config in Python",
        "A loop of one's own: pack, read-out, loss",
        "In transformers' Trainer",
    ]
    assert lines("A run in six lines") <= 5 and lines("A loop of one's own: pack, read-out, loss") <= 16


@pytest.mark.usefixtures("here")
def test_a_run() -> None:
    names = ran("A run in six lines")
    run, model = names["run"], names["model"]
    assert [row["step"] for row in run.metrics] == [1, 2, 3, 4] and run.folder.parent == Path("runs/dpo")
    assert isinstance(model, torch.nn.Module) and names["tokenizer"].eos_token_id == 2


@pytest.mark.usefixtures("here")
def test_a_config() -> None:
    run = ran("A config in Python")["run"]
    assert len(run.metrics) == 10 and "beta: 0.2" in (run.folder / "config.yaml").read_text()


@pytest.mark.usefixtures("here")
def test_a_loop_learns() -> None:
    names = ran("A loop of one's own: pack, read-out, loss")
    with torch.no_grad():
        policy = torch.cat(
            [names["completion_logprobs"](names["model"], each).view(-1, 2) for each in names["batches"]]
        )
    reference = torch.cat(names["references"])
    assert len(reference) == 8, [len(each.rows) for each in names["batches"]]
    assert names["loss"](*policy.unbind(1), *reference.unbind(1)).loss.mean() < 0.69


@pytest.mark.usefixtures("here")
def test_transformers_trainer_takes_the_same_step_as_ours() -> None:
    """Its loss is our objective's on the same rows, which our own packer has laid out."""
    before = AutoModelForCausalLM.from_pretrained("my_sft_model")
    names = ran("In transformers' Trainer")
    trainer, pairs = names["trainer"], names["pairs"]
    assert trainer.state.global_step == 2
    after = AutoModelForCausalLM.from_pretrained("trained").state_dict()
    assert any(not torch.equal(weight, after[name]) for name, weight in before.state_dict().items())
    inputs = trainer.data_collator(trainer.train_dataset)
    ours = SimPO(SimPOLoss())
    model = names["LanguageModel"](before, names["WHOLE"])
    (batch,) = Packer(BatchConfig(max_tokens=100_000, layout=Layout.shared), 0).train_batches(pairs)
    with torch.no_grad():
        theirs = trainer.compute_loss(model, inputs)
        torch.testing.assert_close(theirs, ours(model, batch).loss.mean())
