"""A reference that is another model than the policy, from `reference.path`."""

from collections.abc import Sequence
from dataclasses import replace

from transformers import PreTrainedTokenizerBase

from alignment.config.distributed import DistributedConfig
from alignment.config.errors import error_prefix, require
from alignment.config.model import LoraConfig, ModelConfig
from alignment.config.run import TrainingConfig
from alignment.config.soft_prompt import SoftPromptConfig
from alignment.data.loaded import Loaded
from alignment.distributed.sharded import placement_of
from alignment.models.heads import LanguageModel
from alignment.models.load import load_frozen_language_model
from alignment.models.tokenizer import knows_tokens_of, load_tokenizer
from alignment.training.setup import require_positions

KEY = "reference.path"


def load_reference(
    path: str, model: ModelConfig, tokenizer: PreTrainedTokenizerBase, distributed: DistributedConfig
) -> LanguageModel:
    """Frozen, held in what it computes in, and under ZeRO 3 sharded from the start on. It reads as the policy `model`
    does, and has no adapter of its own.

    Raises:
        ConfigError: there is no such language model in the folder.
    """
    with error_prefix(KEY, own="model.path"):
        return load_frozen_language_model(_settings(path, model), tokenizer, placement_of(distributed))


def require_reference_reads(
    path: str,
    config: TrainingConfig,
    tokenizer: PreTrainedTokenizerBase,
    splits: Sequence[Loaded | None],
    new_tokens: int = 0,
) -> None:
    """Before any weights are loaded.

    Raises:
        ConfigError: the reference makes other tokens of the rows than the policy, or has fewer positions than they.
    """
    with error_prefix(KEY, own="model.path"):
        theirs = load_tokenizer(ModelConfig(path=path, trust_remote_code=config.model.trust_remote_code))
        rule = f"{KEY} must have the vocabulary of the policy, whose tokens the reference reads"
        require(knows_tokens_of(theirs, tokenizer), f"{rule}; null takes the policy itself", path)
        require_positions(_settings(path, config.model), splits, config.data, new_tokens)


def _settings(path: str, model: ModelConfig) -> ModelConfig:
    frozen = replace(model, lora=LoraConfig(), soft_prompt=SoftPromptConfig(), router_loss=None)
    return replace(frozen, path=path, adapter=None, resize_embeddings=False, gradient_checkpointing=False)
