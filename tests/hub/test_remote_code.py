"""Code that comes with a model runs where it is asked for, and nowhere else."""

import json
from collections.abc import Callable
from io import StringIO
from pathlib import Path

import pytest
from omegaconf import OmegaConf
from transformers import dynamic_module_utils

from tests.cli.conftest import Ended
from tests.hub.stand_in import StandIn

CONFIG = """
from pathlib import Path
from transformers import LlamaConfig

Path("it_ran").touch()

class MineConfig(LlamaConfig):
    model_type = "mine_of_a_test"
"""
MODEL = """
from transformers import LlamaForCausalLM
from .configuration_mine import MineConfig

class MineForCausalLM(LlamaForCausalLM):
    config_class = MineConfig
"""
MAP = {"AutoConfig": "configuration_mine.MineConfig", "AutoModelForCausalLM": "modeling_mine.MineForCausalLM"}
SFT = (
    *("run", "tiny_sft", "model=pretrained", "model.path=org/mine", "data=native", "data.train.path=org/pairs:train"),
    *("train.max_steps=1", "batch.size=2", "output_dir=out"),
)
RUNS = "model.trust_remote_code=true (of an evaluation trust_remote_code=true) runs it, where you trust who wrote it"


@pytest.fixture
def mine(hub: StandIn, model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> StandIn:
    """org/mine, a model whose architecture is in its own files."""
    monkeypatch.setattr(dynamic_module_utils, "HF_MODULES_CACHE", str(tmp_path / "modules"))
    settings = json.loads((model_folder / "config.json").read_text())
    settings |= {"model_type": "mine_of_a_test", "architectures": ["MineForCausalLM"], "auto_map": MAP}
    hub.commit("org/mine", model_folder)
    code = {"configuration_mine.py": CONFIG, "modeling_mine.py": MODEL}
    hub.commit("org/mine", {**code, "config.json": json.dumps(settings)})
    hub.commit("org/pairs", {"train.jsonl": '{"prompt": "a", "completion": "b"}\n' * 4}, "datasets")
    return hub


def test_without_leave_it_is_one_line_and_nothing_runs(mine: StandIn, alignment: Callable[..., Ended]) -> None:
    ended = alignment(*SFT)
    assert ended.code == 2 and len(ended.err) == 1
    assert "config.json in " in ended.err[0] and "asks for code that comes with it (" in ended.err[0]
    assert ended.err[0].endswith(f"; {RUNS}")
    assert not Path("it_ran").exists() and not Path("out").exists()


def test_with_leave_it_trains_and_says_so_and_what_is_saved_has_its_code(
    mine: StandIn, alignment: Callable[..., Ended]
) -> None:
    ended = alignment(*SFT, "model.trust_remote_code=true")
    assert (ended.code, ended.err) == (0, [])
    said = next(line for line in ended.out.splitlines() if "trust_remote_code=true runs the code in" in line)
    assert said.startswith("model.path: ") and said.endswith("configuration_mine.py, modeling_mine.py")
    assert Path("it_ran").exists()
    assert OmegaConf.load("out/config.yaml").model.trust_remote_code is True
    again = [word for word in SFT if not word.startswith(("output_dir", "model.path"))]
    ended = alignment(*again, "model.path=out/model", "model.trust_remote_code=true", "output_dir=next")
    assert (ended.code, ended.err) == (0, [])
    refused = alignment(*again, "model.path=out/model", "output_dir=third")
    assert refused.code == 2 and refused.err[0].endswith(RUNS)


def test_code_of_another_repository_is_not_fetched(mine: StandIn, alignment: Callable[..., Ended]) -> None:
    settings = json.loads(mine.repo("org/mine").commits[mine.repo("org/mine").refs["main"]]["config.json"])
    settings["auto_map"] = {key: f"org/other--{value}" for key, value in MAP.items()}
    mine.commit("org/mine", {"config.json": json.dumps(settings)})
    ended = alignment(*SFT, "model.trust_remote_code=true")
    assert ended.code == 2 and "asks for code of another repository, which is not fetched: take a copy" in ended.err[0]
    assert not any("other" in request for request in mine.asked)


def test_an_evaluation_has_a_key_of_its_own(mine: StandIn, alignment: Callable[..., Ended]) -> None:
    words = ("run", "tiny_evaluate", "runs={a: org/mine}", "baseline=a", "data.eval.limit=4", "output_dir=out")
    refused = alignment(*words, "generation.max_new_tokens=4")
    assert refused.code == 2 and refused.err[0].endswith(RUNS) and "runs.a: " in refused.err[0]
    ended = alignment(*words, "generation.max_new_tokens=4", "trust_remote_code=true")
    assert (ended.code, ended.err) == (0, [])


TOKENIZER = """
from transformers import PreTrainedTokenizerFast

class MineTokenizer(PreTrainedTokenizerFast):
    pass
"""


def test_the_code_of_a_reference_s_tokenizer_runs_by_the_same_key(
    mine: StandIn, alignment: Callable[..., Ended], model_folder: Path
) -> None:
    settings = json.loads((model_folder / "tokenizer_config.json").read_text()) | {"tokenizer_class": "MineTokenizer"}
    settings["auto_map"] = {"AutoTokenizer": ["tokenization_mine.MineTokenizer", "tokenization_mine.MineTokenizer"]}
    files = {"tokenization_mine.py": TOKENIZER, "tokenizer_config.json": json.dumps(settings)}
    mine.commit("org/mine", files)
    mine.commit("org/chosen", {"train.jsonl": '{"prompt": "a", "chosen": "b", "rejected": "c"}\n' * 4}, "datasets")
    words = ("run", "tiny_dpo", "model=pretrained", "model.path=org/mine", "data=native", "output_dir=out")
    words += ("data.train.path=org/chosen:train", "reference.path=org/mine", "train.max_steps=1", "batch.size=2")
    ended = alignment(*words, "model.trust_remote_code=true")
    assert (ended.code, ended.err) == (0, [])


def test_a_dialogue_has_the_key_of_evaluations(
    mine: StandIn, alignment: Callable[..., Ended], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdin", StringIO("Hello\n"))
    words = ("chat", "org/mine", "--max-new-tokens", "2")
    refused = alignment(*words)
    assert refused.code == 2 and refused.err[-1].endswith(RUNS)
    ended = alignment(*words, "trust_remote_code=true")
    assert ended.code == 0 and len(ended.out.splitlines()) >= 1
