"""What must come out alike: packed and one by one, one batch and several, one process and several."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from alignment.check.plain import plain_logprobs, plain_scores
from alignment.check.text import completions_of
from alignment.check.verdict import Verdict, graded
from alignment.config.batch import Layout
from alignment.config.distributed import DistributedConfig, Precision
from alignment.data.batches import Batches, Packer
from alignment.data.pack import Batch
from alignment.distributed.engine import Engine
from alignment.distributed.frozen import FrozenEngine
from alignment.distributed.precision import precision_of
from alignment.models.heads import LanguageModel, ScalarModel
from alignment.models.readout import sequence_scores, token_logprobs
from alignment.training.objectives import Objective
from alignment.training.step import taken_step

TOLERANCE = {Precision.float32: 2e-3, Precision.bfloat16: 0.1, Precision.float16: 0.1}
"""Mean difference of log-probs (nats) or scores that is rounding: a wrong mask, end or type of weights makes more."""
GRADIENT_TOLERANCE = {Precision.float32: 1e-3, Precision.bfloat16: 0.1, Precision.float16: 0.1}
"""Difference of two gradients over the size of one."""
SEEN = 4096  # about as many elements of each weight's gradient are compared
EIGHT_BITS = "Int8Params"  # bitsandbytes' own type
EVERYTHING, ONE_ROW = 10**9, 1  # batch.max_tokens: all rows at once, each row by itself


def judged_by(model: nn.Module, distributed: DistributedConfig) -> Precision:
    """By whose tolerance a model is judged: that in which it computes. LLM.int8()'s products have 8 bits, as numbers of
    bfloat16 have, whatever computes around them, and which numbers they are of depends on the pass."""
    if any(type(weight).__name__ == EIGHT_BITS for weight in model.parameters()):
        return Precision.bfloat16
    return precision_of(distributed)


@dataclass(frozen=True, slots=True)
class Reader:
    """A model in its engine, as the run reads with it."""

    model: LanguageModel | ScalarModel
    engine: Engine | FrozenEngine
    precision: Precision

    @torch.no_grad()
    def read(self, batch: Batch) -> Tensor:
        """float64 on the CPU: [T] log-probs of the tokens that carry loss, or [C] scores."""
        self.engine.model.eval()
        with self.engine.precision():
            readout = token_logprobs if isinstance(self.model, LanguageModel) else sequence_scores
            return readout(self.engine.model, batch.to(self.engine.device)).double().cpu()

    @property
    def tolerance(self) -> float:
        return TOLERANCE[self.precision]

    @property
    def unit(self) -> str:
        return "nats a token" if isinstance(self.model, LanguageModel) else "of a score"


@dataclass(frozen=True, slots=True)
class MeasuredStep:
    """What a training step would do."""

    metrics: dict[str, float]
    gradient: dict[int, Tensor]
    """Some of each weight's."""

    @property
    def loss(self) -> float:
        return self.metrics["loss"]


def packed(reader: Reader, batches: Batches, plain: PreTrainedModel) -> Verdict:
    """That log-probs (or scores) of the packed layout are those of each text alone, read by transformers itself.

    Proves the attention's mask, the positions, the read-outs, and that the weights are what the folder holds; but not
    the last where `model.quantization` packs them for a new adapter: those of both sides are the run's then.
    """
    batches = of_tokens(batches, EVERYTHING)
    [(batch, _)] = batches.once()
    rows = [batches.examples[row] for row in batch.rows.tolist()]
    ours = reader.read(batch)
    if isinstance(reader.model, LanguageModel):
        read = [(plain_logprobs(plain, e.prompt_ids, ids), learned) for e in rows for ids, learned in completions_of(e)]
        theirs = torch.cat([logprobs[torch.from_numpy(learned)] for logprobs, learned in read])
    else:
        theirs = plain_scores(plain, rows).double().flatten()
    difference = (ours - theirs).abs()
    layout = batches.packer.config.layout
    how = f"batch.layout={layout.value}{'' if layout is Layout.separate else ': a prompt once, its replies behind it'}"
    figure = (
        f"{len(rows)} rows packed as in the run ({how}), each against itself alone in plain transformers "
        f"(float32): mean difference {difference.mean():.1e}, largest {difference.max():.1e} "
        f"{reader.unit} (at most {reader.tolerance:g})"
    )
    return Verdict("packed == one by one", graded(bool(difference.mean() < reader.tolerance)), figure)


