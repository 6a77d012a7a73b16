"""What DeepSpeed is told: our config in its words, and the user's own JSON merged into it."""

import json
from math import log2
from pathlib import Path
from typing import Any, NoReturn

from alignment.config.distributed import Device, DistributedConfig, Offload, Precision
from alignment.config.errors import ConfigError
from alignment.config.optimizer import OptimizerName
from alignment.config.train import TrainConfig
from alignment.distributed.collectives import pick_device
from alignment.distributed.loss_scale import LossScale, loss_scale_of
from alignment.distributed.precision import HALVES, precision_of
from alignment.terminal import say

KEY = "distributed.deepspeed_config"
AUTO = "auto"  # transformers' word for "as the trainer says"
OURS = {  # what is decided elsewhere -> the key that decides it
    "zero_optimization.stage": "distributed.zero",
    "zero_optimization.offload_optimizer.device": "distributed.offload_optimizer",
    "zero_optimization.offload_optimizer.nvme_path": "distributed.nvme_path",
    "zero_optimization.offload_param.device": "distributed.offload_param",
    "zero_optimization.offload_param.nvme_path": "distributed.nvme_path",
    "torch_autocast.enabled": "distributed.precision",
    "torch_autocast.dtype": "distributed.precision",
    "bf16.enabled": "distributed.precision",
    "fp16.enabled": "distributed.precision",
    "gradient_clipping": "train.max_grad_norm",
    "train_batch_size": "batch.size",
    "train_micro_batch_size_per_gpu": "batch.max_tokens",
    "gradient_accumulation_steps": "batch.max_tokens",
    "managed_gradient_accumulation": "batch.max_tokens",
    "sequence_parallel_size": "distributed.sequence_parallel",
    "gradient_allreduce_op": "batch.size",
    "prescale_gradients": "batch.size",
    "gradient_predivide_factor": "batch.size",
}
TYPES = {OptimizerName.adamw: ("adam", "adamw")}  # with "adam_w_mode", which is on where nothing is said
"""DeepSpeed's names of an optimizer, where they are others than ours."""
SENT = ("fp32", "fp16", "bf16")  # what gradients may cross the processes in, as DeepSpeed names it
LEAST, MOST = 2**24, 200_000_000  # elements that are sent at once, of a model that has as many
SCHEDULERS = {"WarmupLR": "constant", "WarmupDecayLR": "linear", "WarmupCosineLR": "cosine"}  # -> train.schedule


def deepspeed_settings(
    config: DistributedConfig, *, max_grad_norm: float | None, numbers: tuple[int, int] | None = None
) -> dict[str, Any]:
    """DeepSpeed's settings for an engine.

    Args:
        max_grad_norm: None where nothing trains.
        numbers: how many weights the model has, and how many of them train; None where no engine is made.

    Raises:
        ConfigError: `distributed.deepspeed_config` is no JSON, or says otherwise than a key of ours; names both keys.
    """
    assert config.zero is not None
    ours = _ours(config, max_grad_norm)
    if numbers is not None:
        ours["zero_optimization"] |= _buckets(config, *numbers)
    if config.deepspeed_config is None:
        return ours
    raw = _read(config.deepspeed_config)
    raw.pop("optimizer", None)  # these two are the trainer's, and checked by `check_trainer`
    raw.pop("scheduler", None)
    if isinstance(raw.get("fp16"), dict) and (scaling := loss_scale_of(config)) is not None:
        _check_scaling(raw.pop("fp16"), scaling)
    if max_grad_norm is None:  # what is said there is for the models that train
        raw.pop("gradient_clipping", None)
    merged = _merged(ours, raw, "")
    sent = merged.get("communication_data_type")
    if sent is not None and str(sent).lower() not in SENT:
        raise ConfigError(f"{KEY}: its communication_data_type must be one of {', '.join(SENT)}, or null, got {sent!r}")
    return merged


def check_trainer(path: str, train: TrainConfig) -> None:
    """DeepSpeed's "optimizer" and "scheduler" do not act: `train` does. What they say otherwise is an error, and "auto"
    is, as in transformers, what the trainer says.

    Raises:
        ConfigError: a value is neither "auto" nor that of `train`; names both keys.
    """
    raw = _read(path)
    steps, own = train.warmup_steps if train.warmup_ratio == 0 else None, train.constants
    blocks: dict[str, dict[str, tuple[Any, str]]] = {
        "optimizer": {
            "lr": (train.learning_rate, "train.learning_rate"),
            "betas": (own.betas and list(own.betas), "train.betas"),
            "eps": (own.eps, "train.eps"),
            "weight_decay": (train.weight_decay, "train.weight_decay"),
            "momentum": (own.momentum, "train.momentum"),
            "adam_w_mode": (True, "the trainer"),
            "bias_correction": (True, "the trainer"),
        },
        "scheduler": {
            "warmup_min_lr": (0, "the trainer"),
            "warmup_max_lr": (train.learning_rate, "train.learning_rate"),
            "warmup_num_steps": (steps, "train.warmup_steps"),
            "warmup_type": ("linear", "the trainer"),
            "cos_min_ratio": (train.min_learning_rate / train.learning_rate, "train.min_learning_rate"),
            "total_num_steps": (train.max_steps, "train.max_steps"),
        },
    }
    for block, ours in blocks.items():
        given = raw.get(block)
        if given is None or given == AUTO:
            continue
        params = given.get("params", {}) if isinstance(given, dict) else None
        if not isinstance(params, dict):
            raise ConfigError(f"{KEY}: its {block} must hold a type and params, got {given!r}")
        _check_type(block, given.get("type", AUTO), train)
        for name, value in params.items():
            if name not in ours and value != AUTO:
                raise ConfigError(f"{KEY}: its {block}.params.{name} is for train to say, which has no such key")
            if value not in (AUTO, ours.get(name, (AUTO,))[0]):
                known, key = ours[name]
                _refuse(f"{block}.params.{name}", key, known, value)


