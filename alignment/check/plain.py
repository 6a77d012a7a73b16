"""What a run is compared with: transformers alone, one text at a time, in float32, without anything of this package.

The model is read a second time from its folder, with peft's own reading of adapters, on what transformers packs where
the run does; where there is no folder, or a new adapter lies on what the run packs, its weights are copied.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from peft import PeftConfig, PeftModel, TaskType
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, BitsAndBytesConfig, PreTrainedModel
from transformers.utils import TRANSFORMERS_DYNAMIC_MODULE_NAME

from alignment.config.errors import ConfigError
from alignment.config.folders import find_model
from alignment.config.hub import located
from alignment.config.model import ModelConfig
from alignment.config.packed_base import packing_of
from alignment.data.tokenize import Example
from alignment.distributed.placement import WHOLE
from alignment.models.adapters import merged_state
from alignment.models.folder import read_config
from alignment.models.heads import LanguageModel, ScalarModel, scalar_head
from alignment.models.quantized import ASKED, quantization_of
from alignment.models.rope import scale_rope
from alignment.models.vocabulary import resize

HEAD = "score.weight"
PLAIN: dict[str, Any] = {"dtype": torch.float32, "attn_implementation": "eager"}


def plain_model(model: LanguageModel | ScalarModel, settings: ModelConfig) -> PreTrainedModel:
    """A second model beside `model`, which was loaded by `settings`; a head that was made anew is copied.

    Raises:
        ConfigError: the model is read with a soft prompt.
    """
    if model.soft_prompt() is not None:
        rule = "check compares a model with what transformers makes of its folder, where a soft prompt is no part of it"
        raise ConfigError(f"{rule}: check the run with model.soft_prompt.tokens=0, or its base, got {settings.path!r}")
    is_language = isinstance(model, LanguageModel)
    auto: Any = AutoModelForCausalLM if is_language else AutoModelForSequenceClassification
    labels = {} if is_language else {"num_labels": 1}
    if settings.path is None:
        config = model.hf.config
        hf = auto.from_config(type(config).from_dict(config.to_dict()), **PLAIN)
        hf.load_state_dict(merged_state(model.hf, model.placement))
    else:
        trusted = type(model.hf).__module__.startswith(
            f"{TRANSFORMERS_DYNAMIC_MODULE_NAME}."
        )  # its code has run already
        folder = find_model(settings.path, "model.path")
        apart = [each for each in folder.adapters if each != folder.path]
        where = folder.path if apart else located(settings.path)
        given: dict[str, Any] = labels
        if settings.rope.rope_type is not None or folder.adapters:
            config = scale_rope(read_config(folder), settings.rope, f"model.path {settings.path!r}")
            config.num_labels = 1
            given = {"config": config}
        packing = ASKED.get(settings.quantization)
        beneath = packing_of(apart[0], "model.path") if apart else packing if settings.adapter is not None else None
        if beneath is not None:  # a saved adapter, which peft reads, on what transformers packs once more
            given = {**given, "quantization_config": BitsAndBytesConfig(**beneath)}
        hf, found = auto.from_pretrained(where, output_loading_info=True, trust_remote_code=trusted, **given, **PLAIN)
        if quantization_of(hf.config) is not None:
            hf.dequantize(dtype=torch.float32)
        if HEAD in found["missing_keys"]:
            scalar_head(hf).weight.data.copy_(scalar_head(model.hf).weight)
        for adapter in apart:  # by peft: transformers leaves out what else than two matrices an adapter has (DoRA)
            hf = _merged(hf, adapter)
        size = model.hf.config.get_text_config().vocab_size
        if size > hf.config.get_text_config().vocab_size:  # by model.resize_embeddings
            resize(hf, size, WHOLE)
        if settings.adapter is not None:
            hf = _merged(hf, located(settings.adapter))
        elif packing is not None:  # which rounds the weights that the folder holds
            model.activate()
            hf.load_state_dict(merged_state(model.hf, model.placement))
    hf.eval()
    return hf.to(next(model.parameters()).device)


def _merged(hf: PreTrainedModel, adapter: Path) -> PreTrainedModel:
    """With the adapter in its weights, on whatever head they are."""
    config = PeftConfig.from_pretrained(str(adapter))
    if config.task_type != TaskType.SEQ_CLS:
        config.task_type = None  # by which peft asks the model for what it generates with
    model: Any = PeftModel.from_pretrained(hf, str(adapter), config=config)
    merged: PreTrainedModel = model.merge_and_unload()
    return merged


@torch.no_grad()
def plain_logprobs(hf: PreTrainedModel, prompt: np.ndarray, completion: np.ndarray) -> Tensor:
    """[C] float64 nats on the CPU: of each completion token, behind the prompt and what precedes it."""
    ids = _ids(hf, prompt, completion)
    logits = hf(input_ids=ids, use_cache=False).logits[0, len(prompt) - 1 : -1]
    targets = ids[0, len(prompt) :, None]
    return logits.double().log_softmax(-1).gather(1, targets)[:, 0].cpu()


@torch.no_grad()
def plain_score(hf: PreTrainedModel, prompt: np.ndarray, completion: np.ndarray) -> float:
    """The scalar head on the last token of prompt and completion."""
    hidden = hf.base_model(input_ids=_ids(hf, prompt, completion), use_cache=False).last_hidden_state
    return scalar_head(hf)(hidden[0, -1]).item()


def plain_scores(hf: PreTrainedModel, examples: Sequence[Example]) -> Tensor:
    """[G, n] float32."""
    return torch.tensor([[plain_score(hf, e.prompt_ids, ids) for ids in e.completion_ids] for e in examples])


def _ids(hf: PreTrainedModel, prompt: np.ndarray, completion: np.ndarray) -> Tensor:
    both = np.concatenate([prompt, completion]).astype(np.int64)
    return torch.from_numpy(both)[None].to(next(hf.parameters()).device)
