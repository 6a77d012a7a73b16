"""Devices, precision, and what processes share of a model."""

from dataclasses import dataclass, field
from enum import Enum
from math import isfinite

from alignment.config.base import Config
from alignment.config.errors import require
from alignment.config.fp8 import Fp8
from alignment.config.marks import INPUT, PLACE
from alignment.config.model import Attention, ModelConfig, Quantization

YEAR = 366 * 24 * 60  # minutes


class Device(str, Enum):
    auto = "auto"
    """On a GPU where there is one, else on the CPU."""
    cpu = "cpu"
    """On the CPU."""
    cuda = "cuda"
    """On a GPU; where there is none, the run is refused."""


class Precision(str, Enum):
    """What forward and backward compute in; weights that train, and their optimizer, are float32 in any."""

    auto = "auto"
    """bfloat16 on a GPU that has it, else float32; which it is, a run says as it starts."""
    float32 = "float32"
    """On a GPU with TF32 products."""
    bfloat16 = "bfloat16"
    """Under autocast."""
    float16 = "float16"
    """Under autocast, with dynamic loss scaling; for GPUs without bfloat16."""


class Offload(str, Enum):
    none = "none"
    """Where the run computes."""
    cpu = "cpu"
    """In the machine's memory."""
    nvme = "nvme"
    """On a disk, under distributed.nvme_path."""


@dataclass(slots=True)
class DistributedConfig(Config):
    device: Device = Device.auto
    """Where the run computes."""
    precision: Precision = Precision.auto
    """What forward and backward compute in; auto: bfloat16 on a GPU that has it, else float32. Weights that train and
    their optimizer are float32."""
    initial_loss_scale: float | None = None
    """Of float16: what the loss is multiplied by at first, so that small gradients are no zeros. Halved by a step whose
    gradient overflows, which is left out; null: 65536."""
    loss_scale_window: int | None = None
    """Of float16: the loss scale is doubled after so many steps in a row without an overflow; null: 2000."""
    deterministic: bool = False
    """Ask for kernels that give the same bits at every run, which a CPU's do without being asked; slower on a GPU."""
    zero: int | None = None
    """DeepSpeed's ZeRO stage, 0 to 3: what the processes shard. Null: plain torch, in one process."""
    sequence_parallel: int = 1
    """Processes that share the tokens of each row, for rows that are too long for one (DeepSpeed Ulysses): each has
    that part of the tokens outside attention, and of the heads inside. It divides the number of processes and the
    heads of the model, which has no other way to see all tokens of a row. Needs distributed.zero."""
    offload_optimizer: Offload = Offload.none
    """Where optimizer states and their float32 weights are kept: cpu needs zero >= 1, nvme zero=3."""
    offload_param: Offload = Offload.none
    """Where weights are kept while no layer uses them: needs zero=3."""
    nvme_path: str | None = field(default=None, metadata=PLACE)
    """A folder on a fast local disk, for an offload to nvme."""
    deepspeed_config: str | None = field(default=None, metadata=INPUT)
    """Further settings in DeepSpeed's own JSON; one that says otherwise than a key of ours is an error."""
    timeout_minutes: float = 30.0
    """A collective that takes longer ends the run."""

    def __post_init__(self) -> None:
        require(self.zero in (None, 0, 1, 2, 3), "distributed.zero must be null, 0, 1, 2 or 3", self.zero)
        rule = "distributed.sequence_parallel must be >= 1"
        require(self.sequence_parallel >= 1, rule, self.sequence_parallel)
        rule = "distributed.sequence_parallel must be 1 without distributed.zero (distributed=zero1, zero2 or zero3), "
        rule += "for it takes several processes"
        require(self.sequence_parallel == 1 or self.zero is not None, rule, self.sequence_parallel)
        is_scaled = self.precision is Precision.float16
        scale, window = self.initial_loss_scale, self.loss_scale_window
        for name, value in (("initial_loss_scale", scale), ("loss_scale_window", window)):
            rule = f"distributed.{name} must be null unless distributed.precision=float16"
            require(value is None or is_scaled, rule, value)
        rule = "distributed.initial_loss_scale must be a finite number >= 1"
        require(scale is None or (scale >= 1 and isfinite(scale)), rule, scale)
        rule = "distributed.initial_loss_scale must be <= 2**127 (1.7e38), or the loss of float32 is infinite by it"
        require(scale is None or scale <= 2.0**127, rule, scale)
        require(window is None or window > 0, "distributed.loss_scale_window must be > 0", window)
        rule = "distributed.deepspeed_config needs distributed.zero"
        require(self.deepspeed_config is None or self.zero is not None, rule, self.deepspeed_config)
        least = {Offload.none: 0, Offload.cpu: 1, Offload.nvme: 3}[self.offload_optimizer]
        rule = f"distributed.offload_optimizer={self.offload_optimizer.value} needs distributed.zero >= {least}"
        require((self.zero or 0) >= least, rule, self.zero)
        rule = f"distributed.offload_param={self.offload_param.value} needs distributed.zero=3"
        require(self.offload_param is Offload.none or self.zero == 3, rule, self.zero)
        uses_nvme = Offload.nvme in (self.offload_optimizer, self.offload_param)
        rule = "distributed.nvme_path goes with an offload to nvme"
        require(uses_nvme == (self.nvme_path is not None), rule, self.nvme_path)
        minutes = self.timeout_minutes
        rule = "distributed.timeout_minutes must be > 0, and of a year at the most"
        require(0 < minutes <= YEAR, rule, minutes)


