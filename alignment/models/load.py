"""Models: from a folder in Hugging Face form or from a config, and back into a folder."""

from dataclasses import replace
from pathlib import Path

import torch
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    PreTrainedTokenizerBase,
)

from alignment.config.errors import ConfigError, require
from alignment.config.folders import ModelFolder, find_model
from alignment.config.hub import located
from alignment.config.model import LoraConfig, ModelConfig
from alignment.config.model_kinds import no_language_model
from alignment.config.saved_prompt import is_soft_prompt, saved_prompt
from alignment.distributed.placement import Placement
from alignment.models.adapters import is_on_adapter, lora_layers, merged_state, merged_weights
from alignment.models.checks import check_logits, check_scores, require_weights
from alignment.models.folder import dtype_of, from_folder, held_frozen, is_scalar_folder, read_config
from alignment.models.heads import LanguageModel, ScalarModel
from alignment.models.init import from_init
from alignment.models.prepare import placed
from alignment.models.quantized import as_read, require_adapter
from alignment.models.routers import has_routers, router_weight
from alignment.models.save import write_weights
from alignment.models.scalar_head import draw_head, fill_head, head_name
from alignment.models.tokenizer import with_padding_apart
from alignment.models.vocabulary import fit_vocabulary
from alignment.models.weight_dtype import forwards_in_float32


def load_language_model(config: ModelConfig, tokenizer: PreTrainedTokenizerBase, placement: Placement) -> LanguageModel:
    """To train: a causal LM from `model.path`, or a random one of `model.init`; with an adapter where one is asked for.

    Args:
        placement: where its weights go as they are read, in a run `placement_of(config.distributed)`. A random model is
            for tests and small recipes: it is drawn whole, as one process draws it, and sharded when it is done.
    """
    return _language_model(config, tokenizer, placement, _trained_in(config, placement, "model.path"))


def load_frozen_language_model(
    config: ModelConfig, tokenizer: PreTrainedTokenizerBase, placement: Placement
) -> LanguageModel:
    """The same, to be read only: its weights are held in what they compute in (`held_frozen`)."""
    model = _language_model(config, tokenizer, placement, held_frozen(config, placement.compute))
    freeze(model)
    return model


def _language_model(
    config: ModelConfig, tokenizer: PreTrainedTokenizerBase, placement: Placement, held: torch.dtype
) -> LanguageModel:
    auto, saved_in = AutoModelForCausalLM, torch.float32
    if config.path is None:
        hf = from_init(auto, config, tokenizer, held)
    else:
        folder = find_model(config.path, "model.path", trusted=config.trust_remote_code)
        _require_language_model(folder)
        hf, lacking = from_folder(auto, config, placement, folder, held)
        saved_in = dtype_of(folder)
        require_weights(lacking, hf, placement, config.path, "model.path")
    fit_vocabulary(hf, tokenizer, config, placement, "model.path")
    tried = LanguageModel(hf, placement)
    with forwards_in_float32(hf, placement):
        check_logits(tried, _where(config, "model.path"))
    weight = router_weight(hf.config.get_text_config(), config.router_loss)
    model = LanguageModel(placed(hf, config, placement), placement, weight, saved_in)
    begins_so = config.adapter is not None or saved_prompt(config) is not None
    model.begins_adapted = begins_so or config.lora.init.adds_at_first
    model.keeps_base, model.saves_whole = config.lora.merge_every == 0, config.lora.merge
    return model


def _where(config: ModelConfig, key: str) -> str:
    return "model.init" if config.path is None else f"{key} {config.path!r}"


def _require_language_model(folder: ModelFolder) -> None:
    """A reward model whose embeddings would be the head lacks no weight of a language model, and is none."""
    if is_scalar_folder(folder):
        raise ConfigError(no_language_model(folder.key, folder.path))


def _trained_in(config: ModelConfig, placement: Placement, key: str) -> torch.dtype:
    """What the weights of a model that trains are held in, but for an adapter's, which are float32.

    Raises:
        ConfigError: they are quantised, and no adapter is asked for; or they are read with a soft prompt.
    """
    if config.path is not None:
        rule = f"{key} must be a model without a soft prompt where it trains, whose weights are read alone"
        require(not is_soft_prompt(located(config.path)), rule, config.path)
        folder = find_model(config.path, key, trusted=config.trust_remote_code)
        require_adapter(as_read(read_config(folder), folder), config, f"{key} {config.path!r}")
    return placement.compute if config.keeps_base else torch.float32


def load_scalar_model(config: ModelConfig, tokenizer: PreTrainedTokenizerBase, placement: Placement) -> ScalarModel:
    """A model with a scalar head, to be trained: for a causal LM's folder a new one, std 1 / sqrt(H + 1)
    (arXiv:2403.17031).

    Args:
        placement: as in `load_language_model`.
    """
    held = _trained_in(config, placement, "model.path")
    return _scalar_model(config, tokenizer, placement, held, "model.path", has_head=False)


