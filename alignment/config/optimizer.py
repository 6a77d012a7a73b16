"""The optimizers: what each takes of `train`, and where it runs."""

from dataclasses import dataclass
from enum import Enum

from alignment.config.errors import require


class OptimizerName(str, Enum):
    adamw = "adamw"
    """torch's AdamW (arXiv:1711.05101): two float32 states of each weight."""
    adamw_8bit = "adamw_8bit"
    """bitsandbytes' AdamW (arXiv:2110.02861): its two states in 8 bits, in blocks that share a scale; of embeddings, as
    transformers' trainer has it, and of small weights in float32."""
    paged_adamw_8bit = "paged_adamw_8bit"
    """The same, its states in CUDA's unified memory (arXiv:2305.14314, section 3): they leave the GPU for the machine's
    memory where there is no room, and come back weight by weight as a step needs them. On a GPU alone."""
    adamw_bf16 = "adamw_bf16"
    """AdamW with its two states in bfloat16, rounded at random after each step, so that nothing is lost on the average
    (arXiv:1502.02551, as torchao has it)."""
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
    lomo = "lomo"
    """LOMO (arXiv:2306.09782): SGD without momentum, each weight updated in the backward pass as soon as its gradient
    is there. No state is kept, nor any gradient. A step is one pass, in one process, and nothing is clipped."""


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
    OptimizerName.paged_adamw_8bit: Constants(ADAM, 1e-8),
    OptimizerName.adamw_bf16: Constants(ADAM, 1e-8),
    OptimizerName.adafactor: Constants(),
    OptimizerName.lion: Constants((0.9, 0.99)),
    OptimizerName.muon: Constants(ADAM, 1e-8, momentum=0.95),
    OptimizerName.sgd: Constants(momentum=0.0),
    OptimizerName.lomo: Constants(),
}
OF_BLOCKS = (OptimizerName.adamw_8bit, OptimizerName.paged_adamw_8bit)
"""Whose states are in 8 bits, blocks of which share a scale."""
OF_BITSANDBYTES = (*OF_BLOCKS, OptimizerName.lion)
NEEDS_MATRICES = "which needs each matrix whole"
UNSHARDED = {
    OptimizerName.paged_adamw_8bit: "whose pages are of whole weights (train.optimizer=adamw_8bit can be sharded)",
    OptimizerName.adafactor: NEEDS_MATRICES,
    OptimizerName.muon: NEEDS_MATRICES,
    OptimizerName.lomo: "which updates weights in one process's backward pass (train.optimizer=sgd can be sharded)",
}
"""Those that no stage of ZeRO from 1 on has, which lays parts of weights end to end, and why."""
AT_ONCE = 2**22
"""Numbers of a weight whose states adamw_bf16 has in float32 at one time, but for what has more to a row."""
MIN_8BIT = 4096
"""Numbers of a weight from which on bitsandbytes holds its states in 8 bits."""
MIN_PAGED = 100_000
"""Numbers of a weight from which on bitsandbytes has its states in pages."""
OF_SIZE = "one of its own, as it has no measure of a gradient's size"
RATES = {
    OptimizerName.lion: "a third to a tenth of it",  # arXiv:2302.06675, section 5
    OptimizerName.sgd: OF_SIZE,
    OptimizerName.lomo: OF_SIZE,
}
"""Which learning rate an optimizer takes, where AdamW's is not for it."""


def require_pages(name: OptimizerName, device: str) -> None:
    """Raise `ConfigError` where states are to be in pages and the run's device, of this type, has none: bitsandbytes
    would go on without them."""
    rule = "train.optimizer=paged_adamw_8bit needs a GPU (distributed.device=cuda), whose memory its states leave for "
    rule += "the machine's; train.optimizer=adamw_8bit is the same without pages"
    require(name is not OptimizerName.paged_adamw_8bit or device == "cuda", rule, device)