def require_device(model: ModelConfig, distributed: DistributedConfig) -> None:
    """Raise `ConfigError` where what is asked for is for another device, or has no place in a stage of ZeRO."""
    if model.attention is Attention.flex_attention:
        rule = "model.attention=flex_attention needs distributed.device=cuda"
        require(distributed.device is Device.cuda, rule, distributed.device.value)
    if model.activation_offloading:
        rule = "model.activation_offloading=true needs distributed.device=cuda: beside a CPU there is no other memory"
        require(distributed.device is Device.cuda, rule, distributed.device.value)
        rule = "distributed.zero must be null, 0, 1 or 2 with model.activation_offloading=true, which would keep the "
        rule += "weights that ZeRO 3 gathers; model.gradient_checkpointing=true saves most of what it does"
        require(distributed.zero != 3, rule, distributed.zero)
    if model.fp8 is not Fp8.none:
        _require_fp8(model, distributed)


def _require_fp8(model: ModelConfig, distributed: DistributedConfig) -> None:
    what = f"model.fp8={model.fp8.value}"
    rule = f"distributed.precision must be auto or bfloat16 with {what}, whose products add up to numbers in it"
    is_bfloat16 = distributed.precision in (Precision.auto, Precision.bfloat16)
    require(is_bfloat16, rule, distributed.precision.value)
    rule = f"distributed.zero must be null, 0, 1 or 2 with {what}, whose layers would keep the weights that ZeRO 3 "
    rule += "gathers"
    require(distributed.zero != 3, rule, distributed.zero)
    rule = f"model.fp8 must be none with model.quantization={model.quantization.value}, whose packed layers have "
    rule += "products of their own"
    require(not model.is_packed, rule, model.fp8.value)
    rule = "model.fp8 must be none with an adapter (model.lora.rank, model.adapter), of whose base its layers would "
    rule += "make gradients too"
    require(not model.has_adapter, rule, model.fp8.value)


def require_packable(model: ModelConfig, zero: int | None) -> None:
    """Raise `ConfigError` where the stage of ZeRO would share out weights that their layers keep by themselves."""
    rule = "distributed.zero must be null, 0, 1 or 2 with model.quantization=int8, whose layers hold on to their "
    rule += "weights where ZeRO 3 would take them away; with model.quantization=nf4 it may be 3"
    require(model.quantization is not Quantization.int8 or zero != 3, rule, zero)
