"""A soft prompt as peft has it: begun anew, or in room made for a saved one and filled, and written.

As `lora` it imports peft.
"""

from itertools import cycle, islice
from pathlib import Path
from typing import Any

import torch
from peft import PromptEmbedding, PromptEncoder, PromptEncoderConfig, PromptTuningConfig, load_peft_weights
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import PreTrainedModel

from alignment.config.errors import ConfigError, require
from alignment.config.folders import ADAPTER_FILE
from alignment.config.model import ModelConfig
from alignment.config.saved_prompt import saved_prompt, tokens_before
from alignment.config.soft_prompt import KEY, SoftPromptConfig, SoftPromptEncoder
from alignment.distributed.engine import shape_of
from alignment.distributed.placement import Placement, Whole
from alignment.models.adapter_files import base_names
from alignment.models.files import MISREADINGS, Reading, check_adapter, one_line
from alignment.models.lora import WEIGHTS_FILE
from alignment.models.packed_base import note_packing, say_packed_otherwise
from alignment.models.save import share
from alignment.models.scalar_head import head_name, scalar_head
from alignment.models.soft_prompt import SoftPrompt, put_soft_prompt, soft_prompt_of
from alignment.models.tokenizer import load_tokenizer
from alignment.models.weight_dtype import forwards_in_float32

TABLE, PREFIX = "prompt_embeddings", "base_model."  # in peft's files
PARTS = 1  # of a transformer that read it; an encoder-decoder has two


def add_soft_prompt(hf: PreTrainedModel, config: ModelConfig, placement: Placement) -> None:
    """Freeze the weights and have the embeddings look up a soft prompt, new or still without its weights; a scalar head
    stays trained.

    Raises:
        ConfigError: the embeddings are shared out among processes.
    """
    rule = "distributed.zero must be null, 0, 1 or 2 for a model that is read with a soft prompt, whose embeddings are "
    require(isinstance(placement, Whole), f"{rule}whole", 3)
    hf.requires_grad_(False)
    if head_name(hf) is not None:
        scalar_head(hf).requires_grad_(True)
    embeddings = hf.get_input_embeddings()
    weight: Tensor = embeddings.get_parameter("weight")
    rows, width = shape_of(weight)
    length, asked = tokens_before(config), config.soft_prompt
    is_new = saved_prompt(config) is None
    encoder = _encoder(asked if is_new else SoftPromptConfig(tokens=length), width).to(weight.device)
    if is_new and asked.encoder is SoftPromptEncoder.none and not weight.is_meta:
        with torch.no_grad():
            encoder.get_parameter("embedding.weight").copy_(embeddings(_first_ids(config, rows).to(weight.device)))
    put_soft_prompt(hf, encoder, length)


def _encoder(asked: SoftPromptConfig, width: int) -> nn.Module:
    """[1, k] places -> [1, k, width]."""
    shape: dict[str, Any] = {"num_virtual_tokens": asked.tokens, "token_dim": width}
    shape["num_transformer_submodules"] = PARTS
    if asked.encoder is SoftPromptEncoder.none:
        return PromptEmbedding(PromptTuningConfig(**shape), None)
    kind, inner = asked.encoder.value.upper(), asked.hidden_size or width
    return PromptEncoder(PromptEncoderConfig(**shape, encoder_reparameterization_type=kind, encoder_hidden_size=inner))


def _first_ids(config: ModelConfig, rows: int) -> Tensor:
    """[k] on the CPU, so that devices begin alike: the tokens whose embeddings it begins as."""
    count, text = config.soft_prompt.tokens, config.soft_prompt.init_text
    if text is None:
        return torch.randint(rows, (count,), device="cpu")
    ids = load_tokenizer(config)(text, add_special_tokens=False)["input_ids"]
    require(bool(ids), "model.soft_prompt.init_text must be a text of which the tokenizer makes tokens", text)
    return torch.tensor(list(islice(cycle(ids), count)), device="cpu")


def fill_soft_prompt(hf: PreTrainedModel, config: ModelConfig, placement: Placement) -> None:
    """The weights of a saved one; and of any, that the architecture reads it as peft would have it read.

    Raises:
        ConfigError: its files are cut or damaged, or are of a model of another width; or the architecture reads more of
            a token than its embedding.
    """
    prompt, folder = soft_prompt_of(hf), saved_prompt(config)
    assert prompt is not None
    if folder is not None:
        key = "model.path" if config.adapter is None else "model.adapter"
        own, given = prompt.encoder.get_parameter("embedding.weight"), _read(folder, key)[TABLE]
        rule = f"{key}: the soft prompt in {str(folder)!r}"
        if own.shape != given.shape:
            shapes = f"{list(given.shape)}, where the model takes {list(own.shape)}"
            raise ConfigError(f"{rule} does not fit model.path={config.path}: it is of shape {shapes}")
        if not given.isfinite().all():
            raise ConfigError(f"{rule} must hold weights that are numbers, got nan or inf")
        with torch.no_grad():
            own.copy_(given)
        if config.adapter is not None:  # of `model.path` it is there already
            say_packed_otherwise(hf, folder, key)
            write_whole(hf, folder, key, placement)
    _check_read(hf, prompt, placement)


