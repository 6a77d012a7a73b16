"""A model out of a folder in Hugging Face form, with all its weights found there or a line that says which is not."""

from typing import Any

import torch
from transformers import AutoConfig, PreTrainedModel
from transformers.utils import logging as transformers_logging

from alignment.config.parts import ConfigError, ModelConfig
from alignment.distributed.placement import Placement

transformers_logging.disable_progress_bar()  # weights of a file at a time are not progress that anybody follows
transformers_logging.set_verbosity_error()  # what a folder lacks is asked for, and told, in from_folder


def from_folder(auto: Any, config: ModelConfig, placement: Placement, **settings: Any) -> PreTrainedModel:
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
        raise ConfigError(f"{where}: no model ({one_line(error)})") from error
    made_anew = set() if is_scalar_folder(config.path) else {"score.weight"}
    lacking = sorted({*found["missing_keys"], *(str(key[0]) for key in found["mismatched_keys"])} - made_anew)
    if lacking:
        raise ConfigError(
            f"model.path must hold all weights of this {type(hf).__name__}, got no {lacking[0]} in {config.path!r}"
        )
    return hf


def is_scalar_folder(path: str | None) -> bool:
    if path is None:
        return False
    architectures = AutoConfig.from_pretrained(path).architectures or []
    return any(name.endswith("ForSequenceClassification") for name in architectures)


def one_line(error: Exception) -> str:
    text = " ".join(str(error).split())
    return text if len(text) <= 200 else f"{text[:200]}..."