def padding(reader: Reader, batches: Batches, tokenizer: PreTrainedTokenizerBase, end_ids: Sequence[int]) -> Verdict:
    """That padding is never read: with another token in its place, all comes out alike.

    Asked of the shortest and the longest of the rows, of which the one is padded to the length of the other.
    """
    pad_id = tokenizer.pad_token_id
    config = replace(batches.packer.config, layout=Layout.separate, max_tokens=EVERYTHING)
    two = [batches.examples[0], batches.examples[-1]]
    ours, other = (reader.read(Packer(config, each).batch(two, range(2))) for each in (pad_id, int(pad_id == 0)))
    difference = float((ours - other).abs().mean())
    kind = "ends no reply"
    if pad_id in end_ids:
        kind = "ends replies too, and is told from their ends by its place"
    figure = (
        f"{tokenizer.pad_token} ({pad_id}) {kind}; two rows with another token in its place differ by "
        f"{difference:.1e} {reader.unit} (at most {reader.tolerance:g})"
    )
    return Verdict("padding", graded(difference < reader.tolerance), figure)


def micro_batches(whole: MeasuredStep, cut: MeasuredStep, count: int, precision: Precision) -> Verdict:
    """That a step's loss and gradient do not depend on how its rows were cut: in one micro-batch, and in `count`."""
    names = whole.gradient.keys()
    difference = sum((whole.gradient[name] - cut.gradient[name]).square().sum() for name in names)
    size = sum(whole.gradient[name].square().sum() for name in names)
    relative = float(torch.as_tensor(difference / size).sqrt())
    tolerance = GRADIENT_TOLERANCE[precision]
    figure = (
        f"the same rows in 1 micro-batch and in {count}: loss {whole.loss:.6g} and {cut.loss:.6g}, gradients differ by "
        f"{relative:.1e} of their size (at most {tolerance:g})"
    )
    same = abs(whole.loss - cut.loss) <= tolerance * max(1.0, abs(whole.loss)) and relative < tolerance
    return Verdict("one batch == several", graded(same), figure)


def of_tokens(batches: Batches, budget: int) -> Batches:
    packer = batches.packer
    return replace(batches, packer=replace(packer, config=replace(packer.config, max_tokens=budget)))


def measured_step(engine: Any, objective: Objective, batches: list[Any]) -> MeasuredStep:
    """A training step that leaves the weights as they are."""
    merging, engine.merging = engine.merging, None  # or the adapter would begin anew after it
    try:
        with gradients(engine.optimizer) as found:
            return MeasuredStep(taken_step(engine, objective, batches).means(), found)
    finally:
        engine.merging = merging


@contextmanager
def gradients(optimizer: Optimizer) -> Iterator[dict[int, Tensor]]:
    """Inside, a step of the optimizer changes nothing and leaves about `SEEN` elements of each gradient here."""
    found: dict[int, Tensor] = {}

    def take(optimizer: Optimizer, *_: Any) -> None:
        weights = [p for group in optimizer.param_groups for p in group["params"]]
        for number, p in enumerate(weights):
            if p.grad is not None:
                found[number] = p.grad.detach().flatten()[:: max(1, p.numel() // SEEN)].double().cpu()
                p.grad = None  # the optimizer passes over a weight without one

    hook = optimizer.register_step_pre_hook(take)
    try:
        yield found
    finally:
        hook.remove()
