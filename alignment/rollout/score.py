"""What a reply is worth: a reward model's score, or a function's."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from alignment.config.parts import BatchConfig, ConfigError, DistributedConfig, ModelConfig
from alignment.config.ppo import OneScorerConfig, ScorerConfig
from alignment.data.batches import shared_out
from alignment.data.tokenize import Example
from alignment.distributed.frozen import FrozenEngine
from alignment.distributed.precision import autocast
from alignment.distributed.sharded import placement_of
from alignment.distributed.world import pick_device, rank, size, sum_over_ranks
from alignment.models.heads import ScalarModel
from alignment.models.layout import settle_layout
from alignment.models.load import freeze, load_reward_model
from alignment.models.readout import sequence_scores
from alignment.models.tokenizer import load_tokenizer
from alignment.rollout.function import FunctionScorer, load_function
from alignment.rollout.samples import Samples
from alignment.terminal import progress


class Scorer(Protocol):
    def score(self, samples: Samples) -> Tensor:
        """[G, n] float32 on the CPU."""
        ...


@dataclass(slots=True)
class RewardModelScorer:
    """The scalar head on each reply's last real token."""

    model: nn.Module  # a ScalarModel, or what shares its weights out
    batch: BatchConfig
    distributed: DistributedConfig
    pad_id: int

    def share_out(self) -> None:
        """Under ZeRO 3: among the processes, layer by layer."""
        self.model = FrozenEngine(self.model, config=self.distributed, sharded=True).model

    def score(self, samples: Samples) -> Tensor:
        return self.score_examples(samples.examples)

    @torch.no_grad()
    def score_examples(self, examples: Sequence[Example], describe: str | None = None) -> Tensor:
        """[G, n] float32 on the CPU, of n completions of each; all processes together, each a share.

        `describe` names the progress bar; None shows none.
        """
        device = pick_device(self.distributed.device)
        if isinstance(self.model, ScalarModel):
            self.model.to(device)  # it may have been sent to rest on the CPU
        mine, spare = shared_out(examples, range(len(examples)), self.batch, self.pad_id, rank(), size())
        table = torch.zeros(len(examples), len(examples[0].completion_ids), device=device)
        batches = [*mine, *spare]
        for index, batch in enumerate(batches if describe is None else progress(batches, describe)):
            with autocast(self.distributed):
                scores = sequence_scores(self.model, batch.to(device))
            if index < len(mine):
                table[batch.rows] = scores.view(len(batch.rows), -1)
        return sum_over_ranks(table).cpu()


def build_scorer(
    config: ScorerConfig | OneScorerConfig,
    tokenizer: PreTrainedTokenizerBase,
    batch: BatchConfig,
    distributed: DistributedConfig,
    *,
    key: str = "reward",
) -> FunctionScorer | RewardModelScorer:
    """The scorer of one `path` or `function`; `key` is where its user set it."""
    if config.path is None:
        assert config.function is not None
        name = f"{key}.function"
        return FunctionScorer(load_function(config.function, name), name, config.function)
    return reward_model_scorer(config.path, tokenizer, batch, distributed, key=f"{key}.path")


def reward_model_scorer(
    path: str,
    tokenizer: PreTrainedTokenizerBase,
    batch: BatchConfig,
    distributed: DistributedConfig,
    *,
    key: str = "reward.path",
) -> RewardModelScorer:
    """A frozen reward model that reads the policy's token ids.

    Raises:
        ConfigError: its tokenizer is another than the policy's; names `key`.
    """
    settings = ModelConfig(path=path)
    if load_tokenizer(settings).get_vocab() != tokenizer.get_vocab():
        raise ConfigError(f"{key} must have the policy's tokenizer, got another one in {path!r}")
    model = load_reward_model(settings, tokenizer, placement_of(distributed), key=key).to(
        pick_device(distributed.device)
    )
    freeze(model)
    batch = replace(batch, layout=settle_layout(model, batch.layout))
    return RewardModelScorer(model, batch, distributed, tokenizer.pad_token_id)
