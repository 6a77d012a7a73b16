"""Adapters whose base is on the hub."""

import json
from pathlib import Path
from typing import Any


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
