"""Rows and replies against the positions that a model knows, before it is loaded."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file

from alignment.config.data import DataConfig, EvalSource, Format
from alignment.config.errors import ConfigError
from alignment.config.evaluate import EvaluateConfig
from alignment.config.generation import GenerationConfig
from alignment.config.model import ModelConfig
from alignment.data.loaded import Loaded
from alignment.data.records import Source
from alignment.data.tokenize import Example, Truncation
from alignment.models.init import config_of
from alignment.models.positions import max_positions
from alignment.models.tokenizer import load_tokenizer
from alignment.tasks.compared import compared_runs
from alignment.training.setup import require_positions

GPT2 = {"model_type": "gpt2", "n_positions": 64, "n_embd": 32, "n_layer": 1, "n_head": 2}
LLAMA = {"model_type": "llama", "max_position_embeddings": 64, "hidden_size": 32, "num_attention_heads": 2}


def rows(prompt: int, *completions: int) -> Loaded:
    ids = tuple(np.zeros(count, dtype=np.int32) for count in completions)
    example = Example(np.zeros(prompt, dtype=np.int32), ids, None, Source("a", 1), (True,) * len(ids))
    return Loaded([], [example], [], Truncation())


def test_a_table_of_positions_is_not_read_beyond_its_end() -> None:
    model, data = ModelConfig(init=GPT2), DataConfig()
    require_positions(model, [rows(4, 60, 8), None], data)
    rule = r"^data.max_length must be <= 64, the positions of the model, got rows of up to 65 tokens \(data.max_len"
    with pytest.raises(ConfigError, match=rule):
        require_positions(model, [rows(4, 8), rows(5, 8, 60)], data)
    require_positions(model, [rows(4)], data, 60)
    rule = r"^data.max_prompt_length \+ generation.max_new_tokens must be <= 64, .* prompts of up to 5 tokens and "
    with pytest.raises(ConfigError, match=rule):
        require_positions(model, [rows(5)], data, 60)


def test_positions_that_are_computed_are_said(capsys: pytest.CaptureFixture[str]) -> None:
    require_positions(ModelConfig(init=LLAMA), [rows(4, 60)], DataConfig())
    assert capsys.readouterr().out == ""
    require_positions(ModelConfig(init=LLAMA), [rows(4, 61)], DataConfig())
    said = capsys.readouterr().out
    assert "WARNING: data.max_length reaches beyond the 64 positions that the model was made for" in said
    assert "keep within them, or scale its RoPE (model.rope)" in said


@pytest.mark.parametrize(
    ("rope", "more", "switch"),
    [
        ({"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}, {}, 64),
        ({"rope_type": "yarn", "factor": 2.0, "rope_theta": 1e4}, {}, None),
        (
            {"rope_type": "longrope", "short_factor": [1.0] * 8, "long_factor": [2.0] * 8, "rope_theta": 1e4},
            {"model_type": "phi3", "original_max_position_embeddings": 16, "pad_token_id": 0},
            16,
        ),
    ],
)
def test_a_rope_that_turns_otherwise_for_long_rows_is_said(
    rope: dict[str, Any], more: dict[str, Any], switch: int | None, capsys: pytest.CaptureFixture[str]
) -> None:
    model = ModelConfig(init={**LLAMA, "num_key_value_heads": 2, "rope_parameters": rope, **more})
    assert max_positions(config_of(model)).switch == switch
    for length in () if switch is None else (switch, switch + 1):
        require_positions(model, [rows(4, length - 4)], DataConfig())
        said = f"as its RoPE turns otherwise beyond {switch}" in capsys.readouterr().out.replace("\n", " ")
        assert said == (length > (switch or 0))


def test_the_config_of_a_folder_is_asked(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "opt", "max_position_embeddings": 16}')
    save_file({}, tmp_path / "model.safetensors")
    with pytest.raises(ConfigError, match="must be <= 16, the positions of the model"):
        require_positions(ModelConfig(path=str(tmp_path)), [rows(4, 60)], DataConfig())


def test_the_part_of_the_config_is_named() -> None:
    with pytest.raises(ConfigError, match=r"^pairs\.max_length must be <= 64, .* \(pairs\.max_length=1024\)$"):
        require_positions(ModelConfig(init=GPT2), [rows(4, 61)], DataConfig(), part="pairs")


def test_an_evaluation_s_runs_are_asked_before_they_are_loaded(tmp_path: Path) -> None:
    load_tokenizer(ModelConfig(init=LLAMA)).save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(GPT2))
    save_file({}, tmp_path / "model.safetensors")
    toy = DataConfig(format=Format.toy, eval=EvalSource(limit=4), max_length=128, max_prompt_length=64)
    generation = GenerationConfig(max_new_tokens=60)
    runs = {"mine": str(tmp_path)}
    config = EvaluateConfig(runs=runs, baseline="mine", data=toy, generation=generation, reward="none")
    rule = r"^runs\.mine: data\.max_prompt_length \+ generation\.max_new_tokens must be <= 64"
    with pytest.raises(ConfigError, match=rule):
        compared_runs(config)
