"""A package that is not installed is told before anything is loaded, with the way to have it or to do without."""

import json
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from alignment.cli.compose import composing, resolve, single
from alignment.config.errors import ConfigError
from alignment.config.packages import is_installed, require_packages


def composed(recipe: str, *words: str) -> Any:
    with composing([]):
        return resolve(single(recipe, list(words)))


@pytest.fixture
def without(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """`without("wandb")`: as where it is not installed."""

    def gone(*packages: str) -> None:
        for package in packages:
            monkeypatch.setitem(sys.modules, package, None)

    return gone


@pytest.mark.parametrize(
    ("recipe", "words", "gone", "message"),
    [
        (
            "tiny_dpo",
            ["log.trackers=[wandb]"],
            ("wandb",),
            r"^log\.trackers: the package wandb must be installed, got 'wandb'; pip install wandb, or leave it out: ",
        ),
        (
            "tiny_dpo",
            ["log.trackers=[tensorboard]"],
            ("tensorboard", "tensorboardX"),
            r"got 'tensorboard'; pip install 'preference-alignment\[tensorboard\]', or",
        ),
        *(
            (
                recipe,
                ["generation.engine=vllm", "generation.vllm.transfer=nccl", *more],
                ("vllm",),
                r"^generation\.vllm\.transfer=nccl needs the package vllm, which is not installed: "
                r"pip install 'preference-alignment\[vllm\]', or take generation\.vllm\.transfer=files",
            )
            for recipe, more in (("tiny_ppo", []), ("tiny_rejection", []), ("tiny_evaluate", ["runs={a:.}"]))
        ),
        (
            "tiny_ppo",
            ["generation.engine=vllm", "launch.vllm=1"],
            ("vllm",),
            r"^launch\.vllm needs the package vllm, which is not installed here: generation\.vllm\.python=FOLDER/",
        ),
        (
            "tiny_ppo",
            ["generation.engine=vllm", "launch.vllm=1", "generation.vllm.python=no/python"],
            (),
            r"^generation\.vllm\.python must be a Python that has vLLM, got 'no/python', which cannot be run$",
        ),
    ],
)
def test_what_a_key_asks_for(
    without: Callable[..., None], recipe: str, words: list[str], gone: tuple[str, ...], message: str
) -> None:
    config = composed(recipe, *words)
    without(*gone)
    with pytest.raises(ConfigError, match=message):
        require_packages(config)


def test_either_of_two_packages_will_do(without: Callable[..., None]) -> None:
    config = composed("tiny_dpo", "log.trackers=[tensorboard]")
    without("tensorboardX")
    require_packages(config)


def test_what_a_models_files_ask_for(without: Callable[..., None], tmp_path: Path) -> None:
    model, adapter, run = tmp_path / "four_bits", tmp_path / "adapter", tmp_path / "run"
    model.mkdir()
    (model / "config.json").write_text(json.dumps({"quantization_config": {"quant_method": "bitsandbytes"}}))
    adapter.mkdir()
    (adapter / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "four_bits"}))
    (run / "model").mkdir(parents=True)
    (run / "model" / "config.json").write_bytes((model / "config.json").read_bytes())
    config = composed("tiny_dpo")
    asked = [replace(config, model=replace(config.model, path=str(folder))) for folder in (model, adapter)]
    asked.append(composed("tiny_evaluate", f"runs={{a:{run}}}"))
    for each in asked:
        require_packages(each)
    without("bitsandbytes")
    for each, key in zip(asked, ("model.path", "model.path", "runs.a"), strict=True):
        way = rf"^{key} '.*' is quantized by bitsandbytes, which is not installed: pip install .*\[quantization\]'$"
        with pytest.raises(ConfigError, match=way):
            require_packages(each)


def test_a_folder_of_a_packages_name_is_not_the_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "left_by_a_tracker").mkdir()
    monkeypatch.syspath_prepend(str(tmp_path))
    assert not is_installed("left_by_a_tracker") and is_installed("torch")
