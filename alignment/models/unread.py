"""Weights that a folder holds and its config has no place for, which transformers leaves out without a word."""

from collections.abc import Iterable
from pathlib import Path

import torch
from torch import nn
from transformers import PreTrainedModel
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.core_model_loading import WeightConverter, WeightRenaming, dot_natural_key, rename_source_key
from transformers.utils.loading_report import LoadStateDictInfo

from alignment.config.errors import ConfigError
from alignment.config.model_kinds import HEAD_NAMES
from alignment.models.files import names_in, read_weight
from alignment.models.scalar_head import head_name

TABLES = ("inv_freq", ".attn.bias", ".attention.bias", ".masked_bias", ".causal_mask", ".position_ids")
"""Rotations, masks and positions: old folders hold what a model computes for itself now."""

HEADS = ("lm_head", "embed_out", "score", *HEAD_NAMES)
"""A head of another task than the one at hand is in many folders, and no loss."""


def check_unread(hf: PreTrainedModel, unread: Iterable[str], where: str) -> list[str]:
    """Of the weights that are in the files and were not read, those of parts of their own, which this model has not: a
    tower for images, a head that guesses ahead.

    Raises:
        ConfigError: some are of the parts that it has, biases or scales or further layers, so that it would compute
            something else than the model that was saved; names up to three of them.
    """
    modules, own_bias = dict(hf.named_modules()), f"{head_name(hf)}.bias"  # which fill_head reads
    computed = {name for name, _ in hf.named_buffers()}
    within, apart = list[str](), list[str]()
    for name in sorted(unread, key=dot_natural_key):
        full = f"{hf.base_model_prefix}.{name}"  # in a folder of a body alone
        if name == own_bias or name.endswith(TABLES) or not computed.isdisjoint((name, full)):
            continue
        if any(_is_within(hf, modules, each) for each in (name, full)):
            within.append(name)
        elif not name.rpartition(".")[0].endswith(HEADS):
            apart.append(name)
    if within:
        rule = f"{where} must have a place in config.json for all weights of its {type(hf).__name__}"
        way = "let config.json tell of them (attention_bias, num_hidden_layers, ...), merge the adapter they are of"
        got = f"got none for {len(within)} that would be left out, {listed(within)}"
        raise ConfigError(f"{rule}, {got}: {way}, or delete them")
    return apart


def check_tied(hf: PreTrainedModel, folder: Path, key: str, where: str) -> None:
    """Raises:
    ConfigError: the files hold two weights of which config.json says that they are one: transformers has two of them
        where the model is whole, and leaves one out where it is sharded.
    """
    names = names_in(folder, key)
    for name, other in hf.get_expanded_tied_weights_keys(all_submodels=True).items():
        if not {name, other} <= names:
            continue
        own, theirs = (read_weight(folder, each, key) for each in (name, other))
        if not torch.equal(own, theirs.to(own.dtype)):
            rule = f"{where} must have tie_word_embeddings=false in config.json to be sharded by distributed.zero=3"
            raise ConfigError(f"{rule}, for its {name} is another weight than its {other}, got true")


def listed(names: list[str]) -> str:
    return f"{', '.join(names[:3])}{', ...' if len(names) > 3 else ''}"


def unread_of(hf: PreTrainedModel, names: Iterable[str]) -> set[str]:
    """Which of the names in the files transformers does not read: where weights are sharded, it does not say."""
    conversions, state = get_model_conversion_mapping(hf), hf.state_dict()
    renamings = [each for each in conversions if isinstance(each, WeightRenaming)]
    converters = [each for each in conversions if isinstance(each, WeightConverter)]
    read = (
        rename_source_key(name, renamings, converters, hf.base_model_prefix, state)[0]
        for name in sorted(names, key=dot_natural_key)  # in transformers' order, for some renamings wait for others
    )
    found = LoadStateDictInfo(set(), set(read) - state.keys(), set(), [], {}, set())
    hf._adjust_missing_and_unexpected_keys(found)
    return found.unexpected_keys


def _is_within(hf: PreTrainedModel, modules: dict[str, nn.Module], name: str) -> bool:
    """Whether a weight of a checkpoint belongs to a module of the model that reads text. One that would be a new
    direct child of the model or its body does not, nor one within a tower, which is a model of its own."""
    owner = above = name.rpartition(".")[0]
    while owner not in modules:
        owner, above = owner.rpartition(".")[0], owner
    if isinstance(modules[owner], PreTrainedModel) or _is_ahead(hf, modules[owner], above.rpartition(".")[2]):
        return False
    model = owner
    while not isinstance(modules[model], PreTrainedModel):
        model = model.rpartition(".")[0]
    return any(each is hf.get_input_embeddings() for each in modules[model].modules())


def _is_ahead(hf: PreTrainedModel, owner: nn.Module, part: str) -> bool:
    """Whether a layer is one of those after the last that guess further tokens, of which config.json tells."""
    ahead = hf.config.get_text_config().to_dict().get("num_nextn_predict_layers") or 0
    return isinstance(owner, nn.ModuleList) and part.isdigit() and int(part) < len(owner) + ahead
