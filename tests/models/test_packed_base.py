"""An adapter that was trained on a packed base and left apart is read as the model that was trained."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, PreTrainedTokenizerBase
from transformers.pytorch_utils import Conv1D

from alignment.api.result import Run
from alignment.config import packages
from alignment.config.backbone import require_shareable
from alignment.config.data import DataConfig, TrainSource
from alignment.config.distributed import Device, DistributedConfig, Precision
from alignment.config.errors import ConfigError
from alignment.config.model import LoraConfig, LoraInit, ModelConfig, Quantization
from alignment.config.packed_base import NOTE
from alignment.config.soft_prompt import SoftPromptConfig
from alignment.config.supervised import SFTConfig
from alignment.config.train import TrainConfig
from alignment.distributed.placement import WHOLE
from alignment.distributed.sharded import placement_of
from alignment.models.load import (
    load_frozen_language_model,
    load_frozen_reward_model,
    load_language_model,
    load_scalar_model,
    save_model,
)
from alignment.models.quantized import ASKED, is_quantized, keep_packing

IDS = torch.tensor([[5, 6, 7, 8, 9, 10, 2]])
PLACEMENT = placement_of(DistributedConfig())  # as a run has it
KINDS = {
    "nf4": {"quantization": Quantization.nf4},
    "int8": {"quantization": Quantization.int8},
    "loftq": {"quantization": Quantization.nf4, "init": LoraInit.loftq},
    "dora": {"quantization": Quantization.nf4, "dora": True},
    "trained whole beside it": {"quantization": Quantization.nf4, "modules_to_save": ["lm_head"]},
}
ONE_LEFT = {"tie_word_embeddings": False}


@pytest.fixture(params=["llama", "gpt2"])
def base(request: Any, tiny_init: dict[str, Any], tokenizer: PreTrainedTokenizerBase, tmp_path: Path) -> Path:
    """Of wide numbers, so that packing takes much from them; GPT-2's matrices are the other way round."""
    torch.manual_seed(0)
    init = {**tiny_init, "hidden_size": 64, "intermediate_size": 96, "initializer_range": 0.2, **ONE_LEFT}
    if request.param == "gpt2":
        init = {"model_type": "gpt2", "n_embd": 64, "n_layer": 1, "n_head": 4, "initializer_range": 0.2, **ONE_LEFT}
    save_model(load_language_model(ModelConfig(init=init), tokenizer, WHOLE), tokenizer, tmp_path / "base")
    return tmp_path / "base"


def asked(base: Path, quantization: Quantization, **lora: Any) -> ModelConfig:
    return ModelConfig(path=str(base), quantization=quantization, lora=LoraConfig(rank=4, **lora))


def trained(load: Any, config: ModelConfig, tokenizer: PreTrainedTokenizerBase, into: Path) -> None:
    """The run's model, saved by `merge` of its config."""
    torch.manual_seed(0)
    model = load(config, tokenizer, PLACEMENT)
    with torch.no_grad():
        for weight in model.trained().values():
            weight.add_(0.05 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(1)))
    save_model(model, tokenizer, into)


def both(load: Any, config: ModelConfig, tokenizer: PreTrainedTokenizerBase, folder: Path) -> tuple[str, str]:
    """The folders that the same run leaves with its adapter merged and apart."""
    for name in (True, False):
        trained(load, replace(config, lora=replace(config.lora, merge=name)), tokenizer, folder / str(name))
    return str(folder / "True"), str(folder / "False")


@torch.no_grad()
def logits(hf: Any) -> Tensor:
    return hf(IDS).logits


