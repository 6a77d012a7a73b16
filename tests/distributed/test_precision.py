"""What a run computes in: as it is asked for, and as its device has it."""

import pytest
import torch
from omegaconf import OmegaConf

from alignment.config.distributed import Device, DistributedConfig, Precision
from alignment.distributed.precision import autocast, compute_dtype, precision_note, precision_of
from alignment.distributed.settings import deepspeed_settings

PRESETS = ("cpu", "gpu", "zero1", "zero2", "zero3", "zero3_offload")


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    """torch as it answers on a machine with a GPU, which has bfloat16 (`param` True), only imitates it, or is none."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: request.param is not None)
    monkeypatch.setattr(
        torch.cuda, "is_bf16_supported", lambda including_emulation=True: including_emulation or request.param
    )
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA X1")


@pytest.mark.parametrize(
    ("gpu", "device", "asked", "found"),
    [
        (True, Device.auto, Precision.auto, Precision.bfloat16),
        (True, Device.cuda, Precision.auto, Precision.bfloat16),
        (True, Device.cpu, Precision.auto, Precision.float32),
        (False, Device.auto, Precision.auto, Precision.float32),
        (None, Device.auto, Precision.auto, Precision.float32),
        (True, Device.auto, Precision.float32, Precision.float32),
        (False, Device.auto, Precision.bfloat16, Precision.bfloat16),
        (None, Device.auto, Precision.bfloat16, Precision.bfloat16),
        (True, Device.auto, Precision.float16, Precision.float16),
    ],
    indirect=["gpu"],
)
def test_the_device_decides_where_nothing_was_asked_for(
    gpu: None, device: Device, asked: Precision, found: Precision
) -> None:
    config = DistributedConfig(device=device, precision=asked)
    assert precision_of(config) is found
    assert str(compute_dtype(config)) == f"torch.{found.value}"
    assert (precision_note(config) is None) == (asked is not Precision.auto)


@pytest.mark.parametrize("gpu", [True], indirect=True)
def test_it_is_said_with_the_key_for_another(gpu: None) -> None:
    on_gpu, on_cpu = precision_note(DistributedConfig()), precision_note(DistributedConfig(device=Device.cpu))
    assert on_gpu == "precision: bfloat16 on NVIDIA X1; distributed.precision=float32 computes in float32"
    assert on_cpu == "precision: float32 on a CPU; distributed.precision=bfloat16 computes in bfloat16"


@pytest.mark.parametrize("gpu", [True, None], indirect=True)
@pytest.mark.parametrize("preset", PRESETS)
def test_every_preset_follows_it(preset: str, gpu: None, request: pytest.FixtureRequest) -> None:
    """What a preset of several processes tells DeepSpeed, too."""
    words = OmegaConf.load(request.config.rootpath / "conf" / "distributed" / f"{preset}.yaml")
    own = {name: value for name, value in words.items() if name != "defaults"}
    base = (
        OmegaConf.load(request.config.rootpath / "conf" / "distributed" / "zero3.yaml") if "offload" in preset else {}
    )
    config = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(DistributedConfig), base, own))
    assert isinstance(config, DistributedConfig) and config.precision is Precision.auto
    if preset == "gpu" and not torch.cuda.is_available():
        return
    is_lower = torch.cuda.is_available() and preset != "cpu"
    assert precision_of(config) is (Precision.bfloat16 if is_lower else Precision.float32)
    if config.zero is not None:
        told = deepspeed_settings(config, max_grad_norm=1.0)
        assert ("torch_autocast" in told) == is_lower


def test_products_of_a_forward_are_in_it() -> None:
    product = {}
    for precision in Precision:
        with autocast(DistributedConfig(device=Device.cpu, precision=precision)):
            product[precision.value] = (torch.ones(2, 2) @ torch.ones(2, 2)).dtype
    assert product == {
        "auto": torch.float32,
        "float32": torch.float32,
        "bfloat16": torch.bfloat16,
        "float16": torch.float16,
    }
