"""The routers of a mixture of experts: the loss that keeps the experts' loads even, and how even they are."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.models.mixtral.modeling_mixtral import load_balancing_loss_func
from transformers.utils.output_capturing import OutputRecorder

from alignment.config.errors import ConfigError
from alignment.models.logprobs import entropy_of


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


class RouterLoads:
    """Where a mixture's routers send the tokens, layer by layer, in the forwards that are counted.

    Of architectures whose routers put out logits and, behind them, the experts that they choose, as nearly all of
    transformers' do.
    """

    def __init__(self, hf: PreTrainedModel) -> None:
        kinds = tuple(_router_kinds(hf.base_model))
        self.routers = [module for module in hf.base_model.modules() if isinstance(module, kinds)]
        self._table: Tensor | None = None  # [layers, experts + 2] float64: tokens by expert, entropies, tokens

    @contextmanager
    def counting(self, mask: Tensor) -> Iterator[None]:
        """Inside, a forward of rows is counted where `mask` [R, L] bool has a token; in a layer that computes only some
        of them, at these."""
        hooks = [
            router.register_forward_hook(partial(self._count, number, mask))
            for number, router in enumerate(self.routers)
        ]
        try:
            yield
        finally:
            for hook in hooks:
                hook.remove()

    @torch.no_grad()
    def _count(self, number: int, mask: Tensor, router: nn.Module, inputs: Any, output: Any) -> None:
        if not isinstance(output, tuple) or len(output) != 3 or output[2].is_floating_point():
            return
        logits, chosen = output[0].flatten(0, -2), output[2].flatten(0, -2)
        experts = logits.shape[-1]
        if self._table is None:
            self._table = torch.zeros(len(self.routers), experts + 2, dtype=torch.float64, device=logits.device)
        counts = mask.flatten().double() if len(chosen) == mask.numel() else chosen.new_ones(len(chosen)).double()
        entropy = entropy_of(logits, 1.0).double()
        row = self._table[number]
        row[:-2].scatter_add_(0, chosen.flatten(), counts[:, None].expand(chosen.shape).flatten())
        row[-2:] += torch.stack([(entropy * counts).sum(), counts.sum()])

    def take(self) -> Tensor | None:
        """What was counted since the last time: [layers, experts + 2], the tokens that each expert was sent, the sum of
        the entropies of the routers' probabilities (nats), and the tokens. None where nothing was."""
        table, self._table = self._table, None
        return table


def router_statistics(table: Tensor) -> dict[str, Tensor]:
    """Of a table of `RouterLoads`, of all processes: means over layers of the largest and the smallest load of an
    expert, as multiples of an even one, and the entropy."""
    loads = table[:, :-2]
    shares = loads * loads.shape[1] / loads.sum(1, keepdim=True).clamp(min=1)
    return {
        "router/load_max": shares.amax(1).mean(),
        "router/load_min": shares.amin(1).mean(),
        "router/entropy": (table[:, -2] / table[:, -1].clamp(min=1)).mean(),
    }


def _router_kinds(body: nn.Module) -> Iterator[type[nn.Module]]:
    """The classes whose outputs transformers takes for routers' logits."""
    recorded = type(body)._can_record_outputs if isinstance(body, PreTrainedModel) else None
    found = (recorded or {}).get("router_logits", [])
    for each in found if isinstance(found, list) else [found]:
        yield each.target_class if isinstance(each, OutputRecorder) else each


def _settings(config: PreTrainedConfig) -> dict[str, Any]:
    """By transformers' names, too, where the architecture has names of its own for them."""
    settings = config.to_dict()
    return settings | {name: settings[own] for name, own in config.attribute_map.items() if own in settings}
