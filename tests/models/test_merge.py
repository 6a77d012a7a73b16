"""An adapter's folder as a model: its base with the adapter merged, as peft's own model says it is."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, PreTrainedTokenizerBase

from alignment.config.adapter import NOT_MERGED, NOT_READ
from alignment.config.errors import ConfigError
from alignment.config.model import LoraConfig, ModelConfig
from alignment.config.saved_prompt import KINDS as KINDS_OF_SOFT_PROMPTS
from alignment.distributed.placement import WHOLE
from alignment.models.adapters import adapter_off
from alignment.models.load import load_language_model, load_reward_model, load_scalar_model, save_model
from alignment.models.tokenizer import load_tokenizer

IDS = torch.tensor([[5, 6, 7, 8, 2]])
KINDS: dict[str, Callable[[], Any]] = {
    "lora": lambda: peft.LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj", "down_proj"]),
    "rslora on embeddings": lambda: peft.LoraConfig(r=4, use_rslora=True, target_modules=["embed_tokens", "lm_head"]),
    "dora": lambda: peft.LoraConfig(r=4, use_dora=True, target_modules=["q_proj"]),
    "loha": lambda: peft.LoHaConfig(r=4, target_modules=["v_proj"]),
    "ia3": lambda: peft.IA3Config(target_modules=["k_proj", "down_proj"], feedforward_modules=["down_proj"]),
    "whole modules": lambda: peft.LoraConfig(r=4, target_modules=["q_proj"], modules_to_save=["lm_head", "norm"]),
}


@pytest.fixture
def base(tiny_init: dict[str, Any], tokenizer: PreTrainedTokenizerBase, tmp_path: Path) -> Path:
    torch.manual_seed(0)
    save_model(load_language_model(ModelConfig(init=tiny_init), tokenizer, WHOLE), tokenizer, tmp_path / "base")
    return tmp_path / "base"


def adapter(hf: Any, config: Any, folder: Path) -> Tensor:
    """Train an adapter as peft would (here: stir it), save it, and return what peft's model then says."""
    model = peft.get_peft_model(hf, config).eval()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
        model.save_pretrained(folder)
        return model(IDS).logits


@pytest.mark.parametrize("kind", KINDS)
def test_an_adapter_s_folder_is_the_adapted_model(base: Path, tokenizer: PreTrainedTokenizerBase, kind: str) -> None:
    want = adapter(AutoModelForCausalLM.from_pretrained(base), KINDS[kind](), base.parent / "adapter")
    assert (want - AutoModelForCausalLM.from_pretrained(base)(IDS).logits).abs().max() > 0.01
    config = ModelConfig(path=str(base.parent / "adapter"))
    model = load_language_model(config, tokenizer, WHOLE)
    torch.testing.assert_close(model.hf(IDS).logits, want, rtol=1e-4, atol=1e-4)
    assert type(model.hf).__name__ == "LlamaForCausalLM" and all(p.requires_grad for p in model.parameters())
    assert not any("lora" in name or "base_layer" in name for name in model.state_dict())
    assert load_tokenizer(config).get_vocab() == tokenizer.get_vocab()  # of its base


