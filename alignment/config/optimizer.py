"""The optimizers: what each takes of `train`, and where it runs."""

from dataclasses import dataclass
from enum import Enum


class OptimizerName(str, Enum):
    adamw = "adamw"
    """torch's AdamW (arXiv:1711.05101): two float32 states of each weight."""
    adamw_8bit = "adamw_8bit"
    """bitsandbytes' AdamW (arXiv:2110.02861): its two states in 8 bits, in blocks that share a scale; of embeddings, as
    transformers' trainer has it, and of small weights in float32."""
    adafactor = "adafactor"
    """transformers' Adafactor (arXiv:1804.04235) with the rate that is given, as its trainer sets it: of a matrix it
    keeps a number for each row and column, and no mean of the gradients."""
    lion = "lion"
    """bitsandbytes' Lion (arXiv:2302.06675): the sign of a mean of the gradients, which is its one float32 state."""
    muon = "muon"
    """torch's Muon (kellerjordan.github.io/posts/muon) for matrices within the model, with an update as long as AdamW's
    (arXiv:2502.16982), so that its rate serves; embeddings, heads, norms, biases, and stacked experts have AdamW."""
    sgd = "sgd"
    """torch's SGD; with train.momentum one state of each weight, without none. The decay is in the gradient."""


@dataclass(frozen=True, slots=True)
class Constants:
    """The keys of `train` that act in an optimizer, with what they are where they are not given. None: it has none."""

    betas: tuple[float, float] | None = None
    eps: float | None = None
    momentum: float | None = None


ADAM = (0.9, 0.999)
CONSTANTS = {
    OptimizerName.adamw: Constants(ADAM, 1e-8),
    OptimizerName.adamw_8bit: Constants(ADAM, 1e-8),
    OptimizerName.adafactor: Constants(),
    OptimizerName.lion: Constants((0.9, 0.99)),
    OptimizerName.muon: Constants(ADAM, 1e-8, momentum=0.95),
    OptimizerName.sgd: Constants(momentum=0.0),
}
OF_BITSANDBYTES = (OptimizerName.adamw_8bit, OptimizerName.lion)
OF_MATRICES = (OptimizerName.adafactor, OptimizerName.muon)
"""Which read a matrix whole, where ZeRO has parts of it laid end to end from stage 1 on."""
MIN_8BIT = 4096
"""Numbers of a weight from which on bitsandbytes holds its states in 8 bits."""
RATES = {
    OptimizerName.lion: "a third to a tenth of it",  # arXiv:2302.06675, section 5
    OptimizerName.sgd: "one of its own, as it has no measure of a gradient's size",
}
"""Which learning rate an optimizer takes, where AdamW's is not for it."""
