"""Which weights an optimizer treats alike: the one place where decay and learning rates of their own are dealt out."""

from dataclasses import dataclass, field, replace

from torch.nn import Parameter

from alignment.config.errors import require
from alignment.config.run import TrainingConfig
from alignment.config.train import TrainConfig
from alignment.distributed.engine import shape_of
from alignment.models.heads import Trunk
from alignment.models.init import config_of
from alignment.models.weight_kinds import WeightKind, head_of, is_for, is_of_adapter, weight_kinds


@dataclass(frozen=True, slots=True)
class Treatment:
    """What weights of a group have in common."""

    decays: bool
    lr_ratio: float
    """Their learning rate, as a multiple of the run's."""
    is_special: bool
    """Whether the optimizer is for them (`is_for`)."""
    begins_anew: bool = False
    """Whether an adapter that is merged and begins anew: what the optimizer has gathered of them is let go."""


@dataclass(slots=True)
class ParameterGroup:
    treatment: Treatment
    weights: dict[str, Parameter] = field(default_factory=dict)
    """By name, in the model's order."""


def parameter_groups(
    model: Trunk, config: TrainConfig, *, lora_plus: float = 1.0, merges: bool = False
) -> list[ParameterGroup]:
    """The trained weights in the optimizer's groups, none of them empty. First come those at the run's own learning
    rate, the matrices before what does not decay. `merges`: whether adapters begin anew as the run goes on.

    What has one dimension does not decay: norms, biases, DoRA's lengths. Embeddings do. transformers' trainer, which
    goes by names, has the same of all that is so named.
    """
    kinds = weight_kinds(model, head_of(model.hf) if isinstance(model, Trunk) else None)
    groups: dict[Treatment, ParameterGroup] = {}
    for name, weight in model.trained().items():
        treatment = _treatment(config, lora_plus, kinds[name], len(shape_of(weight)))
        treatment = replace(treatment, begins_anew=merges and is_of_adapter(name))
        groups.setdefault(treatment, ParameterGroup(treatment)).weights[name] = weight
    return sorted(groups.values(), key=_place)


def _treatment(config: TrainConfig, lora_plus: float, kind: WeightKind, num_dimensions: int) -> Treatment:
    ratios = {
        WeightKind.embedding: config.embedding_lr_ratio,
        WeightKind.head: config.head_lr_ratio,
        WeightKind.adapter_b: lora_plus,
    }
    is_special = is_for(config.optimizer, kind, num_dimensions)
    return Treatment(num_dimensions >= 2, ratios.get(kind, 1.0), is_special)


def _place(group: ParameterGroup) -> tuple[bool, bool, bool]:
    return group.treatment.lr_ratio != 1, not group.treatment.decays, not group.treatment.is_special


def require_own_head(config: TrainingConfig) -> None:
    """Raises:
    ConfigError: the head is to have a learning rate of its own, and is the same weight as the embeddings.
    """
    ratio = config.train.head_lr_ratio
    if ratio != 1 and not config.has_scalar_head:
        rule = (
            "train.head_lr_ratio must be 1 for a model whose head is its embeddings (tie_word_embeddings), which are "
        )
        rule += "train.embedding_lr_ratio's"
        require(not config_of(config.model).tie_word_embeddings, rule, ratio)
