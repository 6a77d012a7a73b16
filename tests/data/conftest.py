"""Two tokenizers: Llama 2's, which has no chat template, and a tiny byte-level one in ChatML."""

from pathlib import Path

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from alignment.data.chat import ensure_template

CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
CORPUS = ["hello there, how are you?\n\nfine.\n\nhello hello\n\n", "user assistant system the a of\n\n"] * 20


@pytest.fixture
def llama2(shared: Path) -> PreTrainedTokenizerBase:
    tokenizer = AutoTokenizer.from_pretrained(shared / "tokenizers" / "llama2")
    ensure_template(tokenizer)
    return tokenizer


@pytest.fixture(scope="session")
def tiny_bpe() -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    special = ["<|im_start|>", "<|im_end|>", "<pad>"]
    trainer = trainers.BpeTrainer(
        vocab_size=320, initial_alphabet=alphabet, special_tokens=special, show_progress=False
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    return tokenizer


@pytest.fixture
def chatml(tiny_bpe: Tokenizer) -> PreTrainedTokenizerBase:
    return PreTrainedTokenizerFast(
        tokenizer_object=tiny_bpe, eos_token="<|im_end|>", pad_token="<pad>", chat_template=CHATML
    )
