"""A hub of its own for each test, which the client in this process and in those that it starts asks."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import constants
from transformers import PreTrainedTokenizerBase

from alignment.config.model import ModelConfig
from alignment.distributed.placement import WHOLE
from alignment.hub import ask
from alignment.models.load import load_language_model, save_model
from alignment.terminal import say_once
from tests.cli.conftest import alignment as alignment
from tests.cli.conftest import own as own
from tests.hub.stand_in import StandIn


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[StandIn]:
    """The hub that is asked, with an empty cache for what comes of it."""
    home = tmp_path / "hub_home"
    for name, place in {"HF_HOME": home, "XDG_CACHE_HOME": home / "links"}.items():
        monkeypatch.setenv(name, str(place))
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(home / "hub"))
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(home / "token"))
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.setattr(ask, "answers", {})
    with StandIn() as stand_in:
        monkeypatch.setenv("HF_ENDPOINT", stand_in.url)
        monkeypatch.setenv("HF_HUB_OFFLINE", "0")
        monkeypatch.setenv("HF_HUB_DISABLE_TELEMETRY", "1")
        monkeypatch.setattr(constants, "ENDPOINT", stand_in.url)
        monkeypatch.setattr(
            constants, "HUGGINGFACE_CO_URL_TEMPLATE", stand_in.url + "/{repo_id}/resolve/{revision}/{filename}"
        )
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        yield stand_in


@pytest.fixture
def again(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """`again(offline=True)`: what comes now is as of another process, which has asked for nothing yet."""

    def begin(*, offline: bool = False) -> None:
        monkeypatch.setattr(ask, "answers", {})
        say_once.cache_clear()
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", offline)

    return begin


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch, again: Callable[..., None], tmp_path: Path) -> Callable[[str], None]:
    """`machine("b")`: what comes now is on that one, which has a cache of its own."""

    def move(name: str) -> None:
        home = tmp_path / f"machine_{name}"
        monkeypatch.setenv("HF_HOME", str(home))
        monkeypatch.setenv("XDG_CACHE_HOME", str(home / "links"))
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(home / "hub"))
        again()

    return move


@pytest.fixture(scope="session")
def model_folder(
    tiny_init: dict[str, Any], tokenizer: PreTrainedTokenizerBase, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A tiny language model in Hugging Face form."""
    folder = tmp_path_factory.mktemp("model")
    save_model(load_language_model(ModelConfig(init=tiny_init), tokenizer, WHOLE), tokenizer, folder)
    return folder


@pytest.fixture
def pairs_repo(hub: StandIn) -> str:
    """The commit of org/pairs, a data set of two splits and of two configurations beside them."""
    card = {"train_prefs": "data/train*.jsonl", "test_prefs": "data/test.jsonl"}
    splits = "".join(f"  - split: {split}\n    path: {path}\n" for split, path in card.items())
    files = {
        "README.md": f"---\nconfigs:\n- config_name: default\n  data_files:\n{splits}---\nPairs.\n",
        "data/train-2.jsonl": rows("later", 2),
        "data/train-1.jsonl": rows("first", 6),
        "data/test.jsonl": rows("held out", 4),
        "data/other.jsonl": rows("of no split", 1),
    }
    return hub.commit("org/pairs", files, "datasets")


def rows(name: str, count: int) -> str:
    pairs = [{"prompt": f"{name} {n}", "chosen": f"good {n}", "rejected": f"bad {n}"} for n in range(count)]
    return "".join(f"{json.dumps(pair)}\n" for pair in pairs)
