"""PiSSA and OLoRA: at first the model is what it was, A and B are the part of the weights that the papers say, the
reference is the model as it was, and what is saved is an adapter of the base as it was."""

from pathlib import Path
from typing import Any

import numpy as np
import peft
import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedTokenizerBase

from alignment.config.batch import Layout
from alignment.config.errors import ConfigError
from alignment.config.model import LoraConfig, LoraInit, ModelConfig
from alignment.data.pack import Batch, pack
from alignment.data.records import Source
from alignment.data.tokenize import Example
from alignment.distributed.placement import WHOLE
from alignment.models.heads import LanguageModel
from alignment.models.load import load_language_model, save_model
from alignment.models.readout import token_logprobs
from alignment.rl.reference import FrozenAdapter, build_reference
from tests.conftest import TINY

IDS = torch.tensor([[5, 6, 7, 8, 9, 10, 2]])
GPT2 = {"model_type": "gpt2", "n_embd": 32, "n_layer": 1, "n_head": 4, "initializer_range": 0.2}
INITS = [LoraInit.pissa, LoraInit.olora]


@pytest.fixture(scope="module", params=["llama", "gpt2"])
def base(
    request: pytest.FixtureRequest, tokenizer: PreTrainedTokenizerBase, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """GPT-2 keeps its weights the other way round."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("base")
    init = {"llama": {**TINY, "vocab_size": len(tokenizer)}, "gpt2": GPT2}[request.param]
    save_model(load_language_model(ModelConfig(init=init), tokenizer, WHOLE), tokenizer, folder)
    return folder


@pytest.fixture
def batch() -> Batch:
    row = Example(np.array([5, 6, 7, 8]), (np.array([9, 10, 2]),), None, Source("rows.jsonl", 1), (True,))
    return pack([row], [0], layout=Layout.shared, pad_id=0)


def loaded(base: Path, init: LoraInit, tokenizer: PreTrainedTokenizerBase) -> LanguageModel:
    config = ModelConfig(path=str(base), lora=LoraConfig(rank=4, alpha=6, init=init))
    return load_language_model(config, tokenizer, WHOLE)


def stir(model: LanguageModel) -> None:
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for weight in model.trained().values():
            weight.add_(0.1 * torch.randn(weight.shape, generator=generator))


@torch.no_grad()
def logits(hf: Any) -> Tensor:
    return hf.eval()(IDS).logits


@pytest.mark.parametrize("init", INITS)
def test_at_first_it_is_the_base_and_its_weights_are_peft_s(
    init: LoraInit, base: Path, tokenizer: PreTrainedTokenizerBase
) -> None:
    model = loaded(base, init, tokenizer)
    torch.testing.assert_close(logits(model.hf), logits(AutoModelForCausalLM.from_pretrained(base)), rtol=0, atol=1e-5)
    trained = set(model.trained())
    assert trained and all(".default." in name for name in trained)
    if init is LoraInit.olora and model.hf.config.model_type == "gpt2":
        return  # peft 0.21.2 takes the factors of GPT-2's weights the wrong way round
    asked: dict[str, Any] = {"r": 4, "lora_alpha": 6, "use_rslora": True, "init_lora_weights": init.value}
    config = peft.LoraConfig(target_modules="all-linear", **asked)
    theirs = peft.get_peft_model(AutoModelForCausalLM.from_pretrained(base), config).base_model.model
    state = theirs.state_dict()
    own = {name: weight for name, weight in model.hf.state_dict().items() if ".reference." not in name}
    assert own.keys() == state.keys()
    for name, weight in own.items():
        torch.testing.assert_close(weight, state[name], rtol=0, atol=2e-5)


@pytest.mark.parametrize("init", INITS)
def test_the_reference_is_the_model_as_it_was(
    init: LoraInit, base: Path, tokenizer: PreTrainedTokenizerBase, batch: Batch
) -> None:
    policy = loaded(base, init, tokenizer)
    plain = load_language_model(ModelConfig(path=str(base)), tokenizer, WHOLE)
    with torch.no_grad():
        before, trained = token_logprobs(policy, batch), list(policy.trained())
        reference = build_reference(policy)
        assert isinstance(reference, FrozenAdapter)
        assert torch.equal(reference.logprobs(batch, 1.0), before)
        torch.testing.assert_close(before, token_logprobs(plain, batch), rtol=0, atol=1e-5)
        stir(policy)
        assert torch.equal(reference.logprobs(batch, 1.0), before)
        assert (token_logprobs(policy, batch) - before).abs().max() > 0.01
    assert list(policy.trained()) == trained


SHAPES: list[dict[str, Any]] = [
    {"alpha": 6},
    {"alpha": 6, "rslora": False},
    {"alpha": 3, "rank_pattern": {".*attn.*": 3}, "alpha_pattern": {".*mlp.*": 2}},
]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("init", INITS)
def test_what_is_saved_is_an_adapter_of_the_base_as_it_was(
    init: LoraInit, shape: dict[str, Any], base: Path, tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    """Of twice the rank, which peft reads, and from which training goes on."""
    config = ModelConfig(path=str(base), lora=LoraConfig(rank=4, init=init, **shape))
    model = load_language_model(config, tokenizer, WHOLE)
    stir(model)
    now = logits(model.hf)
    save_model(model, tokenizer, tmp_path)
    adapter = tmp_path / "adapter"
    beside = peft.PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), adapter)
    assert (beside.peft_config["default"].r, beside.peft_config["default"].init_lora_weights) == (8, True)
    torch.testing.assert_close(logits(beside), now, rtol=0, atol=1e-5)
    torch.testing.assert_close(logits(AutoModelForCausalLM.from_pretrained(tmp_path)), now, rtol=0, atol=1e-5)
    goes_on = load_language_model(ModelConfig(path=str(base), adapter=str(adapter)), tokenizer, WHOLE)
    torch.testing.assert_close(logits(goes_on.hf), now, rtol=0, atol=1e-5)


def test_what_cannot_begin_so_is_refused(tiny_init: dict[str, Any], tokenizer: PreTrainedTokenizerBase) -> None:
    config = ModelConfig(init=tiny_init, lora=LoraConfig(rank=20, init=LoraInit.pissa))
    with pytest.raises(ConfigError, match=r"^model\.lora\.rank must be <= 16 for .*init=pissa, .*k_proj, got 20"):
        load_language_model(config, tokenizer, WHOLE)
    with pytest.raises(ConfigError, match=r"^model\.lora\.dora must be false with model\.lora\.init=olora"):
        LoraConfig(rank=4, init=LoraInit.olora, dora=True)
