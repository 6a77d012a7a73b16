"""What a model is put beside to see what fewer bits cost it: itself, quantised."""

from enum import Enum


class QuantizedSelf(str, Enum):
    """How the weights of linear layers are held, all but heads."""

    int8 = "int8"
    """As by model.quantization=int8, LLM.int8(): 8 bits by rows, and products of 8 bits."""
    nf4 = "nf4"
    """As by model.quantization=nf4, QLoRA's: 4 bits by blocks of 64, on a grid of the normal distribution."""
    absmax8 = "absmax8"
    """Absmax rounding to 8 bits by rows: int8's weights, with products as they were."""
    zeropoint8 = "zeropoint8"
    """Zero-point rounding to 8 bits by rows."""
    absmax4 = "absmax4"
    """Absmax rounding to 4 bits by blocks of 64: an even grid, where nf4's is not."""
    zeropoint4 = "zeropoint4"
    """Zero-point rounding to 4 bits by blocks of 64."""

    @property
    def is_packed(self) -> bool:
        """Whether bitsandbytes holds the weights in so few bits; else they are rounded, and held as they were."""
        return self in (QuantizedSelf.int8, QuantizedSelf.nf4)
