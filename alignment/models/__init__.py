"""Transformers models, the branch mask that packed rows need, and the three read-outs."""

import logging

# On a CPU with AVX512-BF16 bitsandbytes asks for a kernel that is not used here (see `quantized.keep_packing`).
logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)
