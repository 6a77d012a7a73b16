"""Every dataclass that Hydra fills: one root per task, defaults here and nowhere else."""

from typing import TYPE_CHECKING

from alignment.lazy import exports

if TYPE_CHECKING:
    from alignment.config.batch import BatchConfig
    from alignment.config.best import BestConfig
    from alignment.config.checkpoint import CheckpointConfig
    from alignment.config.data import DataConfig, ExampleKind
    from alignment.config.distributed import DistributedConfig
    from alignment.config.errors import ConfigError, UserError
    from alignment.config.evaluate import EvaluateConfig
    from alignment.config.generation import GenerationConfig
    from alignment.config.launch import LaunchConfig
    from alignment.config.log import LogConfig
    from alignment.config.margin import MarginConfig
    from alignment.config.model import LoraConfig, ModelConfig
    from alignment.config.online import OnlineDPOConfig, PPOConfig
    from alignment.config.ppo import AdvantageConfig, CriticConfig, KLConfig, PPOUpdateConfig, PtxConfig, RolesConfig
    from alignment.config.reward import RewardShapingConfig, ScorerConfig
    from alignment.config.soft_prompt import SoftPromptConfig
    from alignment.config.sources import EvalSource, TrainSource
    from alignment.config.supervised import (
        CPOConfig,
        DPOConfig,
        KTOConfig,
        ORPOConfig,
        ReferenceConfig,
        RewardConfig,
        RewardProcessConfig,
        RewardRegressionConfig,
        SFTConfig,
        SimPOConfig,
    )
    from alignment.config.tasks import PipelineConfig, RejectionConfig, StageConfig
    from alignment.config.train import TrainConfig

__all__, __getattr__ = exports(
    __name__,
    {
        "AdvantageConfig": "alignment.config.ppo",
        "BatchConfig": "alignment.config.batch",
        "BestConfig": "alignment.config.best",
        "CPOConfig": "alignment.config.supervised",
        "CheckpointConfig": "alignment.config.checkpoint",
        "ConfigError": "alignment.config.errors",
        "CriticConfig": "alignment.config.ppo",
        "DPOConfig": "alignment.config.supervised",
        "DataConfig": "alignment.config.data",
        "DistributedConfig": "alignment.config.distributed",
        "EvalSource": "alignment.config.sources",
        "EvaluateConfig": "alignment.config.evaluate",
        "ExampleKind": "alignment.config.data",
        "GenerationConfig": "alignment.config.generation",
        "KLConfig": "alignment.config.ppo",
        "KTOConfig": "alignment.config.supervised",
        "LaunchConfig": "alignment.config.launch",
        "LogConfig": "alignment.config.log",
        "LoraConfig": "alignment.config.model",
        "MarginConfig": "alignment.config.margin",
        "ModelConfig": "alignment.config.model",
        "ORPOConfig": "alignment.config.supervised",
        "OnlineDPOConfig": "alignment.config.online",
        "PPOConfig": "alignment.config.online",
        "PPOUpdateConfig": "alignment.config.ppo",
        "PipelineConfig": "alignment.config.tasks",
        "PtxConfig": "alignment.config.ppo",
        "ReferenceConfig": "alignment.config.supervised",
        "RejectionConfig": "alignment.config.tasks",
        "RewardConfig": "alignment.config.supervised",
        "RewardProcessConfig": "alignment.config.supervised",
        "RewardRegressionConfig": "alignment.config.supervised",
        "RewardShapingConfig": "alignment.config.reward",
        "RolesConfig": "alignment.config.ppo",
        "SFTConfig": "alignment.config.supervised",
        "ScorerConfig": "alignment.config.reward",
        "SimPOConfig": "alignment.config.supervised",
        "SoftPromptConfig": "alignment.config.soft_prompt",
        "StageConfig": "alignment.config.tasks",
        "TrainConfig": "alignment.config.train",
        "TrainSource": "alignment.config.sources",
        "UserError": "alignment.config.errors",
    },
)