@torch.no_grad()
@torch.compiler.set_stance("force_eager")  # one tiny text
def _check_read(hf: PreTrainedModel, prompt: SoftPrompt, placement: Placement) -> None:
    """That a text behind it is read as behind the embeddings themselves."""
    embeddings, device = hf.get_input_embeddings(), next(prompt.parameters()).device
    text = torch.arange(min(3, prompt.first), device=device)[None]
    ids = torch.cat([torch.from_numpy(prompt.ids()).long().to(device)[None], text], dim=1)
    was_training = hf.training
    hf.eval()
    try:
        with forwards_in_float32(hf, placement):
            rows = embeddings(text)
            rows = torch.cat([prompt.table()[None].to(rows.dtype), rows], dim=1)
            ours = hf.base_model(input_ids=ids, use_cache=False).last_hidden_state
            theirs = hf.base_model(inputs_embeds=rows, use_cache=False).last_hidden_state
        is_alike = torch.allclose(ours, theirs, rtol=1e-3, atol=1e-4)
        why = "which reads more of a token than its embedding"
    except (RuntimeError, *MISREADINGS) as error:
        is_alike, why = False, f"which cannot read it ({one_line(error)})"
    hf.train(was_training)
    if not is_alike:
        raise ConfigError(f"{KEY} must be 0 for this model, got a {type(hf).__name__}, {why}")


def _read(folder: Path, key: str) -> dict[str, Tensor]:
    """All that it holds, a whole module's weights by their names in the model."""
    check_adapter(folder, key)
    with Reading(f"{key}: the soft prompt in {str(folder)!r} cannot be read"):
        given = load_peft_weights(str(folder), device="cpu")
    if TABLE not in given:
        found = ", ".join(sorted(given))
        raise ConfigError(f"{key}: the soft prompt in {str(folder)!r} must hold {TABLE}, got {found}")
    return {name.removeprefix(PREFIX): weight for name, weight in given.items()}


@torch.no_grad()
def write_whole(hf: PreTrainedModel, folder: Path, key: str, placement: Placement) -> set[str]:
    """What the folder holds whole beside the soft prompt, a scalar head, written in its place; the names of that.

    Raises:
        ConfigError: the model has no place for it.
    """
    given, own = _read(folder, key), dict(hf.named_parameters())
    del given[TABLE]
    for name, weight in given.items():
        if name not in own or shape_of(own[name]) != weight.shape:
            rule = f"{key}: the soft prompt in {str(folder)!r} must be of a {type(hf).__name__}, got a {name} of shape"
            raise ConfigError(f"{rule} {list(weight.shape)} beside it")
        with placement.whole([own[name]], write=True):
            own[name].copy_(weight)
    return set(given)


@torch.no_grad()
def save_soft_prompt(hf: PreTrainedModel, folder: Path, placement: Placement, *, write: bool) -> None:
    """The embeddings, whatever makes them, and a scalar head, in peft's form and in float32; `write` as in
    `save_model`."""
    prompt, head, text = soft_prompt_of(hf), head_name(hf), hf.config.get_text_config()
    assert prompt is not None
    if not write:
        return
    kept = {TABLE: prompt.table()}
    if head is not None:
        kept |= {f"{PREFIX}{head}.{name}": placement.kept(p) for name, p in scalar_head(hf).named_parameters()}
    folder.mkdir(parents=True, exist_ok=True)
    settings: dict[str, Any] = {
        "num_virtual_tokens": prompt.length,
        "token_dim": kept[TABLE].shape[1],
        "num_transformer_submodules": PARTS,
        "num_attention_heads": text.num_attention_heads,
        "num_layers": text.num_hidden_layers,
        "task_type": "CAUSAL_LM" if head is None else "SEQ_CLS",
        "modules_to_save": None if head is None else [head],
        "inference_mode": True,
        **base_names(hf),
    }
    if isinstance(prompt.encoder, PromptEncoder):
        made_by = {"encoder_reparameterization_type": prompt.encoder.encoder_type}
        config: Any = PromptEncoderConfig(**settings, **made_by, encoder_hidden_size=prompt.encoder.hidden_size)
    else:
        config = PromptTuningConfig(**settings)
    config.save_pretrained(str(folder))
    save_file({name: each.float().cpu().contiguous() for name, each in kept.items()}, folder / WEIGHTS_FILE)
    share([folder / WEIGHTS_FILE], folder / ADAPTER_FILE)
    note_packing(hf, folder)
