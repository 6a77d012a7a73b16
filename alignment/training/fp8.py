"""Whether a run's products can be in 8 bits, by its device and by its model's shape, before a weight is read."""

from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from alignment.config.folders import find_model
from alignment.config.fp8 import Fp8
from alignment.config.run import RunConfig, TrainingConfig
from alignment.config.supervised import ScalarConfig
from alignment.distributed.precision import require_fp8_device
from alignment.models.folder import architecture_of
from alignment.models.fp8 import require_fp8_layers
from alignment.models.init import config_of


def require_fp8(config: RunConfig) -> None:
    """Raises:
    ConfigError: the device has no such products, or the model has layers that do not take them. Of another reference,
        and a critic of another folder, who reads them tells.
    """
    if not isinstance(config, TrainingConfig) or config.model.fp8 is Fp8.none:
        return
    require_fp8_device(config.model.fp8, config.distributed)
    model, shape = config.model, config_of(config.model)
    auto: Any = AutoModelForSequenceClassification if isinstance(config, ScalarConfig) else AutoModelForCausalLM
    where, folder = "model.init", None
    if model.path is not None:
        folder = find_model(model.path, "model.path", trusted=model.trust_remote_code)
        where = f"model.path {model.path!r}"
    architecture_of(auto, shape, where, folder)
    with torch.device("meta"):
        hf = auto.from_config(shape, trust_remote_code=folder is not None and folder.trusted)
    require_fp8_layers(hf, model.fp8)
