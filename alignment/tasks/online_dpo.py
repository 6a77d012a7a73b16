"""Online DPO (Guo et al. 2402.04792): pairs of the policy's own replies, new at every step, judged as they come."""

from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from alignment.config.online import OnlineDPOConfig
from alignment.data.pack import Batch
from alignment.distributed.collectives import size, sum_over_ranks
from alignment.distributed.sharded import placement_of
from alignment.generation.gold import build_gold
from alignment.generation.select import preferences
from alignment.losses import Mean
from alignment.models.load import load_language_model
from alignment.rl.on_policy import OnPolicy
from alignment.rl.reference import Reference, another_reference, build_reference, shard_reference
from alignment.rl.rewards import reward_of
from alignment.rl.rollouts import build_rollouts, load_prompts
from alignment.training.aot import dpo_objective
from alignment.training.loop import fit
from alignment.training.metrics import Metrics
from alignment.training.nonfinite import NonFiniteGuard
from alignment.training.setup import save_trained, say_size
from alignment.training.step import train_step


def run(config: OnlineDPOConfig, folder: Path) -> str | None:
    return fit(build_trainer(config, folder), config, folder)


def build_trainer(config: OnlineDPOConfig, folder: Path) -> "OnlineDPO":
    prompts = load_prompts(config)
    scorer = prompts.scorer(reward_of(config), build_gold(config))
    another, config = another_reference(config, prompts.tokenizer, [prompts.train, prompts.held_out])
    policy = load_language_model(config.model, prompts.tokenizer, placement_of(config.distributed))
    reference = another or build_reference(policy)
    rollouts = build_rollouts(config, prompts, scorer, policy, folder)
    say_size(rollouts.engine)
    shard_reference(reference, config.distributed)
    save = partial(save_trained, rollouts.engine, policy, prompts.tokenizer)
    return OnlineDPO(rollouts, save, config, reference)


@dataclass(slots=True)
class OnlineDPO(OnPolicy):
    """Draw, judge, and learn from the pairs, once."""

    config: OnlineDPOConfig
    reference: Reference

    def collect(self, step: int) -> tuple[Metrics, tuple[list[Batch], Tensor]]:
        """This process's micro-batches of the pairs, and the log-probs of all pairs, chosen and rejected, under the
        reference, [pairs, 2], nats."""
        engine = self.rollouts.engine
        samples, scores, metrics = self.rollouts.draw_and_score(step)
        pairs = preferences(samples, scores, self.config.pairs, size())
        # pairs per prompt; ties have weight 0
        metrics["pairs"] = Mean(torch.tensor(sum(pair.weight for pair in pairs)), torch.tensor(len(samples.examples)))
        batches, table = [], torch.zeros(len(pairs), 2, device=engine.device)
        if pairs:  # of which all processes have the same
            with self.timer.part("experience"):
                batches = self.rollouts.batches.packer.train_batches(pairs)
                for batch in (batch.to(engine.device) for batch in batches):
                    with engine.precision():
                        logprobs = self.reference.logprobs(batch, temperature=1.0)
                    table[batch.rows] = batch.sum_by_completion(logprobs).view(-1, 2).to(table.dtype)
                table = sum_over_ranks(table)  # AOT compares with the pairs of all processes
        self.timer.count(batches)
        return self.rollouts.mismatch(samples) | metrics.counted_by_main(), (batches, table)

    def update(self, step: int, units: tuple[list[Batch], Tensor], nonfinite: NonFiniteGuard) -> Metrics:
        """Nothing is learned where the replies to each prompt all score alike."""
        batches, table = units
        if not batches:
            return Metrics()
        objective = dpo_objective(self.config.loss, table)
        return train_step(self.rollouts.engine, objective, batches, partial(nonfinite.record, step))
