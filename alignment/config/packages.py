"""Packages that few runs need and an installation need not have: whether those that a config asks for are there, by its
keys and its models' files, before anything is loaded."""

from importlib.util import find_spec
from os.path import expanduser
from shutil import which

from alignment.config.errors import ConfigError
from alignment.config.evaluate import EvaluateConfig
from alignment.config.fp8 import Fp8
from alignment.config.generation import GenerationConfig, VLLMTransfer
from alignment.config.inputs import input_places
from alignment.config.log import Tracker
from alignment.config.model_kinds import packed_beneath, quantized_by
from alignment.config.online import OnlineConfig
from alignment.config.optimizer import OF_BITSANDBYTES
from alignment.config.packed_base import QUANTIZER
from alignment.config.run import RunConfig, TrainingConfig
from alignment.config.tasks import RejectionConfig

TORCHAO = "torchao"
NAMES: dict[Tracker, tuple[str, ...]] = {Tracker.tensorboard: ("tensorboard", "tensorboardX")}
"""Of a tracker's package, where it is not the tracker's own: any of them will do."""
EXTRAS = {"tensorboard": "tensorboard", QUANTIZER: "quantization", "vllm": "vllm", TORCHAO: "fp8"}
"""Package -> this one's extra."""


def require_packages(config: RunConfig) -> None:
    """Raises:
    ConfigError: a package is not installed that a key, or a model's config.json, asks for; names the key, and how it is
        had or done without.
    """
    for kind in config.log.trackers:
        names = NAMES.get(kind, (kind.value,))
        if not any(map(is_installed, names)):
            way = f"{how_to_install(names[0])}, or leave it out: metrics.jsonl has all of it"
            raise ConfigError(f"log.trackers: the package {names[0]} must be installed, got {kind.value!r}; {way}")
    generation = generation_of(config)
    if generation is not None and config.launch.vllm:
        _require_server(generation.vllm.python)
    is_nccl = generation is not None and generation.vllm.transfer is VLLMTransfer.nccl
    if is_nccl and not is_installed("vllm"):  # files need it on the server's side alone
        way = f"{how_to_install('vllm')}, or take generation.vllm.transfer=files, which needs it for the server alone"
        raise ConfigError(f"generation.vllm.transfer=nccl needs the package vllm, which is not installed: {way}")
    if isinstance(config, TrainingConfig) and config.model.fp8 is not Fp8.none and not is_installed(TORCHAO):
        raise ConfigError(fp8_lacks(config.model.fp8))
    if not is_installed(QUANTIZER):
        if isinstance(config, TrainingConfig) and (name := config.train.optimizer) in OF_BITSANDBYTES:
            way = f"{how_to_install(QUANTIZER)}, or take train.optimizer=adamw"
            raise ConfigError(
                f"train.optimizer={name.value} needs the package {QUANTIZER}, which is not installed: {way}"
            )
        if isinstance(config, TrainingConfig | RejectionConfig) and config.model.is_packed:
            raise ConfigError(quantizer_lacks(f"model.quantization={config.model.quantization.value}", "needs"))
        packed = (
            [each.value for each in config.quantized if each.is_packed] if isinstance(config, EvaluateConfig) else []
        )
        if packed:
            raise ConfigError(quantizer_lacks(f"quantized=[{','.join(packed)}]", "needs"))
        for key, path, place in input_places(config):
            if quantized_by(key, place) == QUANTIZER:
                raise ConfigError(quantizer_lacks(f"{key} {path!r}"))
            if packed_beneath(key, place):
                raise ConfigError(quantizer_lacks(f"{key} {path!r}", ON_PACKED))


def _require_server(python: str | None) -> None:
    """Raises:
    ConfigError: a server that the run starts has no vLLM, or no such Python to run it.
    """
    way = "generation.vllm.python=FOLDER/bin/python names one of another environment that has it"
    if python is None and not is_installed("vllm"):
        raise ConfigError(f"launch.vllm needs the package vllm, which is not installed here: {way}")
    if python is not None and which(expanduser(python)) is None:
        raise ConfigError(f"generation.vllm.python must be a Python that has vLLM, got {python!r}, which cannot be run")


def generation_of(config: RunConfig) -> GenerationConfig | None:
    """How a task that draws replies draws them."""
    return config.generation if isinstance(config, OnlineConfig | RejectionConfig | EvaluateConfig) else None


def is_installed(package: str) -> bool:
    """Nothing is imported for it. A folder of that name, as trackers leave one where a run began, is none."""
    spec = find_spec(package)
    return spec is not None and spec.origin is not None


def how_to_install(package: str) -> str:
    extra = EXTRAS.get(package)
    return f"pip install {package if extra is None else repr(f'preference-alignment[{extra}]')}"


ON_PACKED = "was trained on a base packed by"


def quantizer_lacks(where: str, how: str = "is quantized by") -> str:
    return f"{where} {how} {QUANTIZER}, which is not installed: {how_to_install(QUANTIZER)}"


def fp8_lacks(how: Fp8) -> str:
    return f"model.fp8={how.value} needs the package {TORCHAO}, which is not installed: {how_to_install(TORCHAO)}"
