"""`batch.layout=auto` asks the model, and never chooses wrongly in silence."""

from typing import Any

import pytest
import torch
from transformers import PreTrainedTokenizerBase

from alignment.config.batch import Layout
from alignment.config.errors import ConfigError
from alignment.config.model import Attention, ModelConfig
from alignment.distributed.placement import WHOLE
from alignment.models.heads import LanguageModel
from alignment.models.layout import settle_layout
from alignment.models.load import load_language_model, load_scalar_model

# ALiBi counts distances in the row, whatever the positions say; its architecture takes no position ids.
BLOOM = {"model_type": "bloom", "hidden_size": 32, "n_layer": 2, "n_head": 4}


@pytest.mark.parametrize("load", [load_language_model, load_scalar_model])
@pytest.mark.parametrize("asked", [Layout.auto, Layout.shared])
def test_a_llama_takes_the_shared_layout(
    load: Any, asked: Layout, tiny_init: dict[str, Any], tokenizer: PreTrainedTokenizerBase, capsys: Any
) -> None:
    model = load(ModelConfig(init=tiny_init), tokenizer, WHOLE)
    model.train()
    assert settle_layout(model, asked) is Layout.shared
    assert model.training
    assert capsys.readouterr().out == ""


def test_an_architecture_without_positions_gets_rows_of_its_own(
    tokenizer: PreTrainedTokenizerBase, capsys: Any
) -> None:
    model = load_language_model(ModelConfig(init=BLOOM, attention=Attention.eager), tokenizer, WHOLE)
    assert settle_layout(model, Layout.auto) is Layout.separate
    assert capsys.readouterr().out.count("batch.layout: separate (") == 1
    with pytest.raises(ConfigError, match=r"^batch.layout must be separate or auto .* got 'shared'$"):
        settle_layout(model, Layout.shared)
    assert settle_layout(model, Layout.separate) is Layout.separate


def test_a_model_that_ignores_its_positions_is_found_by_its_numbers(
    tiny_init: dict[str, Any], tokenizer: PreTrainedTokenizerBase, capsys: Any
) -> None:
    """It promises everything, and reads the row's order all the same."""
    model = load_language_model(ModelConfig(init=tiny_init), tokenizer, WHOLE)
    rotary = model.hf.model.rotary_emb
    told = rotary.forward

    def ignoring(hidden: torch.Tensor, position_ids: torch.Tensor) -> Any:
        return told(hidden, torch.arange(position_ids.shape[1]).expand_as(position_ids))

    rotary.forward = ignoring
    assert isinstance(model, LanguageModel)
    assert settle_layout(model, Layout.auto) is Layout.separate
    assert "in the shared layout differently" in capsys.readouterr().out.replace("\n", " ")


def test_an_architecture_that_does_not_hand_its_mask_s_shape_on_gets_rows_of_its_own(
    tokenizer: PreTrainedTokenizerBase, capsys: Any
) -> None:
    """Nemotron's layers keep from their attention what they are told beside the mask."""
    sizes = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 2}
    init = {"model_type": "nemotron", "num_key_value_heads": 2, **sizes}
    model = load_language_model(ModelConfig(init=init), tokenizer, WHOLE)
    assert settle_layout(model, Layout.auto) is Layout.separate
    assert "batch.layout: separate (NemotronForCausalLM cannot read a batch" in capsys.readouterr().out
    with pytest.raises(ConfigError, match=r"^batch\.layout must be separate or auto for this model \(Nemotron"):
        settle_layout(model, Layout.shared)
