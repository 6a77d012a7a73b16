"""The bytes by which bits per byte are divided: those of the tokens that are counted, where a cut parts a character."""

from collections.abc import Callable

import numpy as np
import pytest
from tokenizers import Tokenizer, decoders, models
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from alignment.tasks.perplexity import bytes_of

TEXT = "hello, 牛 and 🐄 süß"


@pytest.mark.parametrize("name", ["qwen", "llama3"])
def test_a_token_for_each_byte(family: Callable[[str], PreTrainedTokenizerBase], name: str) -> None:
    """Byte-level BPE that knows no such letters has a token for each of their bytes: however it is cut, the bytes of
    what is before the cut are those that its pieces have signs."""
    tokenizer = family(name)
    ids = np.array(tokenizer.encode(TEXT, add_special_tokens=False))
    pieces = tokenizer.convert_ids_to_tokens(ids.tolist())
    assert sum(map(len, pieces)) == len(TEXT.encode()) and len(ids) > len(TEXT)
    for cut in range(1, len(ids) + 1):
        assert bytes_of(tokenizer, ids[:cut]) == sum(map(len, pieces[:cut])), pieces[:cut]


def test_bytes_beside_pieces_of_text() -> None:
    """A vocabulary that falls back on bytes, as SentencePiece's do."""
    pieces = ["<unk>", "cow", *(f"<0x{byte:02X}>" for byte in range(256))]
    raw = Tokenizer(models.BPE(dict(zip(pieces, range(258), strict=True)), [], unk_token="<unk>", byte_fallback=True))
    raw.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Fuse()])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=raw, unk_token="<unk>")
    ids = np.array([1, *(2 + byte for byte in "牛🐄".encode())])
    assert [bytes_of(tokenizer, ids[:cut]) for cut in range(1, 9)] == [3, 4, 5, 6, 7, 8, 9, 10]


def test_a_whole_text_counts_as_it_is(tokenizer: PreTrainedTokenizerBase) -> None:
    assert bytes_of(tokenizer, np.array([tokenizer.eos_token_id])) == 1, "a bare end"
    for text in ("a cow.", "süß", "a real \ufffd"):
        ids = np.array(tokenizer.encode(text, add_special_tokens=False))
        assert bytes_of(tokenizer, ids) == len(str(tokenizer.decode(ids)).encode()), text
