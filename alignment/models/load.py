"""Tokenizers and models: from a folder in Hugging Face form or from a config, and back into a folder."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import StrictDataclassError
from torch import nn
from transformers import (
    CONFIG_MAPPING,
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import logging as transformers_logging

from alignment.config.parts import ConfigError, LoraConfig, ModelConfig, require
from alignment.models.adapters import add_adapter, lora_layers, merged_state, merged_weights, save_adapter
from alignment.models.heads import LanguageModel, ScalarModel, scalar_head
from alignment.models.placement import WHOLE, Placement
from alignment.models.routers import router_weight
from alignment.models.save import write_weights
from alignment.world import tokenizer_path

transformers_logging.disable_progress_bar()  # weights of a file at a time are not progress that anybody follows
transformers_logging.set_verbosity_error()  # what a folder lacks is asked for, and told, in _from_folder

PAD_NAMES = ("<pad>", "<|pad|>", "<|padding|>", "<|finetune_right_pad_id|>", "<unk>")
"""What a tokenizer that names no pad token may have for it."""


def load_tokenizer(config: ModelConfig) -> PreTrainedTokenizerBase:
    """The tokenizer of `model.tokenizer`, else of `model.path`, else the small one in the package.

    Padding is never told from text by its id, so any piece serves; one is chosen where the tokenizer names none.

    Raises:
        ConfigError: the folder holds no tokenizer, or the tokenizer has no end-of-sequence token to learn.
    """
    folder = config.tokenizer or config.path or str(tokenizer_path())
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder)
    except (OSError, ValueError) as error:
        raise ConfigError(f"model.tokenizer: no tokenizer in {folder!r}: {_one_line(error)}") from error
    if tokenizer.eos_token_id is None:
        raise ConfigError(f"model.tokenizer must have an end-of-sequence token to learn, got {folder!r}")
    if tokenizer.pad_token_id is None:
        vocabulary = tokenizer.get_vocab()
        tokenizer.pad_token = next((name for name in PAD_NAMES if name in vocabulary), tokenizer.eos_token)
    return tokenizer


def load_language_model(
    config: ModelConfig, tokenizer: PreTrainedTokenizerBase, placement: Placement | None = None
) -> LanguageModel:
    """A causal LM from `model.path`, or a random one of `model.init`; with an adapter where one is asked for.

    Args:
        placement: where its weights go as they are read. None: they are whole in this process. A random model is for
            tests and small recipes: it is drawn whole, as one process draws it, and shared out when it is done.
    """
    placement = placement or WHOLE
    hf = (
        _from_folder(AutoModelForCausalLM, config, placement)
        if config.path
        else _from_init(AutoModelForCausalLM, config, tokenizer)
    )
    _check_vocabulary(hf, tokenizer)
    with placement.by_layer(hf):
        _check_logits(LanguageModel(hf))
    weight = router_weight(hf.config.get_text_config(), config.router_loss)
    return LanguageModel(_prepared(hf, config, placement), weight, placement)


def load_scalar_model(
    config: ModelConfig, tokenizer: PreTrainedTokenizerBase, placement: Placement | None = None
) -> ScalarModel:
    """A model with a scalar head: for a causal LM's folder a new one, std 1 / sqrt(H + 1) (arXiv:2403.17031).

    Args:
        placement: as in `load_language_model`.
    """
    placement = placement or WHOLE
    auto, one = AutoModelForSequenceClassification, {"num_labels": 1, "pad_token_id": tokenizer.pad_token_id}
    hf = _from_folder(auto, config, placement, **one) if config.path else _from_init(auto, config, tokenizer, **one)
    head = scalar_head(hf)
    if not _is_scalar_folder(config.path):
        with placement.whole([head.weight], write=True):
            nn.init.normal_(head.weight, std=1 / (head.in_features + 1) ** 0.5)
    _check_vocabulary(hf, tokenizer)
    weight = router_weight(hf.config.get_text_config(), config.router_loss)
    return ScalarModel(_prepared(hf, config, placement), weight, placement)


def load_critic(
    path: str | None, config: ModelConfig, policy: LanguageModel, tokenizer: PreTrainedTokenizerBase
) -> ScalarModel:
    """The critic: from the folder of a reward model, else the policy's own body with a new scalar head. Its weights are
    where the policy's are."""
    if path is not None or config.path is not None:
        return load_scalar_model(replace(config, path=path or config.path), tokenizer, policy.placement)
    critic = load_scalar_model(replace(config, lora=LoraConfig()), tokenizer, policy.placement)
    own = critic.hf.base_model.state_dict(keep_vars=True)
    with torch.no_grad():
        for name, weight in merged_weights(policy.hf.base_model, policy.placement):
            with policy.placement.whole([own[name]], write=True):
                own[name].copy_(weight)
    return critic


