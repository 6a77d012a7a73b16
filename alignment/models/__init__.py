"""Transformers models, the branch mask that packed rows need, and the three read-outs."""

import logging
from typing import TYPE_CHECKING

from alignment.lazy import exports

if TYPE_CHECKING:
    from alignment.distributed.placement import WHOLE
    from alignment.models.heads import LanguageModel, ScalarModel
    from alignment.models.layout import settle_layout
    from alignment.models.load import (
        load_frozen_language_model,
        load_frozen_reward_model,
        load_language_model,
        load_reward_model,
        load_scalar_model,
        save_model,
    )
    from alignment.models.readout import completion_logprobs, sequence_scores, token_logprobs, token_values
    from alignment.models.tokenizer import prepare_tokenizer

# On a CPU with AVX512-BF16 bitsandbytes asks for a kernel that is not used here (see `quantized.keep_packing`).
logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)
# That 8-bit products read their inputs in float16, which it says anew in each of them.
logging.getLogger("bitsandbytes.autograd._functions").setLevel(logging.ERROR)

__all__, __getattr__ = exports(
    __name__,
    {
        "LanguageModel": "alignment.models.heads",
        "ScalarModel": "alignment.models.heads",
        "WHOLE": "alignment.distributed.placement",
        "completion_logprobs": "alignment.models.readout",
        "load_frozen_language_model": "alignment.models.load",
        "load_frozen_reward_model": "alignment.models.load",
        "load_language_model": "alignment.models.load",
        "load_reward_model": "alignment.models.load",
        "load_scalar_model": "alignment.models.load",
        "prepare_tokenizer": "alignment.models.tokenizer",
        "save_model": "alignment.models.load",
        "sequence_scores": "alignment.models.readout",
        "settle_layout": "alignment.models.layout",
        "token_logprobs": "alignment.models.readout",
        "token_values": "alignment.models.readout",
    },
)
