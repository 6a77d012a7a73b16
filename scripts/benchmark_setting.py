"""What the benchmarks share: the data, their tokenizer, and the model."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    LlamaConfig,
    LlamaForCausalLM,
    LlamaForSequenceClassification,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)

from alignment.config.data import BadRow, DataConfig, Format, TrainSource
from alignment.config.distributed import Device, DistributedConfig, Precision
from alignment.data.chat import ensure_template
from alignment.data.read import read_rows

SIZE, LIMIT, PIECES = 8, 1024, 8192


@dataclass(frozen=True, slots=True)
class Setting:
    """A random Llama's size, where it trains, and on how much; or a pretrained model in its place."""

    device: Device
    precision: Precision
    vocabulary: int
    width: int
    inner_width: int
    layers: int
    heads: int
    key_heads: int
    size: int = SIZE  # pairs or demonstrations a step
    limit: int = LIMIT  # tokens of a prompt and one of its completions
    folder: Path | None = None  # the pretrained model's
    prompts: int = 16  # an iteration of PPO
    new_tokens: int = 64  # of each of its replies

    def distributed(self) -> DistributedConfig:
        return DistributedConfig(device=self.device, precision=self.precision)


TINY = Setting(Device.cpu, Precision.float32, PIECES, 256, 688, 4, 4, 4)
LARGE = Setting(  # as TinyLlama 1.1B
    Device.cuda, Precision.bfloat16, 32_000, 2048, 5632, 22, 32, 4, prompts=64, new_tokens=256
)
STAND_IN = replace(TINY, precision=Precision.bfloat16, width=64, inner_width=96, layers=2)  # in its place, on a CPU
SETTINGS = {"tiny": TINY, "large": LARGE, "stand-in": STAND_IN}


def tokenizer_of(setting: Setting, data: Path) -> PreTrainedTokenizerBase:
    """The pretrained model's own, or one made for a random model."""
    if setting.folder is None:
        return make_tokenizer(data)
    tokenizer = AutoTokenizer.from_pretrained(setting.folder)
    ensure_template(tokenizer)
    return tokenizer


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


def make_model(kind: str, tokenizer: PreTrainedTokenizerBase, setting: Setting = TINY) -> Any:
    """The same for everybody; `kind` reward: with a scalar head, which is random, as all of it is where no folder is
    given."""
    torch.manual_seed(0)
    ends: dict[str, Any] = {"pad_token_id": tokenizer.pad_token_id, "eos_token_id": tokenizer.eos_token_id}
    if setting.folder is not None:
        auto: Any = AutoModelForSequenceClassification if kind == "reward" else AutoModelForCausalLM
        settings = ends | ({"num_labels": 1} if kind == "reward" else {})
        return auto.from_pretrained(setting.folder, dtype=torch.float32, **settings)
    config = LlamaConfig(
        vocab_size=setting.vocabulary,
        hidden_size=setting.width,
        intermediate_size=setting.inner_width,
        num_hidden_layers=setting.layers,
        num_attention_heads=setting.heads,
        num_key_value_heads=setting.key_heads,
        max_position_embeddings=2 * setting.limit,
        **ends | {"num_labels": 1},
    )
    return LlamaForSequenceClassification(config) if kind == "reward" else LlamaForCausalLM(config)


def data_config(data: Path, rows: int, *, max_prompt_length: int, limit: int = LIMIT) -> DataConfig:
    """The first `rows` of the file."""
    return DataConfig(
        format=Format.hh,
        train=TrainSource(str(data), rows),
        max_length=limit,
        max_prompt_length=max_prompt_length,
        on_bad_row=BadRow.skip,
    )
