"""AOT's objective: DPO whose reference is, for each pair, that of the pair of the same rank in the whole step."""

from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor, nn

from alignment.data.batches import EvenBatches
from alignment.data.pack import Batch
from alignment.distributed.collectives import gathered
from alignment.distributed.engine import Engine
from alignment.losses import DPOLoss, DPOVariant, LossOutput
from alignment.models.forwards import forwards
from alignment.models.readout import completion_logprobs
from alignment.training.objectives import DPO


@dataclass(slots=True)
class AOT(DPO):
    """Paired alignment via optimal transport (Melnyk et al. 2406.05882), over the step's pairs on all processes.

    Each row has one rank, whatever its weight, also where it comes twice in a step that crosses the end of a pass.
    """

    shifts: dict[int, float] = field(default_factory=dict)
    """By the pair's row: what the log-ratio of its partner in the reference has over its own, nats."""

    def prepare(self, engine: Engine, batches: EvenBatches[Batch]) -> None:
        """A forward of the step's pairs, to rank them; the cut and the number of processes do not change the ranks."""
        was_training = engine.model.training
        engine.model.eval()
        own: dict[int, float] = {}
        read = partial(completion_logprobs, engine.model)
        for batch, logprobs, counts in forwards(batches, read, device=engine.device, precision=engine.precision):
            chosen, rejected = logprobs.view(-1, 2).unbind(1)
            if counts:  # pairs of weight 0, which fill up the last processes' shares, do not
                ratios = zip(batch.rows.tolist(), (chosen - rejected).tolist(), strict=True)
                own |= {row: ratio for (row, ratio), weight in zip(ratios, batch.weights, strict=True) if weight > 0}
        engine.model.train(was_training)
        policy = {row: ratio for ratios in gathered(own) for row, ratio in ratios.items()}
        reference = {row: float(self.reference[row, 0] - self.reference[row, 1]) for row in policy}
        ranked = sorted(policy, key=lambda row: (policy[row], row))
        partners = sorted(reference.values())
        self.shifts = {row: partner - reference[row] for row, partner in zip(ranked, partners, strict=True)}

    def __call__(self, model: nn.Module, batch: Batch) -> LossOutput:
        shift = [self.shifts.get(row, 0.0) for row in batch.rows.tolist()]  # none of a batch that is not counted
        return self.on_pairs(model, batch, torch.tensor(shift, device=batch.input_ids.device))


def dpo_objective(loss: DPOLoss, reference: Tensor) -> DPO:
    """Of any variant; `reference` as DPO's."""
    return (AOT if loss.variant is DPOVariant.aot else DPO)(loss, reference)
