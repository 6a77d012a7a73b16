"""What a reply is worth: a reward model's score, or a function's."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import NoReturn, Protocol

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from alignment.config.batch import BatchConfig
from alignment.config.distributed import DistributedConfig
from alignment.config.errors import UserError, error_prefix
from alignment.config.model import ModelConfig, Quantization
from alignment.config.reward import ScorerConfig, ScorerEntry
from alignment.data.batches import Packer
from alignment.data.tokenize import Example
from alignment.distributed.collectives import pick_device, rank, size, sum_over_ranks
from alignment.distributed.frozen import shard_frozen
from alignment.distributed.precision import autocast
from alignment.distributed.sharded import placement_of
from alignment.generation.dialogue import Reader
from alignment.generation.function import FunctionScorer, load_function
from alignment.generation.samples import Samples
from alignment.models.forwards import forwards
from alignment.models.heads import ScalarModel
from alignment.models.layout import settle_layout
from alignment.models.load import load_frozen_reward_model
from alignment.models.readout import sequence_scores
from alignment.models.tokenizer import prepare_tokenizer
from alignment.terminal import progress


class Scorer(Protocol):
    def score(self, samples: Samples) -> Tensor:
        """[G, n] float32 on the CPU."""
        ...


@dataclass(slots=True)
class RewardModelScorer:
    """The scalar head on each reply's last real token, as the model's own tokenizer and template lay the text out."""

    model: nn.Module  # a ScalarModel, or what shares its weights out
    reader: Reader
    batch: BatchConfig
    distributed: DistributedConfig
    path: str  # the model's folder

    @property
    def hf(self) -> PreTrainedModel:
        """The transformers model, of one that is whole."""
        assert isinstance(self.model, ScalarModel)
        return self.model.hf

    def shard(self) -> None:
        """Under ZeRO 3, layer by layer; otherwise every process keeps the whole model."""
        self.model = shard_frozen(self.model, self.distributed)

    def score(self, samples: Samples) -> Tensor:
        """[G, n] float32 on the CPU."""
        return self.score_examples(self.reader.examples(samples))

    def score_examples(self, examples: Sequence[Example], describe: str | None = None) -> Tensor:
        """[G, n] float32 on the CPU, of n completions of each; all processes together, each a share.

        `describe` names the progress bar; None shows none.

        Raises:
            UserError: a score is no finite number; names the model's key and folder, and the first such reply.
        """
        table = self._table(examples, describe)
        if not table.isfinite().all():
            self._tell(table, examples)
        return table

    def _table(self, examples: Sequence[Example], describe: str | None = None) -> Tensor:
        device = pick_device(self.distributed.device)
        if isinstance(self.model, ScalarModel):
            self.model.to(device)  # it may have been offloaded to the CPU
        packer = Packer(self.batch, self.reader.tokenizer.pad_token_id, rank(), size())
        batches = packer.eval_batches(examples)
        table = torch.zeros(len(examples), len(examples[0].completion_ids), device=device)
        shown = batches if describe is None else progress(batches, describe)
        read, precision = partial(sequence_scores, self.model), partial(autocast, self.distributed)
        for batch, scores, counts in forwards(shown, read, device=device, precision=precision):
            if counts:
                table[batch.rows] = scores.view(len(batch.rows), -1)
        return sum_over_ranks(table).cpu()

    def _tell(self, table: Tensor, examples: Sequence[Example]) -> NoReturn:
        """Which reply it is: scored again, each by itself, since nan spreads to what lies beside it in a batch."""
        alone = [
            replace(examples[row], completion_ids=(ids,), finished=(True,), learned=None)
            for row in (~table.isfinite()).any(1).nonzero()[:, 0].tolist()
            for ids in examples[row].completion_ids
        ]
        scores = self._table(alone)[:, 0]
        broken = (~scores.isfinite()).nonzero()[:, 0].tolist() or [0]
        first = alone[broken[0]]
        text = self.reader.tokenizer.decode(first.completion_ids[0], skip_special_tokens=True)
        found = f"got {scores[broken[0]].item()} of {self.path!r} for the reply {text!r:.80} to {first.source}"
        raise UserError(f"{self.reader.key} must give finite scores, {found} ({len(broken)} of {table.numel()})")


def build_scorer(
    config: ScorerConfig | ScorerEntry,
    batch: BatchConfig,
    distributed: DistributedConfig,
    *,
    key: str = "reward",
    trusted: bool = False,
) -> FunctionScorer | RewardModelScorer:
    """The scorer of one `path` or `function`; `key` is where its user set it, `trusted` whether code in it may run."""
    if config.path is None:
        assert config.function is not None
        name = f"{key}.function"
        return FunctionScorer(load_function(config.function, name), name, config.function)
    return reward_model_scorer(config.path, batch, distributed, key=f"{key}.path", trusted=trusted)


def reward_model_scorer(
    path: str,
    batch: BatchConfig,
    distributed: DistributedConfig,
    *,
    key: str = "reward.path",
    trusted: bool = False,
) -> RewardModelScorer:
    """A frozen reward model, of any family.

    Raises:
        ConfigError: the folder holds no reward model with its tokenizer; names `key`.
    """
    settings = ModelConfig(path=path, trust_remote_code=trusted)
    with error_prefix(key):
        tokenizer = prepare_tokenizer(settings)
        model = load_frozen_reward_model(settings, tokenizer, placement_of(distributed), key=key)
    model.to(pick_device(distributed.device))
    batch = replace(batch, layout=settle_layout(model, batch.layout))
    reader = Reader(tokenizer, model.most_tokens(), key)
    return RewardModelScorer(model, reader, batch, distributed, path)


def packed_scorer(full: RewardModelScorer, quantization: Quantization, *, trusted: bool) -> RewardModelScorer:
    """The same model, packed as it is read. It is read in the full one's layout: of the same layers."""
    key, settings = full.reader.key, ModelConfig(path=full.path, trust_remote_code=trusted, quantization=quantization)
    with error_prefix(key):
        model = load_frozen_reward_model(settings, full.reader.tokenizer, placement_of(full.distributed), key=key)
    return replace(full, model=model.to(pick_device(full.distributed.device)))
