"""EVA: an adapter begins at the first singular vectors of what its layers read of the replies, as peft's does."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedTokenizerBase

from alignment.config.batch import BatchConfig, Layout
from alignment.config.errors import ConfigError
from alignment.config.model import LoraConfig, LoraInit, ModelConfig
from alignment.data.batches import Batches, Packer
from alignment.data.pack import PADDING
from alignment.data.tokenize import Example
from alignment.distributed.placement import WHOLE
from alignment.models import eva
from alignment.models.adapters import lora_layers
from alignment.models.load import load_language_model, load_scalar_model, save_model
from alignment.training.setup import fill_adapter

IDS = torch.tensor([[5, 6, 7, 8, 9, 10, 2]])
RANK = 3


def config(base: Path, rank: int = RANK) -> ModelConfig:
    return ModelConfig(path=str(base), lora=LoraConfig(rank=rank, init=LoraInit.eva))


def rows(pairs: list[Example], layout: Layout, rank: int = 0, num_ranks: int = 1) -> Batches:
    return Batches(pairs, Packer(BatchConfig(size=4, max_tokens=4096, layout=layout), 0, rank, num_ranks), 0)


@torch.no_grad()
def logits(hf: Any) -> Tensor:
    return hf.eval()(IDS).logits


def first_of(layer: Any) -> Tensor:
    return layer.lora_A["default"].weight.detach()


def test_its_vectors_are_those_that_peft_finds_on_the_same_batches(
    base: Path, pairs: list[Example], tokenizer: PreTrainedTokenizerBase
) -> None:
    train, dicts = rows(pairs, Layout.separate), []
    for step in range(100):
        for batch in train.step(step):
            real = batch.groups != PADDING
            labels = batch.input_ids.where(real & (batch.branches > 0), -100)
            dicts.append({"input_ids": batch.input_ids, "attention_mask": real.long(), "labels": labels})
    hf: Any = AutoModelForCausalLM.from_pretrained(base)
    asked = peft.LoraConfig(
        r=RANK, target_modules="all-linear", init_lora_weights="eva", eva_config=peft.EvaConfig(rho=1.0)
    )
    theirs = peft.get_peft_model(hf, asked)
    peft.initialize_lora_eva_weights(theirs, dicts, show_progress_bar=False)
    model = load_language_model(config(base), tokenizer, WHOLE)
    before = logits(model.hf)
    fill_adapter(model, config(base), train)
    for own, other in zip(lora_layers(model.hf), lora_layers(theirs), strict=True):
        torch.testing.assert_close(first_of(own), first_of(other), rtol=0, atol=1e-4)
        torch.testing.assert_close(first_of(own) @ first_of(own).T, torch.eye(RANK), rtol=0, atol=1e-4)
    assert torch.equal(logits(model.hf), before)  # B is 0


@pytest.mark.parametrize("load", [load_language_model, load_scalar_model])
def test_every_process_finds_the_same_and_a_trained_one_is_read_by_peft(
    load: Any, base: Path, pairs: list[Example], tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    """Though each has other rows of a step, and where prompts are laid out once."""
    models = []
    for rank in range(2):
        torch.manual_seed(rank)
        models.append(load(config(base), tokenizer, WHOLE))
        fill_adapter(models[-1], config(base), rows(pairs, Layout.shared, rank, 2))
    for one, other in zip(*(lora_layers(model.hf) for model in models), strict=True):
        assert torch.equal(first_of(one), first_of(other))
    if load is load_scalar_model:
        return
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, weight in models[0].hf.named_parameters():
            if ".lora_" in name:
                weight.add_(0.1 * torch.randn(weight.shape, generator=generator))
    now = logits(models[0].hf)
    save_model(models[0], tokenizer, tmp_path / "saved")
    torch.testing.assert_close(logits(AutoModelForCausalLM.from_pretrained(tmp_path / "saved")), now)
    beside = peft.PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), tmp_path / "saved" / "adapter")
    torch.testing.assert_close(logits(beside), now)


def test_where_replies_are_drawn_it_is_what_layers_read_of_the_prompts(
    base: Path, pairs: list[Example], tokenizer: PreTrainedTokenizerBase
) -> None:
    """All but their first tokens: as of texts of these alone."""
    prompts = [replace(pair, completion_ids=(), finished=()) for pair in pairs]
    texts = []
    for pair in pairs:
        ids = pair.prompt_ids
        texts.append(replace(pair, prompt_ids=ids[:1], completion_ids=(ids[1:] if len(ids) > 1 else ids,)))
    models = [load_language_model(config(base), tokenizer, WHOLE) for _ in range(2)]
    for model, examples in zip(models, (prompts, texts), strict=True):
        fill_adapter(model, config(base), rows(examples, Layout.shared))
    for one, other in zip(*(lora_layers(model.hf) for model in models), strict=True):
        assert torch.equal(first_of(one), first_of(other))
        torch.testing.assert_close(first_of(one) @ first_of(one).T, torch.eye(RANK), rtol=0, atol=1e-4)


def test_what_has_no_such_vectors_is_refused(
    base: Path, pairs: list[Example], tokenizer: PreTrainedTokenizerBase, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = load_language_model(config(base, rank=33), tokenizer, WHOLE)
    with pytest.raises(ConfigError, match=r"^model\.lora\.rank must be <= 32 for model\.lora\.init=eva, .*, got 33$"):
        fill_adapter(model, config(base), rows(pairs, Layout.shared))
    monkeypatch.setattr(eva, "MOST", 3)
    model = load_language_model(config(base, rank=8), tokenizer, WHOLE)
    with pytest.raises(ConfigError, match=r"^model\.lora\.init=eva must find singular vectors that settle; in \d+ of"):
        fill_adapter(model, config(base), rows(pairs, Layout.shared))