def load_reward_model(
    config: ModelConfig, tokenizer: PreTrainedTokenizerBase, placement: Placement, *, key: str
) -> ScalarModel:
    """A model whose scalar head has been trained, from the folder `config.path`, to be trained on.

    Args:
        placement: as in `load_language_model`.
        key: what the folder is called in the config.

    Raises:
        ConfigError: the folder has no scalar head (a causal LM's has none); names `key` and the missing weight.
    """
    return _scalar_model(config, tokenizer, placement, _trained_in(config, placement, key), key, has_head=True)


def load_frozen_reward_model(
    config: ModelConfig, tokenizer: PreTrainedTokenizerBase, placement: Placement, *, key: str
) -> ScalarModel:
    """The same, to be read only: its weights are held in what they compute in, its head in float32."""
    model = _scalar_model(config, tokenizer, placement, placement.compute, key, has_head=True)
    freeze(model)
    return model


def _scalar_model(
    config: ModelConfig,
    tokenizer: PreTrainedTokenizerBase,
    placement: Placement,
    held: torch.dtype,
    key: str,
    *,
    has_head: bool,
) -> ScalarModel:
    auto, one = AutoModelForSequenceClassification, {"num_labels": 1, "pad_token_id": tokenizer.pad_token_id}
    saved_in = torch.float32
    if config.path is None:
        hf = from_init(auto, config, tokenizer, held, **one)
        draw_head(hf, placement)
    else:
        folder = find_model(config.path, key, trusted=config.trust_remote_code)
        hf, lacking = from_folder(auto, config, placement, folder, held, **one)
        saved_in = dtype_of(folder)
        filled, head = fill_head(hf, folder.path, key, placement, lacking), f"{head_name(hf)}.weight"
        lacking = {name: what for name, what in lacking.items() if name not in filled}
        if head in lacking and not has_head and not is_scalar_folder(folder):
            draw_head(hf, placement)
            del lacking[head]
        require_weights(lacking, hf, placement, config.path, key)
    fit_vocabulary(hf, tokenizer, config, placement, key)
    tried = ScalarModel(hf, placement)
    with forwards_in_float32(hf, placement):
        check_scores(tried, _where(config, key))
    weight = router_weight(hf.config.get_text_config(), config.router_loss)
    model = ScalarModel(placed(hf, config, placement), placement, weight, saved_in)
    model.keeps_base, model.saves_whole = config.lora.merge_every == 0, config.lora.merge
    return model


def load_critic(
    path: str | None,
    config: ModelConfig,
    policy: LanguageModel,
    tokenizer: PreTrainedTokenizerBase,
    *,
    key: str = "critic.path",
) -> ScalarModel:
    """The critic: from the folder of a reward model, which `key` names, else the policy's own body with a new scalar
    head. Its weights are where the policy's are."""
    whole = config.lora.modules_to_save
    config = replace(config, lora=replace(config.lora, modules_to_save=[]))  # the policy's
    if path is not None:
        config = replace(config, path=path, adapter=None)
        folder = find_model(path, key, trusted=config.trust_remote_code)
        if not has_routers(read_config(folder)):  # model.router_loss is the policy's
            config = replace(config, router_loss=None)
        return load_reward_model(config, tokenizer, policy.placement, key=key)
    if config.adapter is not None and whole:
        rule = (
            f"{key} must name a reward model with model.adapter={config.adapter}, which trains {', '.join(whole)} whole"
        )
        raise ConfigError(f"{rule} and is no beginning of a critic; model.path={config.adapter} merges it, got null")
    if config.path is not None:
        return load_scalar_model(config, tokenizer, policy.placement)
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
    saved by itself in the folder's `adapter`, in peft's form; where the model `saves_whole` not, it alone, in the
    folder, and so is a soft prompt, in float32. Weights are saved in the dtype that the model came in.
    Who loads a scalar model with transformers gets the score of each text's end, whatever the tokenizer pads with.

    Args:
        write: whether it is this process that writes. All that share the model's weights call it, and one of them
            writes: it gets them on its CPU, where they must fit, one after the other.
    """
    model.activate()
    has_adapter = bool(lora_layers(model.hf)) and model.keeps_base and not is_on_adapter(model.hf)
    if isinstance(model, ScalarModel):
        tokenizer = with_padding_apart(tokenizer)
        model.hf.config.get_text_config().pad_token_id = tokenizer.pad_token_id
    if model.has_soft_prompt:
        from alignment.models.prompt_files import save_soft_prompt

        save_soft_prompt(model.hf, folder, model.placement, write=write)
    elif model.saves_whole or not has_adapter:
        _save_whole(model, folder, write=write)
    if has_adapter:
        from alignment.models.adapter_files import save_adapter

        into = folder / "adapter" if model.saves_whole else folder
        save_adapter(model.hf, into, model.placement, model.saved_in, write=write)
    if write:
        tokenizer.save_pretrained(folder)


def _save_whole(model: LanguageModel | ScalarModel, folder: Path, *, write: bool) -> None:
    """What is made for it is gone when it returns, before anything else is copied."""
    state = merged_state(model.hf, model.placement, dtype=model.saved_in, keep=write)
    if write:
        write_weights(model.hf, state, folder, model.saved_in)


def freeze(model: nn.Module) -> None:
    model.requires_grad_(False)
    model.eval()
