"""A model embeds all pieces of its tokenizer, or is made to: new rows for tokens that were added to the vocabulary."""

import torch
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from alignment.config.errors import ConfigError
from alignment.config.model import ModelConfig
from alignment.distributed.placement import Placement
from alignment.models.files import one_line
from alignment.models.quantized import quantization_of
from alignment.terminal import say_once

OWN = "model.path"  # the key of the model that `model.resize_embeddings` is about
SEED = 0
"""Of the new rows, whatever the run's: all processes, an adapter's base when it is read again, a policy and its critic
have the same, and a run's other random numbers stay as they are."""


def fit_vocabulary(
    hf: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, config: ModelConfig, placement: Placement, key: str
) -> None:
    """Embed as many pieces as the tokenizer has, by `model.resize_embeddings`; a model that embeds more is left alone.

    Raises:
        ConfigError: the tokenizer has more and `model.resize_embeddings` is not set, the weights are quantised, or the
            architecture cannot be resized; names the key.
    """
    embedded, pieces = hf.config.get_text_config().vocab_size, len(tokenizer)
    if pieces <= embedded:
        return
    found = f"model.tokenizer has {pieces} pieces and the model embeds only {embedded}"
    if not config.resize_embeddings:
        if key != OWN:
            raise ConfigError(f"{key} must embed all {pieces} pieces of its tokenizer, got {embedded}")
        raise ConfigError(f"{found}: set model.resize_embeddings=true to add {pieces - embedded} rows")
    if quantization_of(hf.config) is not None:
        rule = f"model.resize_embeddings=true needs {key} in whole weights"
        raise ConfigError(f"{rule}, and they are quantized: {found}")
    try:
        resize(hf, pieces, placement)
    except (NotImplementedError, TypeError) as error:
        raise ConfigError(
            f"model.resize_embeddings: {type(hf).__name__} has no way to it ({one_line(error)})"
        ) from error
    frozen = "; model.lora.rank > 0 trains none of them" if config.lora.rank and not config.lora.modules_to_save else ""
    added = f"{pieces - embedded} rows are added, about the mean of the others{frozen}"
    say_once(f"model.resize_embeddings: {found} in {config.path or 'model.init'}: {added}")


def resize(hf: PreTrainedModel, size: int, placement: Placement) -> None:
    """Embeddings and language model's head of `size` rows, the new ones drawn as transformers draws them: close to the
    mean of the others, so that no old token's probability falls much (Hewitt 2021, "Initializing New Word Embeddings
    for Pretrained Language Models"). They are whole in each process while they are made, and put in their places."""
    own: dict[int, nn.Parameter] = {}  # two modules that share a weight share the one in its place
    head = hf.get_output_embeddings()
    heads = [] if head is None else [head]
    held = {name: weight.dtype for each in heads for name, weight in each.named_parameters(recurse=False)}
    for module in (*(each for each in hf.modules() if isinstance(each, nn.Embedding)), *heads):
        for name, weight in list(module.named_parameters(recurse=False)):
            if id(weight) not in own:
                with placement.whole([weight]):  # float32, for transformers gives a head's bias its weight's dtype
                    copy = placement.kept(weight).to("cpu", torch.float32)  # where the draws are those of SEED
                    made = nn.Parameter(copy, requires_grad=weight.requires_grad)
                own[id(weight)] = own[id(made)] = made
            setattr(module, name, own[id(weight)])
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(SEED)
        hf.resize_token_embeddings(size, mean_resizing=True)
    head = hf.get_output_embeddings()
    for name, weight in [] if head is None else head.named_parameters(recurse=False):
        weight.data = weight.data.to(held[name])
    placement.shard(hf)