def test_an_adapter_beside_whole_weights_lies_on_those(
    base: Path, tokenizer: PreTrainedTokenizerBase, capsys: pytest.CaptureFixture[str]
) -> None:
    """Whatever base it names: so transformers reads such a folder."""
    want = adapter(AutoModelForCausalLM.from_pretrained(base), KINDS["lora"](), base.parent / "adapter")
    for file in (base.parent / "adapter").glob("adapter*"):
        shutil.copy(file, base)
    model = load_language_model(ModelConfig(path=str(base)), tokenizer, WHOLE)
    torch.testing.assert_close(model.hf(IDS).logits, want, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(AutoModelForCausalLM.from_pretrained(base)(IDS).logits, want, rtol=1e-4, atol=1e-4)
    assert "beside whole weights" in " ".join(capsys.readouterr().out.split())


def test_a_new_adapter_on_an_adapted_model(base: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    """The reference is the adapted model, and what is saved is the base with both adapters, whoever reads it. The new
    one does not lie beside it alone: peft, told of the other's folder as its base, would put it in that one's place."""
    want = adapter(AutoModelForCausalLM.from_pretrained(base), KINDS["lora"](), base.parent / "adapter")
    config = ModelConfig(path=str(base.parent / "adapter"), lora=LoraConfig(rank=2))
    model = load_language_model(config, tokenizer, WHOLE)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.fill_(0.1)
    with adapter_off(model.hf):
        torch.testing.assert_close(model.hf(IDS).logits, want, rtol=1e-4, atol=1e-4)
    on = model.hf(IDS).logits
    assert (on - want).abs().max() > 0.01
    out = base.parent / "out"
    save_model(model, tokenizer, out)
    again = load_language_model(ModelConfig(path=str(out)), tokenizer, WHOLE)
    torch.testing.assert_close(again.hf(IDS).logits, on, rtol=1e-4, atol=1e-4)
    theirs = AutoModelForCausalLM.from_pretrained(out, dtype=torch.float32)
    torch.testing.assert_close(theirs(IDS).logits, on, rtol=1e-4, atol=1e-4)
    assert not list(out.rglob("adapter*"))


def test_a_reward_model_s_adapter_has_its_head(base: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    """Ours, and peft's own: the head is trained in full and lies beside the adapter."""
    torch.manual_seed(0)
    config = ModelConfig(path=str(base), lora=LoraConfig(rank=2))
    mine = load_scalar_model(config, tokenizer, WHOLE)
    save_model(mine, tokenizer, base.parent / "reward")
    model = load_reward_model(
        ModelConfig(path=str(base.parent / "reward/adapter")), tokenizer, WHOLE, key="reward.path"
    )
    torch.testing.assert_close(model.hf(IDS).logits, mine.hf(IDS).logits, rtol=1e-4, atol=1e-4)
    plain = AutoModelForSequenceClassification.from_pretrained(base, num_labels=1, pad_token_id=0)
    peft_config = peft.LoraConfig(r=2, target_modules=["q_proj"], task_type="SEQ_CLS")
    want = adapter(plain, peft_config, base.parent / "theirs")
    model = load_reward_model(ModelConfig(path=str(base.parent / "theirs")), tokenizer, WHOLE, key="reward.path")
    torch.testing.assert_close(model.hf(IDS).logits, want, rtol=1e-4, atol=1e-4)


def test_an_adapter_that_was_moved_with_its_base_is_found(
    base: Path, tokenizer: PreTrainedTokenizerBase, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(base.parent)
    want = adapter(AutoModelForCausalLM.from_pretrained("base"), KINDS["lora"](), Path("adapter"))
    (base.parent / "elsewhere").mkdir()
    monkeypatch.chdir(base.parent / "elsewhere")
    model = load_language_model(ModelConfig(path=str(base.parent / "adapter")), tokenizer, WHOLE)
    torch.testing.assert_close(model.hf(IDS).logits, want, rtol=1e-4, atol=1e-4)


def broken(folder: Path, how: str) -> None:
    file = folder / "adapter_config.json"
    text, weights = file.read_text(), folder / "adapter_model.safetensors"
    if how == "base":
        file.write_text(text.replace(str(folder.parent / "base"), "some/model"))
    elif how == "kind":
        file.write_text(text.replace('"LORA"', '"PREFIX_TUNING"'))
    elif how == "unknown":
        file.write_text(text.replace('"LORA"', '"NEXT_YEARS"'))
    elif how == "rank":
        file.write_text(text.replace('"r": 4', '"r": 5'))
    elif how == "cut":
        weights.write_bytes(weights.read_bytes()[:100])
    else:
        weights.unlink()


@pytest.mark.parametrize(
    ("how", "match"),
    [
        ("base", r"base_model_name_or_path in '.*adapter_config\.json' must be the folder .*, got 'some/model'$"),
        (
            "kind",
            r"must be an adapter that peft can merge into its base, got PREFIX_TUNING in '.*'; keys and values that",
        ),
        ("unknown", r"must be an adapter that peft can merge into its base, got 'NEXT_YEARS' in"),
        ("rank", r"the adapter in '.*' does not fit its base \(.*size mismatch"),
        ("cut", r"'.*adapter_model\.safetensors' is cut or damaged"),
        ("lost", r"no adapter in '.*': neither adapter_model\.safetensors nor adapter_model\.bin"),
    ],
)
def test_an_adapter_that_cannot_be_read_is_one_line(
    base: Path, tokenizer: PreTrainedTokenizerBase, how: str, match: str
) -> None:
    adapter(AutoModelForCausalLM.from_pretrained(base), KINDS["lora"](), base.parent / "adapter")
    broken(base.parent / "adapter", how)
    with pytest.raises(ConfigError, match=rf"^model\.path:? {match}") as caught:
        load_language_model(ModelConfig(path=str(base.parent / "adapter")), tokenizer, WHOLE)
    assert "\n" not in str(caught.value)


def test_all_kinds_that_stand_before_a_text_are_known() -> None:
    """Of all that the installed peft has."""
    of_prompts = {
        kind.value
        for kind, config in peft.PEFT_TYPE_TO_CONFIG_MAPPING.items()
        if issubclass(config, peft.PromptLearningConfig)
    }
    assert {*NOT_READ, *KINDS_OF_SOFT_PROMPTS} == of_prompts
    assert set(NOT_MERGED) <= set(peft.PeftType.__members__) - of_prompts


def test_an_adapter_that_depends_on_what_is_read_is_refused(base: Path, tokenizer: PreTrainedTokenizerBase) -> None:
    config = peft.LilyConfig(r=4, target_modules=["q_proj"])
    adapter(AutoModelForCausalLM.from_pretrained(base), config, base.parent / "adapter")
    with pytest.raises(ConfigError, match=r"must be an adapter that peft can merge into its base, got LILY in '.*'$"):
        load_language_model(ModelConfig(path=str(base.parent / "adapter")), tokenizer, WHOLE)
