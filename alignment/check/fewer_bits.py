"""A model beside itself in fewer bits: that the self can be had, and how far off it is, which is no fault."""

from collections.abc import Iterator
from dataclasses import replace

from torch import Tensor
from transformers import PreTrainedModel

from alignment.check.agreement import EVERYTHING, Reader, of_tokens
from alignment.check.subject import FEW, shortest
from alignment.check.verdict import Verdict, graded
from alignment.config.evaluate import EvaluateConfig, name_of_self
from alignment.config.quantized_self import QuantizedSelf
from alignment.data.batches import Batches
from alignment.data.loaded import Loaded
from alignment.generation.score import RewardModelScorer
from alignment.models.fewer_bits import cost_of, weight_bytes
from alignment.tasks.compared import ComparedPolicy
from alignment.tasks.quantized_selves import judge_self, load_self

MEGABYTE = 1e6


def of_selves(config: EvaluateConfig, full: ComparedPolicy, reader: Reader, batches: Batches) -> Iterator[Verdict]:
    """The baseline's, one at a time, on some rows. `reader`: of the baseline as it is."""
    for kind in config.quantized:
        [(batch, _)] = of_tokens(batches, EVERYTHING).once()
        own = load_self(config, full, kind)
        ours, theirs = reader.read(batch), replace(reader, model=own.policy, engine=own.engine).read(batch)
        off = f"{len(batch.rows)} rows by {(ours - theirs).abs().mean():.1e} {reader.unit}"
        yield _verdict(name_of_self(config.baseline, kind), theirs, _cost(full.policy.hf, own.policy.hf, kind), off)
        own.engine.release()


def of_judges(config: EvaluateConfig, full: RewardModelScorer, pairs: Loaded) -> Iterator[Verdict]:
    """Those of a reward model alone, one at a time, on the shortest pairs."""
    some = shortest(pairs.examples, min(FEW, len(pairs.examples)))
    for kind in config.quantized:
        own = judge_self(config, full, kind)
        ours, theirs = full.score_examples(some), own.score_examples(some)
        off = f"scores of {len(some)} pairs by {(ours - theirs).abs().mean():.1e}"
        yield _verdict(name_of_self("reward", kind), theirs, _cost(full.hf, own.hf, kind), off)


def _cost(full: PreTrainedModel, own: PreTrainedModel, kind: QuantizedSelf) -> str:
    cost = cost_of(full, own, kind)
    sizes = f"{cost.num_bytes / MEGABYTE:.3g} MB of weights in place of {weight_bytes(full) / MEGABYTE:.3g}"
    return f"{sizes}; linear layers' weights are off by {cost.error.relative:.2%} of their norm"


def _verdict(name: str, gives: Tensor, cost: str, off: str) -> Verdict:
    return Verdict(f"{name}: in fewer bits", graded(bool(gives.isfinite().all())), f"{cost}, {off} on average")
