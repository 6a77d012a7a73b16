"""Adapters whose base is on the hub, and other weights for that."""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file


def make_adapter(base: Path, folder: Path, **more: Any) -> Path:
    """A fresh adapter of a model in `base`, which it names as the hub's org/tiny. more: of its settings."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    model = get_peft_model(AutoModelForCausalLM.from_pretrained(base), LoraConfig(r=2, task_type="CAUSAL_LM"))
    model.save_pretrained(folder)
    settings = json.loads((folder / "adapter_config.json").read_text())
    settings |= {"base_model_name_or_path": "org/tiny", **more}
    (folder / "adapter_config.json").write_text(json.dumps(settings))
    return folder


def other_weights(model: Path, folder: Path) -> Path:
    """A file of weights with other numbers than those in the model's folder."""
    folder.mkdir()
    weights = load_file(model / "model.safetensors")
    save_file(
        {name: torch.zeros_like(each) for name, each in weights.items()}, folder / "model.safetensors", {"format": "pt"}
    )
    return folder