def save_model(
    model: LanguageModel | ScalarModel, tokenizer: PreTrainedTokenizerBase, folder: Path, *, write: bool = True
) -> None:
    """Hugging Face form: config, safetensors, tokenizer and chat template. An adapter is merged into the weights, and
    saved by itself in the folder's `adapter`, in peft's form.

    Args:
        write: whether it is this process that writes. All that share the model's weights call it, and one of them
            writes: it gets them on its CPU, where they must fit, one after the other.
    """
    model.activate()
    has_adapter = bool(lora_layers(model.hf))
    state = merged_state(model.hf, model.placement, keep=write)
    if write:
        write_weights(model.hf, state, folder)
    if has_adapter:
        save_adapter(model.hf, folder / "adapter", model.placement, write=write)
    if write:
        tokenizer.save_pretrained(folder)


def freeze(model: nn.Module) -> None:
    model.requires_grad_(False)
    model.eval()


def _from_folder(auto: Any, config: ModelConfig, placement: Placement, **settings: Any) -> PreTrainedModel:
    try:
        with placement.reading():
            hf, found = auto.from_pretrained(
                config.path,
                dtype=torch.float32,
                attn_implementation=config.attention.value,
                output_loading_info=True,
                ignore_mismatched_sizes=True,  # they are found below, by name
                **settings,
            )
    except (OSError, ValueError) as error:
        where = f"model.path {config.path!r} with model.attention={config.attention.value}"
        raise ConfigError(f"{where}: no model ({_one_line(error)})") from error
    made_anew = set() if _is_scalar_folder(config.path) else {"score.weight"}
    lacking = sorted({*found["missing_keys"], *(str(key[0]) for key in found["mismatched_keys"])} - made_anew)
    if lacking:
        raise ConfigError(
            f"model.path must hold all weights of this {type(hf).__name__}, got no {lacking[0]} in {config.path!r}"
        )
    return hf


def _from_init(auto: Any, config: ModelConfig, tokenizer: PreTrainedTokenizerBase, **settings: Any) -> PreTrainedModel:
    ids = {
        "vocab_size": len(tokenizer),
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    kind = config.init["model_type"]
    require(kind in CONFIG_MAPPING, "model.init.model_type must be one that transformers knows", kind)
    try:
        hf_config = AutoConfig.for_model(**{**ids, **config.init, **settings})
    except (ValueError, StrictDataclassError) as error:
        raise ConfigError(f"model.init: {_one_line(error)}, got {config.init}") from error
    unknown = sorted(set(config.init) - set(type(hf_config)().to_dict()) - {"model_type"})
    if unknown:
        raise ConfigError(
            f"model.init.{unknown[0]} is not a field of {type(hf_config).__name__}, got {config.init[unknown[0]]!r}"
        )
    try:
        return auto.from_config(hf_config, attn_implementation=config.attention.value, dtype=torch.float32)
    except ValueError as error:
        raise ConfigError(f"model.init with model.attention={config.attention.value}: {_one_line(error)}") from error


def _prepared(hf: PreTrainedModel, config: ModelConfig, placement: Placement) -> PreTrainedModel:
    """Noise off (a policy whose log-probs change between two forwards has no ratio), checkpointing, adapter."""
    for module in hf.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        for name, value in vars(module).items():  # the rates that attention, experts and layers keep as numbers
            if isinstance(value, float) and ("drop" in name or "jitter" in name):
                setattr(module, name, 0.0)
    if config.gradient_checkpointing:
        hf.activation_checkpointing_enable(activation_checkpointing_kwargs={"use_reentrant": False})
    if config.lora.rank:
        add_adapter(hf, config.lora)
    placement.share_out(hf)
    return hf


def _check_vocabulary(hf: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    size = hf.config.get_text_config().vocab_size
    if len(tokenizer) > size:
        raise ConfigError(f"model.tokenizer has {len(tokenizer)} pieces and the model embeds only {size}")


@torch.no_grad()
@torch.compiler.set_stance("force_eager")  # two tiny texts
def _check_logits(model: LanguageModel) -> None:
    """Two texts of two tokens: our logits are the architecture's, and its first token does not see its second.

    Raises:
        ConfigError: more than a head, or other scales than ours, stands between hidden states and logits; or it does.
    """
    hf = model.hf
    ids = torch.tensor([[0, 1], [0, 2]], device=next(hf.parameters()).device)
    was_training = hf.training
    hf.eval()
    theirs = hf(input_ids=ids, use_cache=False).logits
    ours = model.logits(hf.base_model(input_ids=ids, use_cache=False).last_hidden_state)
    hf.train(was_training)
    if ours.shape != theirs.shape or not torch.allclose(ours, theirs, rtol=1e-3, atol=1e-4):
        raise ConfigError(f"model: the logits of {type(hf).__name__} are not made as this package makes them")
    if not torch.allclose(theirs[0, 0], theirs[1, 0], rtol=1e-3, atol=1e-4):
        raise ConfigError(f"model must see only what is before each token, got {type(hf).__name__}, which sees all")


def _is_scalar_folder(path: str | None) -> bool:
    if path is None:
        return False
    architectures = AutoConfig.from_pretrained(path).architectures or []
    return any(name.endswith("ForSequenceClassification") for name in architectures)


def _one_line(error: Exception) -> str:
    text = " ".join(str(error).split())
    return text if len(text) <= 200 else f"{text[:200]}..."
