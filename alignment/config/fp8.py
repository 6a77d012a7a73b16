"""Products of 8-bit floating point numbers."""

from enum import Enum


class Fp8(str, Enum):
    """How the linear layers of a backbone multiply in 8 bits, by torchao's names of its recipes."""

    none = "none"
    """Not at all: in what distributed.precision says."""
    tensorwise = "tensorwise"
    """One scale for each weight, input and gradient, so that a token's numbers depend on the others of its pass."""
    rowwise = "rowwise"
    """A scale for each token and for each row of a weight, powers of 2: what is computed of a token does not depend on
    the others. e4m3 for gradients too."""
    rowwise_with_gw_hp = "rowwise_with_gw_hp"
    """The same, with the weights' own gradients in bfloat16."""
