"""What a model must be for this package to train it: asked of the model itself, once it is there."""

from typing import Any

import torch

from alignment.config.sections import ConfigError
from alignment.models.heads import LanguageModel, ScalarModel
from alignment.models.scalar_head import scalar_head


@torch.no_grad()
@torch.compiler.set_stance("force_eager")  # two tiny texts
def check_logits(model: LanguageModel) -> None:
    """Two texts of two tokens: our logits are the architecture's, and its first token does not see its second.

    Raises:
        ConfigError: more than a head, or other scales than ours, stands between hidden states and logits; or it does;
            or the architecture has no body that gives hidden states.
    """
    hf = model.hf
    if hf.base_model is hf:
        raise ConfigError(f"model must have a body beneath its head, got {type(hf).__name__}, which names none")
    ids = torch.tensor([[0, 1], [0, 2]], device=next(hf.parameters()).device)
    was_training = hf.training
    hf.eval()
    theirs = hf(input_ids=ids, use_cache=False).logits
    ours = model.logits(hf.base_model(input_ids=ids, use_cache=False).last_hidden_state)
    hf.train(was_training)
    if ours.shape != theirs.shape or not torch.allclose(ours, theirs, rtol=1e-3, atol=1e-4, equal_nan=True):
        raise ConfigError(f"model: the logits of {type(hf).__name__} are not made as this package makes them")
    if not torch.allclose(theirs[0, 0], theirs[1, 0], rtol=1e-3, atol=1e-4, equal_nan=True):
        raise ConfigError(f"model must see only what is before each token, got {type(hf).__name__}, which sees all")


@torch.no_grad()
@torch.compiler.set_stance("force_eager")  # two tiny texts
def check_scores(model: ScalarModel) -> None:
    """Two texts of two tokens: our scores are the architecture's, which are read at the last token that is no padding.

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
        raise ConfigError(f"model: the scores of {type(hf).__name__} are not made as this package makes them")
