"""Who reads what a user gave after a run, or beside it, finds what a name on the hub stands for there."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf
from transformers import PreTrainedTokenizerBase

from alignment.config.model import ModelConfig
from alignment.distributed.placement import WHOLE
from alignment.models.load import load_scalar_model, save_model
from tests.cli.conftest import Ended
from tests.hub.adapters import make_adapter, other_weights
from tests.hub.stand_in import StandIn

FEW = ("model=pretrained", "data=native", "batch.size=4", "train.max_steps=1", "output_dir=out")
PAIRS = "data.train.path=org/pairs:train_prefs"


def test_a_run_on_pairs_of_the_hub_is_followed_by_dpo_on_them(
    hub: StandIn, alignment: Callable[..., Ended], model_folder: Path, pairs_repo: str
) -> None:
    hub.commit("org/tiny", model_folder)
    ended = alignment("run", "tiny_sft", *FEW, "model.path=org/tiny", PAIRS)
    assert (ended.code, ended.err) == (0, [])
    assert f"alignment run dpo model.path=out/model {PAIRS}@{pairs_repo}" in ended.out


def test_a_reward_model_of_the_hub_is_no_policy_for_ppo(
    hub: StandIn,
    alignment: Callable[..., Ended],
    model_folder: Path,
    pairs_repo: str,
    tiny_init: dict[str, Any],
    tokenizer: PreTrainedTokenizerBase,
    tmp_path: Path,
) -> None:
    save_model(load_scalar_model(ModelConfig(init=tiny_init), tokenizer, WHOLE), tokenizer, tmp_path / "judge")
    hub.commit("org/judge", tmp_path / "judge")
    hub.commit("org/tiny", model_folder)
    for name, is_policy in {"tiny": True, "judge": False}.items():
        words = (*FEW[:-1], f"output_dir=of_{name}", f"model.path=org/{name}", PAIRS, "data.margin.scale=none")
        ended = alignment("run", "tiny_reward", *words)
        assert (ended.code, ended.err) == (0, [])
        assert ("alignment run ppo model.path=org/" in ended.out) is is_policy


def test_pairs_for_a_language_model_of_the_hub_are_told_by_the_verb(
    hub: StandIn, alignment: Callable[..., Ended], model_folder: Path, pairs_repo: str
) -> None:
    path = f"org/tiny@{hub.commit('org/tiny', model_folder)}"
    assert alignment("run", "tiny_sft", *FEW, f"model.path={path}", PAIRS).code == 0
    ended = alignment("evaluate", path, "--pairs", "org/pairs:test_prefs")
    assert ended.code == 2 and f"{path!r} is a language model without a reward head: " in ended.err[0]


@pytest.mark.parametrize("where", ["a folder", "the hub"])
def test_a_check_compares_with_the_base_that_the_run_reads(
    where: str,
    hub: StandIn,
    alignment: Callable[..., Ended],
    again: Callable[..., None],
    model_folder: Path,
    pairs_repo: str,
    tmp_path: Path,
) -> None:
    first = hub.commit("org/tiny", model_folder)
    adapter = make_adapter(model_folder, tmp_path / "adapter")
    path = str(adapter) if where == "a folder" else f"org/lora@{hub.commit('org/lora', adapter)}"
    assert alignment("run", "tiny_sft", *FEW, f"model.path={path}", PAIRS).code == 0
    hub.commit("org/tiny", other_weights(model_folder, tmp_path / "other"))
    again()
    ended = alignment("check", "out/config.yaml")
    assert OmegaConf.load("out/config.yaml").commits == {"org/tiny": first}
    assert ended.code in (0, 1) and "packed == one by one" in ended.out
    assert not [line for line in ended.out.splitlines() if "FAIL" in line and "==" in line]