def _check_scaling(raw: dict[str, Any], scaling: LossScale) -> None:
    """DeepSpeed's "fp16" does not act, for the engine scales the loss: it may say what that does."""
    ours = {
        "enabled": (True, "distributed.precision"),
        "loss_scale": (0, "distributed.precision"),  # its word for a dynamic one
        "initial_scale_power": (log2(scaling.scale), "distributed.initial_loss_scale"),
        "loss_scale_window": (scaling.window, "distributed.loss_scale_window"),
        "hysteresis": (1, "distributed.precision"),
        "min_loss_scale": (1, "distributed.precision"),
    }
    for name, value in raw.items():
        known, key = ours.get(name, (None, "distributed.precision"))
        if value not in (AUTO, known):
            _refuse(f"fp16.{name}", key, known, value)


def _check_type(block: str, kind: Any, train: TrainConfig) -> None:
    name = train.optimizer
    if block == "optimizer" and str(kind).lower() not in (AUTO, *TYPES.get(name, (name.value,))):
        _refuse("optimizer.type", "train.optimizer", name.value, kind)
    elif block == "scheduler" and kind != AUTO:
        if kind not in SCHEDULERS:
            _refuse("scheduler.type", "train.schedule", train.schedule.value, kind)
        if SCHEDULERS[kind] != train.schedule.value:
            say(f"{KEY}: its scheduler is {kind}, and train.schedule={train.schedule.value} is what runs")


def _ours(config: DistributedConfig, max_grad_norm: float | None) -> dict[str, Any]:
    zero: dict[str, Any] = {"stage": config.zero}
    for name, offload in (("offload_optimizer", config.offload_optimizer), ("offload_param", config.offload_param)):
        if offload is not Offload.none:
            zero[name] = {"device": offload.value}
            if offload is Offload.nvme:
                zero[name]["nvme_path"] = config.nvme_path
    settings: dict[str, Any] = {
        "train_micro_batch_size_per_gpu": 1,  # it only counts samples with it; ours differ from step to step
        # A step ends where we say so, after however many micro-batches. Under ZeRO 1 the last one's backward pass is
        # told beforehand, as it can be of what DeepSpeed manages alone.
        "managed_gradient_accumulation": config.zero == 1,
        "zero_optimization": zero,
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        # Under ZeRO 0 the engine clips on its own, for the norm's sake.
        "gradient_clipping": 0.0 if max_grad_norm in (None, float("inf")) or config.zero == 0 else max_grad_norm,
    }
    if (precision := precision_of(config)) in HALVES:
        # No module's weights are named here: the engine says it of each weight (`send_narrow`).
        settings["torch_autocast"] = {"enabled": True, "dtype": precision.value, "lower_precision_safe_modules": []}
        settings["communication_data_type"] = {Precision.bfloat16: "bf16", Precision.float16: "fp16"}[precision]
    return settings


def _buckets(config: DistributedConfig, num_weights: int, num_trained: int) -> dict[str, Any]:
    """How much is sent at once, by the size of the model where DeepSpeed has constants: gradients while those of the
    layers below are computed, and weights while those of the layer before are computed with."""
    sizes: dict[str, Any] = {}
    if num_trained:
        sizes["reduce_bucket_size"] = _share(num_trained, 32)  # about a layer
    if config.zero == 3:
        sizes["stage3_prefetch_bucket_size"] = _share(num_weights, 128)  # about a matrix
    if config.zero in (1, 2) and config.offload_optimizer is Offload.none and _is_on_gpu(config):
        sizes["overlap_comm"] = True  # what DeepSpeed does by itself under ZeRO 3 alone
    return sizes


def _share(number: int, parts: int) -> int:
    """Of so many weights; what is smaller than `LEAST` waits longer for the network than it takes to cross it."""
    return min(number, max(number // parts, LEAST), MOST)


def _is_on_gpu(config: DistributedConfig) -> bool:
    return config.device is Device.cuda or pick_device(config.device).type == "cuda"


def _read(path: str) -> dict[str, Any]:
    try:
        raw = json.loads(Path(path).read_text())
    except (OSError, ValueError) as error:
        raise ConfigError(f"distributed.deepspeed_config must be a JSON file ({error}), got {path!r}") from error
    if not isinstance(raw, dict):
        raise ConfigError(f"distributed.deepspeed_config must hold keys and values, got {path!r}")
    return raw


def _merged(ours: dict[str, Any], raw: dict[str, Any], prefix: str) -> dict[str, Any]:
    merged = dict(ours)
    for key, value in raw.items():
        name = f"{prefix}{key}"
        if value == AUTO:
            continue
        if name in OURS:
            _check(name, value, ours.get(key))
        elif isinstance(value, dict):
            merged[key] = _merged(ours.get(key, {}), value, f"{name}.")
        else:
            merged[key] = value
    return merged


def _check(name: str, value: Any, ours: Any) -> None:
    is_off = value in (False, None, "none") and ours is None
    if value != ours and not is_off:
        _refuse(name, OURS[name], ours, value)


def _refuse(name: str, key: str, ours: Any, value: Any) -> NoReturn:
    raise ConfigError(f"{KEY}: its {name} is for {key} to say, which makes it {ours!r}, got {value!r}")
