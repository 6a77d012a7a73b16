"""What an adapter's folder notes of a base that was packed as it was read, in transformers' words. Asked of its files
alone."""

from pathlib import Path
from typing import Any

from alignment.config.errors import ConfigError
from alignment.config.folders import read_json

QUANTIZER = "bitsandbytes"
NOTE = "base_quantization.json"


def packing_of(adapter: Path, key: str) -> dict[str, Any] | None:
    """How its base was packed; None where the folder notes nothing.

    Raises:
        ConfigError: the note is cut or damaged.
    """
    if not (adapter / NOTE).is_file():
        return None
    settings = read_json(adapter / NOTE, key)
    how = settings.get("quant_method"), bool(settings.get("load_in_4bit")), bool(settings.get("load_in_8bit"))
    if how not in ((QUANTIZER, True, False), (QUANTIZER, False, True)):
        rule = f"{key}: {str(adapter / NOTE)!r} must say how {QUANTIZER} packed the base, in 4 bits or in 8"
        raise ConfigError(f"{rule}, got {settings}")
    return settings


def name_of_packing(settings: dict[str, Any]) -> str:
    """As `model.quantization` calls it."""
    return "nf4" if settings.get("load_in_4bit") else "int8" if settings.get("load_in_8bit") else "none"
