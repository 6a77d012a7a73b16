"""What the first step must be, because nothing has been learned yet."""

import math

from alignment.check.agreement import MeasuredStep
from alignment.check.verdict import Verdict, graded
from alignment.config.distributed import Precision
from alignment.config.supervised import DPOConfig
from alignment.losses import DPOLoss
from alignment.losses.dpo import DPOVariant

TOLERANCE = {Precision.float32: 1e-4, Precision.bfloat16: 2e-2, Precision.float16: 2e-2}


def first_loss(loss: DPOLoss) -> float:
    """Of a policy that is its reference, c = r = h = 0 (written out here, for `DPOLoss` itself is on trial)."""
    match loss.variant:
        case DPOVariant.sigmoid | DPOVariant.sigmoid_norm | DPOVariant.robust | DPOVariant.aot:
            return math.log(2)
        case DPOVariant.nca_pair | DPOVariant.bco_pair:
            return 2 * math.log(2)
        case DPOVariant.exo_pair:
            flipped = loss.label_smoothing
            return -math.log(2) - (math.log(1 - flipped) + math.log(flipped)) / 2
        case DPOVariant.sppo_hard:
            return 1 / (2 * loss.beta**2)
        case DPOVariant.discopop:
            return (math.log(2) + 1) / 2
        case DPOVariant.ipo:
            return 1 / (4 * loss.beta**2)
        case DPOVariant.hinge | DPOVariant.apo_zero | DPOVariant.apo_down:
            return 1.0


def reference_start(config: DPOConfig, first: MeasuredStep, precision: Precision) -> Verdict:
    """That DPO's policy is its reference before the first step: the loss is that of no difference, log 2.

    Proves that reference and policy read the same tokens with the same weights, and that nothing is random in them.
    `first`: a step without margins and likelihood, which differ from row to row.
    """
    wanted, loss = first_loss(config.loss), first.loss
    tolerance = TOLERANCE[precision] * max(1.0, wanted)
    name = "log 2" if math.isclose(wanted, math.log(2)) else "its value"
    figure = f"loss {loss:.6f} before the first step, {name} where policy == reference is {wanted:.6f}"
    return Verdict("policy == reference", graded(abs(loss - wanted) < tolerance), figure)
