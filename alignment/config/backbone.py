"""Adapters that are to lie on one backbone beside the policy's (`roles.share=lora`). Asked of their files alone."""

from pathlib import Path

from alignment.config.adapter import BESIDE, adapter_of, rope_of
from alignment.config.errors import ConfigError, error_prefix, require
from alignment.config.folders import ADAPTER_FILE, MODEL_FILE, find_model, read_json
from alignment.config.model import ModelConfig
from alignment.config.packed_base import name_of_packing, packing_of

KEY = "roles.share=lora"
ORIGINAL = "original_max_position_embeddings"
HEAD = "score"  # transformers' name of a scalar head, which each role has for itself


def require_on_backbone(folder: Path) -> None:
    """Raises:
    ConfigError: the folder holds no adapter, or one in which more trains than LoRA and a head.
    """
    if not (folder / ADAPTER_FILE).is_file():
        way = "which a run with model.lora.rank leaves beside a model, but for one on an adapter's folder as model.path"
        raise ConfigError(f"{KEY} needs an adapter's folder ({ADAPTER_FILE}), {way}, got {str(folder)!r}")
    settings = read_json(folder / ADAPTER_FILE, KEY)
    kind, bias = settings.get("peft_type"), settings.get("bias") or "none"
    require(kind == "LORA", f"{KEY} needs an adapter of LoRA", f"one of {kind} in {str(folder)!r}")
    whole = [name for name in settings.get("modules_to_save") or [] if name != HEAD]
    for without, is_so in (
        ("DoRA (model.lora.dora)", not settings.get("use_dora")),
        (f"{', '.join(whole)} trained whole (model.lora.modules_to_save)", not whole),
        (f"biases trained (bias={bias})", bias == "none"),
    ):
        require(is_so, f"{KEY} needs an adapter without {without}", str(folder))


def require_shareable(key: str, place: Path, policy: ModelConfig) -> None:
    """Raises:
    ConfigError: as `require_on_backbone`; or the adapter was trained with another RoPE scaling than the policy's, or on
        a base that was packed otherwise.
    """
    folder = Path(adapter_of(str(place)))
    with error_prefix(key):
        require_on_backbone(folder)
    noted, now = packing_of(folder, key), policy.quantization.value
    packing = now if noted is None else name_of_packing(noted)
    rule = f"model.quantization must be {packing} with {KEY} and {key}={place}, which was trained on a base packed so"
    require(packing == now, rule, now)
    if policy.path is None:
        return
    base = rope_of(find_model(policy.path, "model.path").path)
    is_merged = folder.name == BESIDE and (folder.parent / MODEL_FILE).is_file()
    own = rope_of(folder.parent) if is_merged else base  # an adapter left alone is of a base that is read as it is
    asked = base
    if policy.rope.rope_type is not None:
        asked = policy.rope.parameters(policy.rope.original_max_position_embeddings or own.get(ORIGINAL) or 0)
    rule = f"{key} must be trained with the RoPE scaling of the policy with {KEY}, whose roles are scaled alike "
    require(own == asked, f"{rule}({asked or 'none'}; model.rope)", f"{own or 'none'} in {str(folder)!r}")
