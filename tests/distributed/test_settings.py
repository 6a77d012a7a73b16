"""What DeepSpeed is told, and a JSON of the user's merged into it."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from alignment.config.distributed import Device, DistributedConfig, Offload, Precision
from alignment.config.errors import ConfigError
from alignment.config.train import TrainConfig
from alignment.distributed.settings import check_trainer, deepspeed_settings


def settings(folder: Path, raw: dict[str, Any], **config: Any) -> dict[str, Any]:
    path = folder / "ds.json"
    path.write_text(json.dumps(raw))
    whole = DistributedConfig(**{"zero": 2, "deepspeed_config": str(path), **config})
    return deepspeed_settings(whole, max_grad_norm=0.5)


def test_further_settings_are_merged_and_auto_is_ours(tmp_path: Path) -> None:
    raw = {
        "zero_optimization": {"stage": 2, "reduce_bucket_size": 7},
        "gradient_clipping": "auto",
        "fp16": {"enabled": False},
        "comms_logger": {"enabled": True},
    }
    merged = settings(tmp_path, raw)
    assert merged["zero_optimization"] == {"stage": 2, "reduce_bucket_size": 7}
    assert merged["gradient_clipping"] == 0.5
    assert merged["comms_logger"] == {"enabled": True}


@pytest.mark.parametrize(
    ("raw", "theirs", "ours"),
    [
        ({"zero_optimization": {"stage": 3}}, "zero_optimization.stage", "distributed.zero"),
        ({"gradient_clipping": 1.0}, "gradient_clipping", "train.max_grad_norm"),
        ({"bf16": {"enabled": True}}, "bf16.enabled", "distributed.precision"),
        ({"train_batch_size": 64}, "train_batch_size", "batch.size"),
        (
            {"zero_optimization": {"offload_optimizer": {"device": "cpu"}}},
            "zero_optimization.offload_optimizer.device",
            "distributed.offload_optimizer",
        ),
    ],
)
def test_conflict_names_both_keys(tmp_path: Path, raw: dict[str, Any], theirs: str, ours: str) -> None:
    with pytest.raises(ConfigError) as error:
        settings(tmp_path, raw)
    assert f" {theirs} " in str(error.value) and f" {ours} " in str(error.value)


def test_a_block_for_float16_may_say_what_the_engine_does(tmp_path: Path) -> None:
    """The loss is scaled there, and not by DeepSpeed, which would clip what is scaled."""
    half = {"precision": Precision.float16, "initial_loss_scale": 2.0**12}
    same = {
        "enabled": True,
        "loss_scale": 0,
        "initial_scale_power": 12,
        "loss_scale_window": 2000,
        "hysteresis": "auto",
    }
    told = settings(tmp_path, {"fp16": same}, **half)
    assert (told["torch_autocast"]["dtype"], told["communication_data_type"]) == ("float16", "fp16")
    assert "fp16" not in told
    for name, value, key in (
        ("enabled", False, "distributed.precision"),
        ("loss_scale", 128, "distributed.precision"),
        ("initial_scale_power", 16, "distributed.initial_loss_scale"),
        ("loss_scale_window", 1000, "distributed.loss_scale_window"),
        ("hysteresis", 2, "distributed.precision"),
    ):
        with pytest.raises(ConfigError, match=f"its fp16.{name} is for {key} to say, which makes it .*, got {value}"):
            settings(tmp_path, {"fp16": same | {name: value}}, **half)


def test_clipping_of_models_that_train_is_nothing_to_those_that_do_not(tmp_path: Path) -> None:
    path = tmp_path / "ds.json"
    path.write_text(json.dumps({"gradient_clipping": 1.0, "steps_per_print": 3}))
    merged = deepspeed_settings(DistributedConfig(zero=3, deepspeed_config=str(path)), max_grad_norm=None)
    assert (merged["gradient_clipping"], merged["steps_per_print"]) == (0.0, 3)


def test_offload_and_precision_are_passed_on(tmp_path: Path) -> None:
    config = {"zero": 3, "offload_optimizer": Offload.cpu, "offload_param": Offload.nvme, "nvme_path": "fast"}
    told = settings(tmp_path, {}, precision=Precision.bfloat16, **config)
    assert told["zero_optimization"]["offload_optimizer"] == {"device": "cpu"}
    assert told["zero_optimization"]["offload_param"] == {"device": "nvme", "nvme_path": "fast"}
    assert told["torch_autocast"]["dtype"] == "bfloat16"
    assert "bf16" not in told


def test_no_clipping_is_said_as_deepspeed_says_it() -> None:
    assert deepspeed_settings(DistributedConfig(zero=1), max_grad_norm=float("inf"))["gradient_clipping"] == 0


@pytest.mark.parametrize("text", ["{", "[1]"])
def test_what_is_no_json_object_is_an_error(tmp_path: Path, text: str) -> None:
    (tmp_path / "ds.json").write_text(text)
    with pytest.raises(ConfigError, match=r"^distributed\.deepspeed_config must"):
        deepspeed_settings(DistributedConfig(zero=1, deepspeed_config=str(tmp_path / "ds.json")), max_grad_norm=1.0)


@pytest.mark.parametrize(
    ("config", "key"),
    [
        ({"zero": 4}, "zero"),
        ({"offload_optimizer": Offload.cpu}, "offload_optimizer"),
        ({"zero": 0, "offload_optimizer": Offload.cpu}, "offload_optimizer"),
        ({"zero": 2, "offload_optimizer": Offload.nvme, "nvme_path": "x"}, "offload_optimizer"),
        ({"zero": 2, "offload_param": Offload.cpu}, "offload_param"),
        ({"zero": 3, "offload_param": Offload.nvme}, "nvme_path"),
        ({"zero": 3, "nvme_path": "x"}, "nvme_path"),
        ({"deepspeed_config": "x"}, "deepspeed_config"),
        ({"timeout_minutes": 0.0}, "timeout_minutes"),
    ],
)
def test_what_cannot_be_is_refused_by_its_key(config: dict[str, Any], key: str) -> None:
    with pytest.raises(ConfigError, match=rf"^distributed\.{key}"):
        DistributedConfig(**config)


TRAIN = TrainConfig(max_steps=10, learning_rate=1e-5, warmup_steps=3)
ADAMW = dict.fromkeys(("lr", "betas", "eps", "weight_decay"), "auto")
WARMUP = dict.fromkeys(("warmup_min_lr", "warmup_max_lr", "warmup_num_steps"), "auto")


def trainer(folder: Path, raw: dict[str, Any]) -> None:
    (folder / "ds.json").write_text(json.dumps(raw))
    check_trainer(str(folder / "ds.json"), TRAIN)


def test_auto_is_what_the_trainer_says_in_the_trainers_blocks_too(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    raw = {"optimizer": {"type": "AdamW", "params": ADAMW}, "scheduler": {"type": "WarmupLR", "params": WARMUP}}
    trainer(tmp_path, raw)
    line = "distributed.deepspeed_config: its scheduler is WarmupLR, and train.schedule=cosine is what runs\n"
    assert capsys.readouterr().out == line
    assert not settings(tmp_path, raw).keys() & {"optimizer", "scheduler"}
    trainer(tmp_path, {"optimizer": {"type": "Adam", "params": {**ADAMW, "lr": 1e-5, "betas": [0.9, 0.999]}}})
    trainer(tmp_path, {"scheduler": {"type": "WarmupCosineLR", "params": {"warmup_num_steps": 3}}})
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("raw", "theirs", "ours"),
    [
        ({"optimizer": {"type": "Lamb"}}, "optimizer.type", "train"),
        (
            {"optimizer": {"type": "AdamW", "params": {**ADAMW, "lr": 1e-4}}},
            "optimizer.params.lr",
            "train.learning_rate",
        ),
        ({"optimizer": {"params": {"adam_w_mode": False}}}, "optimizer.params.adam_w_mode", "the trainer"),
        ({"optimizer": {"params": {"freeze_step": 3}}}, "optimizer.params.freeze_step", "train"),
        ({"scheduler": {"type": "OneCycle"}}, "scheduler.type", "train.schedule"),
        ({"scheduler": {"params": {"warmup_num_steps": 4}}}, "scheduler.params.warmup_num_steps", "train.warmup_steps"),
        ({"optimizer": "AdamW"}, "optimizer", "params"),
    ],
)
def test_what_the_trainer_does_not_say_is_refused_by_both_keys(
    tmp_path: Path, raw: dict[str, Any], theirs: str, ours: str
) -> None:
    with pytest.raises(ConfigError) as error:
        trainer(tmp_path, raw)
    assert f" {theirs} " in str(error.value) and f" {ours}" in str(error.value)


@pytest.mark.parametrize(
    ("weights", "bucket", "ahead"),
    [
        (1_000_000, 1_000_000, 1_000_000),  # all of it
        (100_000_000, 2**24, 2**24),
        (8_000_000_000, 200_000_000, 62_500_000),
        (1_600_000_000, 50_000_000, 2**24),
    ],
)
def test_what_is_sent_at_once_is_a_share_of_the_model(weights: int, bucket: int, ahead: int) -> None:
    config = DistributedConfig(zero=3, precision=Precision.float32)
    told = deepspeed_settings(config, max_grad_norm=1.0, numbers=(weights, weights))["zero_optimization"]
    assert (told["reduce_bucket_size"], told["stage3_prefetch_bucket_size"]) == (bucket, ahead)
    frozen = deepspeed_settings(config, max_grad_norm=None, numbers=(weights, 0))["zero_optimization"]
    assert "reduce_bucket_size" not in frozen and frozen["stage3_prefetch_bucket_size"] == ahead


@pytest.mark.parametrize("zero", [0, 1, 2, 3])
@pytest.mark.parametrize("device", [Device.cpu, Device.cuda])
def test_gradients_are_reduced_beside_the_backward_pass_on_a_gpu(zero: int, device: Device) -> None:
    """Under ZeRO 3 DeepSpeed does so by itself, under 0 it waits for the step."""
    config = DistributedConfig(zero=zero, device=device, precision=Precision.float32)
    told = deepspeed_settings(config, max_grad_norm=1.0, numbers=(10, 10))["zero_optimization"]
    assert told.get("overlap_comm", False) == (zero in (1, 2) and device is Device.cuda)
    if zero in (1, 2):
        beside = replace(config, offload_optimizer=Offload.cpu)
        told = deepspeed_settings(beside, max_grad_norm=1.0, numbers=(10, 10))["zero_optimization"]
        assert "overlap_comm" not in told


def test_gradients_cross_in_what_products_compute_in_unless_the_user_says_otherwise(tmp_path: Path) -> None:
    for precision, wanted in ((Precision.float32, None), (Precision.bfloat16, "bf16")):
        for zero in (0, 1, 2, 3):
            config = DistributedConfig(zero=zero, precision=precision)
            assert deepspeed_settings(config, max_grad_norm=1.0).get("communication_data_type") == wanted
    raw = {"communication_data_type": "fp32", "zero_optimization": {"reduce_bucket_size": 7, "overlap_comm": "auto"}}
    told = settings(tmp_path, raw, precision=Precision.bfloat16)
    assert told["communication_data_type"] == "fp32" and told["zero_optimization"]["reduce_bucket_size"] == 7
    assert settings(tmp_path, {"communication_data_type": None})["communication_data_type"] is None
    with pytest.raises(ConfigError, match=r"its communication_data_type must be one of fp32, fp16, bf16.*got 'fp8'"):
        settings(tmp_path, {"communication_data_type": "fp8"})
