"""What a model must be for this package to train it: asked of the model itself, once it is there."""

from typing import Any

import torch
from transformers import PreTrainedModel

from alignment.config.errors import ConfigError
from alignment.distributed.placement import Placement
from alignment.models.heads import LanguageModel, ScalarModel
from alignment.models.quantized import not_finite_packed
from alignment.models.scalar_head import scalar_head


@torch.no_grad()
@torch.compiler.set_stance("force_eager")  # two tiny texts
def check_logits(model: LanguageModel, where: str) -> None:
    """Two texts of two tokens: our logits are the architecture's, and its first token does not see its second.

    Args:
        where: the key and the folder that the model is of.

    Raises:
        ConfigError: more than a head, or other scales than ours, stands between hidden states and logits; or it does;
            or the architecture has no body that gives hidden states.
    """
    hf = model.hf
    if hf.base_model is hf:
        raise ConfigError(f"{where} must have a body beneath its head, got {type(hf).__name__}, which names none")
    ids = torch.tensor([[0, 1], [0, 2]], device=next(hf.parameters()).device)
    was_training = hf.training
    hf.eval()
    theirs = hf(input_ids=ids, use_cache=False).logits
    ours = model.logits(hf.base_model(input_ids=ids, use_cache=False).last_hidden_state)
    hf.train(was_training)
    if not torch.allclose(theirs[0, 0], theirs[1, 0], rtol=1e-3, atol=1e-4, equal_nan=True):
        rule = f"{where} must be a model that writes, each token seeing only what is before it"
        raise ConfigError(f"{rule}, got {type(hf).__name__}, an encoder whose tokens see all: take a decoder's folder")
    if ours.shape != theirs.shape or not torch.allclose(ours, theirs, rtol=1e-3, atol=1e-4, equal_nan=True):
        rule = f"{where} must be a model whose logits are its head's, of the last hidden states and not scaled"
        raise ConfigError(f"{rule}, got {type(hf).__name__}")


@torch.no_grad()
@torch.compiler.set_stance("force_eager")  # two tiny texts
def check_scores(model: ScalarModel, where: str) -> None:
    """Two texts of two tokens: our scores are the architecture's, which are read at the last token that is no padding.

    Args:
        where: the key and the folder that the model is of.

    Raises:
        ConfigError: more than one linear layer stands between hidden states and scores, or they are read elsewhere.
    """
    hf: Any = model.hf
    pad = hf.config.get_text_config().pad_token_id
    first, *last = [token for token in range(4) if token != pad][:3]
    ids = torch.tensor([[first, each] for each in last], device=next(hf.parameters()).device)
    was_training = hf.training
    hf.eval()
    theirs = hf(input_ids=ids, use_cache=False).logits
    ours = scalar_head(hf)(hf.base_model(input_ids=ids, use_cache=False).last_hidden_state[:, -1])
    hf.train(was_training)
    if ours.shape != theirs.shape or not torch.allclose(ours, theirs, rtol=1e-3, atol=1e-4, equal_nan=True):
        rule = f"{where} must be a model whose scores are one linear layer's, of the last token's hidden state"
        raise ConfigError(f"{rule}, got {type(hf).__name__}")


def require_weights(lacking: dict[str, str], hf: PreTrainedModel, placement: Placement, path: str, key: str) -> None:
    """Raises:
    ConfigError: a weight is not there, or holds what is no finite number, which no step could mend.
    """
    if lacking:
        what = next(iter(lacking.values()))
        raise ConfigError(f"{key} must hold all weights of a {type(hf).__name__}, got {what} in {path!r}")
    if broken := placement.not_finite(hf) or not_finite_packed(hf):
        raise ConfigError(f"{key} must hold weights that are numbers, got nan or inf in {broken[0]} in {path!r}")
