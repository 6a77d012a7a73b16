"""A run's folder stands for its final model under every key that asks for a model."""

from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, get_type_hints

import pytest

from alignment.config.evaluate import EvaluateConfig
from alignment.config.inputs import check_inputs, take_models
from alignment.config.model import ModelConfig
from alignment.config.ppo import CriticConfig
from alignment.config.reference import ReferenceModelConfig
from alignment.config.reward import ScorerConfig, ScorerEntry
from alignment.config.tasks import TASKS

OF_MODELS = ("model", "tokenizer")


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("run/model", "base"):
        Path(name).mkdir(parents=True)
        Path(name, "config.json").write_text("{}")
    Path("run/config.yaml").write_text("seed: 1")


def test_each_key_of_a_model_takes_a_run() -> None:
    model, critic = ModelConfig(path="run", tokenizer="run"), CriticConfig(path="run")
    several = ScorerConfig(models={"a": ScorerEntry(path="run"), "b": ScorerEntry(path="base")})
    configs = [model, critic, ReferenceModelConfig(path="run"), ScorerConfig(path="run"), several]
    for config in configs:
        take_models(config)
        check_inputs(config)
    assert (model.path, model.tokenizer, critic.path) == ("run/model", "run/model", "run/model")
    assert [each.path for each in several.models.values()] == ["run/model", "base"]


def test_a_base_s_folder_that_holds_a_run_too_is_the_base() -> None:
    Path("run/config.json").write_text("{}")
    config = ModelConfig(path="run")
    take_models(config)
    assert config.path == "run"


def test_every_key_of_a_model_is_marked_so() -> None:
    """But for those that take a run as it is, for its log, or hand on what they are given."""
    found = {
        field.name
        for root in TASKS.values()
        for config in dataclasses_in(root)
        for field in fields(config)
        if field.metadata.get("hub") in OF_MODELS and "of_run" not in field.metadata
    }
    assert found == {"runs"} and "runs" in {field.name for field in fields(EvaluateConfig)}


def dataclasses_in(root: type) -> list[type[Any]]:
    inner = [hint for hint in get_type_hints(root).values() if isinstance(hint, type) and is_dataclass(hint)]
    return [root, *(each for config in inner for each in dataclasses_in(config))]
