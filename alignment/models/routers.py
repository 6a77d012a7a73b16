"""The routers of a mixture of experts: the loss that keeps the experts' loads even."""

from typing import Any

from torch import Tensor
from transformers import PreTrainedConfig
from transformers.models.mixtral.modeling_mixtral import load_balancing_loss_func

from alignment.config.errors import ConfigError


def has_routers(config: PreTrainedConfig) -> bool:
    """Whether a model with this config is a mixture of experts."""
    return "num_experts_per_tok" in _settings(config.get_text_config())


def router_weight(config: PreTrainedConfig, asked: float | None) -> float:
    """The weight of the routers' loss: the one asked for, else the model's own, which it sets by asking for the logits.

    Raises:
        ConfigError: a weight is asked for and the model has no routers.
    """
    settings = _settings(config)
    if not has_routers(config):
        if asked:
            raise ConfigError(f"model.router_loss needs a mixture of experts, got {asked} for {config.model_type!r}")
        return 0.0
    own = settings["router_aux_loss_coef"] if settings.get("output_router_logits") else 0.0
    return own if asked is None else asked


def router_loss(config: PreTrainedConfig, logits: tuple[Tensor, ...], counts: Tensor) -> Tensor:
    """num_experts * sum_i f_i P_i over all layers: f_i the share of tokens sent to expert i, P_i its mean probability
    (Fedus et al. 2101.03961, eqs. 4-6; 1 per expert chosen where loads are even).

    logits: [R * L, experts] of each layer. counts: [R, L] bool, True = a token, not padding.
    """
    balancing: Any = load_balancing_loss_func  # annotated as if there were one layer
    return balancing(logits, logits[0].shape[-1], _settings(config)["num_experts_per_tok"], counts)


def _settings(config: PreTrainedConfig) -> dict[str, Any]:
    """By transformers' names, too, where the architecture has names of its own for them."""
    settings = config.to_dict()
    return settings | {name: settings[own] for name, own in config.attribute_map.items() if own in settings}
