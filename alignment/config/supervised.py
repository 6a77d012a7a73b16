"""Runs that train on rows of data: SFT, reward models of all kinds, DPO and its kin, KTO."""

from dataclasses import dataclass, field
from typing import ClassVar

from alignment.config.data import DataConfig, ExampleKind
from alignment.config.errors import require
from alignment.config.margin import MarginScale
from alignment.config.reference import ReferenceConfig
from alignment.config.run import TrainingConfig
from alignment.losses import (
    CPOLoss,
    CrossEntropyLoss,
    DPOLoss,
    KTOLoss,
    MarginRankingLoss,
    ORPOLoss,
    ProcessRewardLoss,
    RankingVariant,
    ScoreRegressionLoss,
    SimPOLoss,
)
from alignment.losses.dpo import WITH_MARGIN


@dataclass(slots=True)
class SFTConfig(TrainingConfig):
    is_policy: ClassVar[bool] = True
    has_rate_rule: ClassVar[bool] = True
    example_kind: ClassVar[ExampleKind | None] = ExampleKind.demonstrations
    loss: CrossEntropyLoss = field(default_factory=CrossEntropyLoss)


@dataclass(slots=True)
class ScalarConfig(TrainingConfig):
    """What trains a model with a head of one number."""

    @property
    def has_scalar_head(self) -> bool:
        return True


@dataclass(slots=True)
class RewardRegressionConfig(ScalarConfig):
    example_kind: ClassVar[ExampleKind | None] = ExampleKind.scored
    loss: ScoreRegressionLoss = field(default_factory=ScoreRegressionLoss)


@dataclass(slots=True)
class RewardProcessConfig(ScalarConfig):
    example_kind: ClassVar[ExampleKind | None] = ExampleKind.steps
    loss: ProcessRewardLoss = field(default_factory=ProcessRewardLoss)


@dataclass(slots=True)
class RewardConfig(ScalarConfig):
    example_kind: ClassVar[ExampleKind | None] = ExampleKind.pairs
    loss: MarginRankingLoss = field(default_factory=MarginRankingLoss)

    def __post_init__(self) -> None:
        TrainingConfig.__post_init__(self)
        _require_something_to_scale(self.data, self.loss.margin_scale)
        rule = "data.margin.scale must not be none for loss.variant=scaled, which weighs a pair by its margin"
        is_scaled = self.loss.variant is RankingVariant.scaled
        require(not is_scaled or self.data.margin.scale is not MarginScale.none, rule, self.data.margin.scale.value)


@dataclass(slots=True)
class ReferencedConfig(TrainingConfig):
    """What learns beside a frozen reference, whose log-probs are computed before the first step."""

    is_policy: ClassVar[bool] = True
    reference: ReferenceConfig = field(default_factory=ReferenceConfig)


@dataclass(slots=True)
class DPOConfig(ReferencedConfig):
    example_kind: ClassVar[ExampleKind | None] = ExampleKind.pairs
    loss: DPOLoss = field(default_factory=DPOLoss)

    def __post_init__(self) -> None:
        TrainingConfig.__post_init__(self)
        _require_something_to_scale(self.data, self.loss.margin_scale)
        if self.data.margin.scale is not MarginScale.none:
            rule = (
                f"data.margin.scale must be none for loss.variant={self.loss.variant.value}, whose loss has no margin"
            )
            require(self.loss.variant in WITH_MARGIN, rule, self.data.margin.scale.value)
            rule = "loss.label_smoothing must be 0 with the margins of data.margin.scale"
            require(self.loss.label_smoothing == 0, rule, self.loss.label_smoothing)


@dataclass(slots=True)
class KTOConfig(ReferencedConfig):
    example_kind: ClassVar[ExampleKind | None] = ExampleKind.labeled
    loss: KTOLoss = field(default_factory=KTOLoss)


@dataclass(slots=True)
class ORPOConfig(TrainingConfig):
    is_policy: ClassVar[bool] = True
    example_kind: ClassVar[ExampleKind | None] = ExampleKind.pairs
    loss: ORPOLoss = field(default_factory=ORPOLoss)

    def __post_init__(self) -> None:
        TrainingConfig.__post_init__(self)
        _require_no_margin(self.data, "orpo")


@dataclass(slots=True)
class SimPOConfig(TrainingConfig):
    is_policy: ClassVar[bool] = True
    example_kind: ClassVar[ExampleKind | None] = ExampleKind.pairs
    loss: SimPOLoss = field(default_factory=SimPOLoss)

    def __post_init__(self) -> None:
        TrainingConfig.__post_init__(self)
        _require_no_margin(self.data, "simpo")


@dataclass(slots=True)
class CPOConfig(TrainingConfig):
    is_policy: ClassVar[bool] = True
    example_kind: ClassVar[ExampleKind | None] = ExampleKind.pairs
    loss: CPOLoss = field(default_factory=CPOLoss)

    def __post_init__(self) -> None:
        TrainingConfig.__post_init__(self)
        _require_no_margin(self.data, "cpo")


def _require_something_to_scale(data: DataConfig, margin_scale: float) -> None:
    rule = "loss.margin_scale scales the margins of data.margin.scale, which is none"
    require(data.margin.scale is not MarginScale.none or margin_scale == 1, rule, margin_scale)


def _require_no_margin(data: DataConfig, task: str) -> None:
    rule = f"data.margin.scale must be none for {task}, whose loss has no margin"
    require(data.margin.scale is MarginScale.none, rule, data.margin.scale.value)
