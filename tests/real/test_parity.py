"""A pretrained model's log-probs are those of plain transformers, text by text, in float32.

Ours come packed, several prompts in a row with two replies each.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from alignment.config.batch import Layout
from alignment.config.data import DataConfig, ExampleKind, Format, TrainSource
from alignment.config.model import ModelConfig
from alignment.data.load import load_split
from alignment.data.pack import pack
from alignment.distributed.placement import WHOLE
from alignment.models.load import load_language_model
from alignment.models.readout import token_logprobs

pytestmark = pytest.mark.real

ROUNDING = 1e-4  # nats; float32 sums 576 products 210 times over for logits of some tens: they differ by 1.6e-5 here


@pytest.mark.parametrize("layout", [Layout.shared, Layout.separate])
def test_log_probs_of_every_reply_token(
    layout: Layout,
    hh: tuple[Path, Any],
    texts: list[tuple[Any, Any]],
    plain: Callable[[Path, list[Any]], list[Tensor]],
    real_model: Path,
    real_tokenizer: PreTrainedTokenizerBase,
) -> None:
    data = DataConfig(format=Format.hh, train=TrainSource(str(hh[0])))
    loaded = load_split("train", data, real_tokenizer, ExampleKind.pairs)
    model = load_language_model(ModelConfig(path=str(real_model)), real_tokenizer, WHOLE)
    batch = pack(loaded.examples, range(len(texts)), layout=layout, pad_id=real_tokenizer.pad_token_id)
    assert torch.equal(batch.targets, torch.cat([text.reply for pair in texts for text in pair]))
    with torch.no_grad():
        ours = token_logprobs(model, batch)
    theirs = torch.cat(plain(real_model, [text for pair in texts for text in pair]))
    assert theirs.min() < -5 and len(theirs) > 50
    assert torch.allclose(ours, theirs, rtol=0, atol=ROUNDING)
