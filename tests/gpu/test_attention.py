"""flex_attention compiled: the block mask gives the log-probs and gradients of sdpa, prompt by prompt."""

from copy import deepcopy
from typing import Any

import numpy as np
import pytest
import torch

from alignment.config.batch import Layout
from alignment.config.model import ModelConfig
from alignment.data.pack import pack
from alignment.data.records import Source
from alignment.data.tokenize import Example
from alignment.distributed.placement import WHOLE
from alignment.models.load import load_language_model
from alignment.models.readout import token_logprobs

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="torch sees no GPU"),
]


@pytest.mark.parametrize("window", [None, 50])
def test_flex_attention_learns_as_sdpa_does(window: int | None, tokenizer: Any) -> None:
    sizes = {"hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 2, "num_attention_heads": 2}
    init = {"model_type": "mistral", "num_key_value_heads": 1, "sliding_window": window, **sizes}
    sdpa = load_language_model(ModelConfig(init=init), tokenizer, WHOLE).cuda()
    flex = deepcopy(sdpa)
    flex.hf.set_attn_implementation("flex_attention")
    rng = np.random.default_rng(0)

    def ids(count: int) -> np.ndarray:
        return rng.integers(3, 96, count).astype(np.int32)

    examples = [
        Example(ids(prompt), (ids(first), ids(second)), None, Source("rows.jsonl", 1), (True, True))
        for prompt, first, second in [(70, 50, 90), (300, 200, 10), (12, 9, 9)]
    ]
    batch = pack(examples, range(3), layout=Layout.shared, pad_id=0).to(torch.device("cuda"))
    read = []
    for model in (sdpa, flex):
        logprobs = token_logprobs(model, batch)
        logprobs.sum().backward()
        read.append((logprobs.detach(), {name: p.grad for name, p in model.named_parameters()}))
    torch.testing.assert_close(read[1][0], read[0][0], rtol=1e-3, atol=1e-3)
    for name, gradient in read[0][1].items():
        scale = gradient.abs().max()
        assert ((read[1][1][name] - gradient).abs().max() / scale) < 1e-2, name
