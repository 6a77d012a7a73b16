"""The tokenizer of a model: from its folder, or the small one in the package."""

from copy import deepcopy

from transformers import AutoTokenizer, PreTrainedTokenizerBase

from alignment.config.parts import ConfigError, ModelConfig
from alignment.data.chat import ensure_template
from alignment.models.files import one_line
from alignment.models.folder import find_model
from alignment.terminal import say
from alignment.world import tokenizer_path

PAD_NAMES = ("<pad>", "<|pad|>", "<|padding|>", "<|finetune_right_pad_id|>", "<unk>")
"""What a tokenizer that names no pad token may have for it."""


def load_tokenizer(config: ModelConfig) -> PreTrainedTokenizerBase:
    """The tokenizer of `model.tokenizer`, else of `model.path`, else the small one in the package.

    Padding is never told from text by its id, so any piece serves; one is chosen where the tokenizer names none.

    Raises:
        ConfigError: the folder holds no tokenizer, or the tokenizer has no end-of-sequence token to learn.
    """
    folder = _folder(config)
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder)
    except (OSError, ValueError, KeyError, TypeError) as error:  # of a tokenizer.json that is no tokenizer, too
        raise ConfigError(f"{_lacking(folder)} ({one_line(error)})") from error
    if tokenizer.get_vocab().keys() <= {*tokenizer.all_special_tokens, *tokenizer.get_added_vocab()}:
        raise ConfigError(f"{_lacking(folder)} (transformers makes one of {len(tokenizer)} special tokens of it)")
    if tokenizer.eos_token_id is None:
        raise ConfigError(f"model.tokenizer must have an end-of-sequence token to learn, got {folder!r}")
    if tokenizer.pad_token_id is None:
        vocabulary = tokenizer.get_vocab()
        tokenizer.pad_token = next((name for name in PAD_NAMES if name in vocabulary), tokenizer.eos_token)
    return tokenizer


def _folder(config: ModelConfig) -> str:
    """Where the tokenizer is: for an adapter's folder without one, in that of its base."""
    if config.tokenizer is not None or config.path is None:
        return config.tokenizer or str(tokenizer_path())
    model = find_model(config.path, "model.path")
    folders = [*reversed(model.adapters), model.path]
    return str(next((each for each in folders if any(each.glob("tokenizer*"))), model.path))


def _lacking(folder: str) -> str:
    return f"model.tokenizer: no tokenizer in {folder!r}, so name the folder of one by model.tokenizer"


def prepare_tokenizer(model: ModelConfig) -> PreTrainedTokenizerBase:
    """The tokenizer, with a chat template whatever its folder says; a template that is ours is said."""
    tokenizer = load_tokenizer(model)
    sentence = ensure_template(tokenizer)
    if sentence is not None:
        say(sentence)
    return tokenizer


def with_padding_apart(tokenizer: PreTrainedTokenizerBase) -> PreTrainedTokenizerBase:
    """A tokenizer that pads with another piece than its EOS; without a pad token where it has no such piece.

    transformers' models for sequence classification take a text's last token that is no padding for its end. Where EOS
    is padding too, that is the token before, at which no reward model of ours was ever read. Without a pad token they
    take the last one, and refuse to score several texts at a time.
    """
    if tokenizer.pad_token_id != tokenizer.eos_token_id:
        return tokenizer
    apart = deepcopy(tokenizer)
    names, vocabulary = [*PAD_NAMES, tokenizer.unk_token], tokenizer.get_vocab()
    apart.pad_token = next((name for name in names if name in vocabulary and name != tokenizer.eos_token), None)
    return apart
