"""What the benchmarks share: the data, their tokenizer, and the model."""

from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, LlamaForSequenceClassification, PreTrainedTokenizerFast

from alignment.config.parts import DataConfig, SourceConfig
from alignment.config.vocabulary import BadRow, Format
from alignment.data.chat import ensure_template
from alignment.data.read import read_rows

LIMIT, PIECES = 1024, 8192


def make_tokenizer(data: Path) -> PreTrainedTokenizerFast:
    """A byte-level BPE of the data's own text."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer, bpe.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    alphabet, special = pre_tokenizers.ByteLevel.alphabet(), ["<pad>", "<s>", "</s>"]
    trainer = trainers.BpeTrainer(
        vocab_size=PIECES, initial_alphabet=alphabet, special_tokens=special, show_progress=False
    )
    bpe.train_from_iterator((row["chosen"] for _, row in read_rows(data)), trainer)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=bpe, pad_token="<pad>", eos_token="</s>")
    ensure_template(tokenizer)
    return tokenizer


def make_model(kind: str, tokenizer: PreTrainedTokenizerFast) -> Any:
    """Four layers, 256 wide, random, the same for everybody; `kind` reward: with a scalar head."""
    torch.manual_seed(0)
    size: dict[str, Any] = {
        "hidden_size": 256,
        "intermediate_size": 688,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
    }
    ends = {"pad_token_id": tokenizer.pad_token_id, "eos_token_id": tokenizer.eos_token_id, "num_labels": 1}
    config = LlamaConfig(vocab_size=PIECES, max_position_embeddings=2048, **size, **ends)
    return LlamaForSequenceClassification(config) if kind == "reward" else LlamaForCausalLM(config)


def data_config(data: Path, rows: int, *, max_prompt_length: int) -> DataConfig:
    """The first `rows` of the file."""
    return DataConfig(
        format=Format.hh,
        train=SourceConfig(str(data), rows),
        max_length=LIMIT,
        max_prompt_length=max_prompt_length,
        on_bad_row=BadRow.skip,
    )