@pytest.mark.parametrize("kind", KINDS)
def test_apart_and_merged_are_one_model(
    kind: str, base: Path, tokenizer: PreTrainedTokenizerBase, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    merged, apart = both(load_language_model, asked(base, **KINDS[kind]), tokenizer, tmp_path)
    wanted = logits(load_frozen_language_model(ModelConfig(path=merged), tokenizer, PLACEMENT).hf)
    for folder in (apart, f"{merged}/adapter"):
        model = load_frozen_language_model(ModelConfig(path=folder), tokenizer, PLACEMENT)
        assert not any(map(is_quantized, model.modules()))
        torch.testing.assert_close(logits(model.hf), wanted, rtol=0, atol=1e-4)
        bits = 8 if kind == "int8" else 4
        assert (
            f"the base of the adapter in {folder} is read as {bits} bits hold it, on which it was trained"
            in " ".join(capsys.readouterr().out.split())
        )
    (Path(apart) / NOTE).unlink()  # as if it were nothing: the model would be another
    other = logits(load_frozen_language_model(ModelConfig(path=apart), tokenizer, PLACEMENT).hf)
    assert (other - wanted).abs().max() > 0.1


@pytest.mark.parametrize("kind", ["nf4", "dora", "dora on whole weights"])
def test_what_a_run_gives_to_load_is_packed_likewise(
    kind: str, base: Path, tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    lora = KINDS.get(kind, {"quantization": Quantization.none, "dora": True})
    merged, apart = both(load_language_model, asked(base, **lora), tokenizer, tmp_path)
    (tmp_path / "run").mkdir()
    Path(apart).rename(tmp_path / "run" / "model")
    model, _ = Run(tmp_path / "run").load()
    assert any(map(is_quantized, model.modules())) == (kind in KINDS)
    keep_packing(model)
    torch.testing.assert_close(logits(model), logits(AutoModelForCausalLM.from_pretrained(merged)), rtol=0, atol=1e-4)


def test_a_reward_model_s_too(base: Path, tokenizer: PreTrainedTokenizerBase, tmp_path: Path) -> None:
    """In bfloat16, to its rounding."""
    merged, apart = both(load_scalar_model, asked(base, Quantization.nf4), tokenizer, tmp_path)
    narrow = placement_of(DistributedConfig(device=Device.cpu, precision=Precision.bfloat16))
    for placement, near in ((PLACEMENT, 1e-4), (narrow, 0.05)):
        one, other = (
            load_frozen_reward_model(ModelConfig(path=path), tokenizer, placement, key="reward.path")
            for path in (merged, apart)
        )
        with torch.autocast("cpu", torch.bfloat16, enabled=placement is narrow):
            torch.testing.assert_close(logits(one.hf), logits(other.hf), rtol=near, atol=near)


def test_what_a_soft_prompt_stands_before_is_what_it_was(
    base: Path, tokenizer: PreTrainedTokenizerBase, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = ModelConfig(path=str(base), quantization=Quantization.nf4, soft_prompt=SoftPromptConfig(tokens=3))
    trained(load_language_model, config, tokenizer, tmp_path / "prompt")
    told = "was trained on a base that was packed: model.quantization=nf4 is how"
    for quantization, is_told in ((Quantization.nf4, False), (Quantization.int8, True)):
        on = ModelConfig(path=str(base), quantization=quantization, adapter=str(tmp_path / "prompt"))
        load_language_model(replace(on, soft_prompt=SoftPromptConfig(tokens=3)), tokenizer, PLACEMENT)
        assert (told in " ".join(capsys.readouterr().out.split())) == is_told
    found = load_frozen_language_model(ModelConfig(path=str(tmp_path / "prompt")), tokenizer, PLACEMENT)
    packed: Any = AutoModelForCausalLM.from_pretrained(
        base, quantization_config=BitsAndBytesConfig(**ASKED[Quantization.nf4])
    )
    keep_packing(packed)
    wanted = packed.dequantize(dtype=torch.float32).state_dict()
    names = {name for name, _ in found.hf.named_parameters()} & wanted.keys()
    assert len(names) > 5
    for name in names:
        is_turned = isinstance(found.hf.get_submodule(name.rpartition(".")[0]), Conv1D) and name.endswith("weight")
        weight = found.hf.get_parameter(name)
        assert torch.equal(weight.T if is_turned else weight, wanted[name]), name


@pytest.mark.parametrize("bits", [{"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}, {"load_in_8bit": True}])
def test_on_a_base_that_comes_packed_it_is_not_rounded_into_it(
    bits: dict[str, Any], base: Path, tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    packed: Any = AutoModelForCausalLM.from_pretrained(base, quantization_config=BitsAndBytesConfig(**bits))
    packed.save_pretrained(tmp_path / "packed")
    tokenizer.save_pretrained(tmp_path / "packed")
    config = asked(tmp_path / "packed", Quantization.none)
    merged, apart = both(load_language_model, config, tokenizer, tmp_path)
    assert not (Path(apart) / NOTE).exists()  # its base's own folder says it
    wanted = logits(load_frozen_language_model(ModelConfig(path=merged), tokenizer, PLACEMENT).hf)
    model = load_frozen_language_model(ModelConfig(path=apart), tokenizer, PLACEMENT)
    torch.testing.assert_close(logits(model.hf), wanted, rtol=0, atol=1e-4)
    assert not any(map(is_quantized, model.modules()))
    for rank in (0, 4):  # in whole weights all of them train, or an adapter on them
        begun = load_language_model(ModelConfig(path=apart, lora=LoraConfig(rank=rank)), tokenizer, PLACEMENT)
        assert (len(begun.trained()) == len(list(begun.parameters()))) == (rank == 0)
        save_model(begun, tokenizer, tmp_path / f"on{rank}")
        saved = AutoModelForCausalLM.from_pretrained(tmp_path / f"on{rank}")
        torch.testing.assert_close(logits(saved), wanted, rtol=0, atol=1e-4)
    rule = r"^distributed\.zero must be null, 0, 1 or 2 for model\.path .* unpacked to merge it, got 3 \(a run with mod"
    with pytest.raises(ConfigError, match=rule):
        load_language_model(ModelConfig(path=apart), tokenizer, placement_of(DistributedConfig(zero=3)))


def test_one_of_whole_weights_notes_nothing_and_is_told_where_it_goes_on_without(
    base: Path, tokenizer: PreTrainedTokenizerBase, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _, apart = both(load_language_model, asked(base, Quantization.nf4), tokenizer, tmp_path)
    for quantization, is_told in ((Quantization.none, True), (Quantization.nf4, False)):
        shape = LoraConfig(rank=4, merge=False)
        config = ModelConfig(path=str(base), adapter=apart, quantization=quantization, lora=shape)
        model = load_language_model(config, tokenizer, PLACEMENT)
        assert (
            "trained on a base that was packed: model.quantization=nf4 is how"
            in " ".join(capsys.readouterr().out.split())
        ) == is_told
        save_model(model, tokenizer, tmp_path / "on")
        assert (tmp_path / "on" / NOTE).exists() != is_told  # written again in the same place


def test_without_the_package_it_is_one_line_before_anything_is_read(
    base: Path, tokenizer: PreTrainedTokenizerBase, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, apart = both(load_language_model, asked(base, Quantization.nf4), tokenizer, tmp_path)
    monkeypatch.setattr(packages, "is_installed", lambda name: False)
    data, train = DataConfig(train=TrainSource("a.jsonl")), TrainConfig(max_steps=1)
    run = SFTConfig(model=ModelConfig(path=apart), data=data, train=train)
    with pytest.raises(
        ConfigError, match=r"^model\.path '.*' was trained on a base packed by bitsandbytes, which is not "
    ):
        packages.require_packages(run)


def test_on_one_backbone_the_base_is_packed_as_it_was(
    base: Path, tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    _, apart = both(load_scalar_model, asked(base, Quantization.nf4), tokenizer, tmp_path)
    policy = asked(base, Quantization.nf4)
    require_shareable("reward.path", Path(apart), policy)
    for other in (Quantization.none, Quantization.int8):
        rule = rf"^model\.quantization must be nf4 with roles\.share=lora and reward\.path=.* got '{other.value}'$"
        with pytest.raises(ConfigError, match=rule):
            require_shareable("reward.path", Path(apart), replace(policy, quantization=other))


@pytest.mark.parametrize("content", ["[]", "{", {"quant_method": "gptq"}, {"quant_method": "bitsandbytes"}])
def test_a_damaged_note_is_one_line(
    content: Any, base: Path, tokenizer: PreTrainedTokenizerBase, tmp_path: Path
) -> None:
    config = replace(asked(base, Quantization.nf4), lora=LoraConfig(rank=4, merge=False))
    trained(load_language_model, config, tokenizer, tmp_path / "apart")
    (tmp_path / "apart" / NOTE).write_text(content if isinstance(content, str) else json.dumps(content))
    with pytest.raises(ConfigError, match=rf"^model\.path: .*{NOTE}"):
        load_frozen_language_model(ModelConfig(path=str(tmp_path / "apart")), tokenizer, PLACEMENT)
