"""`alignment push`: a model's folder to a hub on this machine, which says no as the real one does."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import constants

from tests.hub.stand_in import StandIn

SMALL = ["data.train.limit=8", "data.eval.limit=null", "batch.size=4", "train.max_steps=1", "train.warmup_steps=0"]
SMALL += ["log.progress=false", "train.eval_every=0"]
SIZE = ["model.init.hidden_size=32", "model.init.intermediate_size=48"]


@pytest.fixture
def me(hub: StandIn, monkeypatch: pytest.MonkeyPatch) -> StandIn:
    """The hub, which knows this user, `me`, whose token may write in the name of `team` too."""
    monkeypatch.setenv("HF_TOKEN", "hf_mine")
    hub.tokens |= {"hf_mine", "hf_reading"}
    hub.writers["hf_mine"] = ["me", "team"]
    return hub


def pushed(hub: StandIn, name: str, branch: str = "main") -> dict[str, bytes]:
    repo = hub.repos["models", name]
    return repo.commits[repo.refs[branch]]


def test_a_run_s_model_is_pushed_with_its_card(me: StandIn, alignment: Callable[..., Any], tmp_path: Path) -> None:
    assert alignment("run", "tiny_sft", *SIZE, *SMALL, "output_dir=sft").code == 0
    dpo = [*SMALL, "model.path=sft/model", "model.lora.rank=2", "checkpoint.every=1", "output_dir=dpo"]
    assert alignment("run", "tiny_dpo", *dpo).code == 0
    ended = alignment("push", "dpo", "mine", "--private", "--message", "The first one")
    assert (ended.code, ended.err) == (
        0,
        [],
    ) and f"pushed dpo/model, whole and as an adapter, to me/mine: {me.url}/me/mine/commit/" in ended.out
    assert "me/mine is private\n" in ended.out
    there = pushed(me, "me/mine")
    model = tmp_path / "dpo" / "model"
    for name in ("README.md", "config.json", "model.safetensors", "tokenizer.json", "adapter/README.md"):
        assert there[name] == (model / name).read_bytes(), name
    assert me.repos["models", "me/mine"].is_private and me.messages == ["The first one"]
    assert json.loads(there["adapter/adapter_config.json"])["base_model_name_or_path"] == "model"
    assert not any(str(tmp_path).encode() in content for content in there.values())
    ended = alignment("push", "dpo", "team/step", "--step", "1", "--branch", "early")
    assert (ended.code, ended.err) == (0, [])
    assert b"After step 1;" in pushed(me, "team/step", "early")["README.md"]
    assert "README.md" not in pushed(me, "team/step")
    assert "team/step is public: everybody may read it\n" in ended.out
    ended = alignment("push", "dpo", "team/step", "--private")
    assert "team/step is public: everybody may read it, for it was there already and stays as it was" in ended.out


def test_what_the_hub_refuses_is_one_line(
    me: StandIn, model_folder: Path, alignment: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*words: str) -> str:
        ended = alignment("push", str(model_folder), *words)
        assert ended.code == 2 and len(ended.err) == 1, ended.err
        return ended.err[0].removeprefix("alignment: push: ")

    me.commit("other/taken", {"config.json": "{}"})
    assert refused("other/taken").startswith("your token may not write to other/taken (HTTP 403), which is another's")
    assert refused("other/new").startswith("your token may not write to other/new (HTTP 403)")
    assert refused("a b/c") == "REPO must be name or org/name, of letters, digits, -, _ and ., got 'a b/c'"
    me.status = 503
    assert refused("mine").startswith(f"{me.url} refuses mine (HTTP 503)")
    me.status = None
    monkeypatch.setenv("HF_TOKEN", "hf_unknown")
    assert refused("mine").startswith(f"{me.url} does not know your token (HTTP 401)")
    monkeypatch.delenv("HF_TOKEN")
    asked = len(me.asked)
    assert refused("mine") == f"a token that may write is needed for {me.url}: `hf auth login`, or HF_TOKEN"
    assert len(me.asked) == asked
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert refused("mine") == "nothing is pushed offline: leave HF_HUB_OFFLINE out of the environment"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["out"], "push needs a run or a model's folder, and a repository: alignment push RUN REPO"),
        (["nowhere", "mine"], "no such folder 'nowhere'; `alignment status runs` lists those in runs/"),
        (["empty", "mine"], "push: a model's folder holds config.json or adapter_config.json, got 'empty'"),
        (["bare", "mine"], "push: a model's folder holds weights (*.safetensors, *.bin), got 'bare'"),
        (["bare", "mine", "--step", "3"], "push: --step goes with a run's folder, which holds config.yaml, got 'bare'"),
        (["sweep", "mine"], "push: 'sweep' holds runs, of which one can be pushed: sweep/0, sweep/1"),
        (["pipe", "mine"], "push: the run in 'pipe' has left no model; it has models in pipe/sft"),
    ],
)
def test_a_folder_that_is_no_model(
    words: list[str], message: str, alignment: Callable[..., Any], tmp_path: Path
) -> None:
    for folder in ("empty", "bare", "pipe/sft/model"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "bare" / "config.json").write_text("{}")
    (tmp_path / "pipe" / "config.yaml").write_text("")
    for run in ("sweep/0", "sweep/1"):
        (tmp_path / run / "model").mkdir(parents=True)
        (tmp_path / run / "config.yaml").write_text("seed: 0\n")
    ended = alignment("push", *words)
    assert (ended.code, ended.err) == (2, [f"alignment: {message}"])
