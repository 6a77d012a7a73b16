"""The tokenizer of a model: from its folder, or the small one in the package."""

from transformers import AutoTokenizer, PreTrainedTokenizerBase

from alignment.config.parts import ConfigError, ModelConfig
from alignment.models.folder import one_line
from alignment.world import tokenizer_path

PAD_NAMES = ("<pad>", "<|pad|>", "<|padding|>", "<|finetune_right_pad_id|>", "<unk>")
"""What a tokenizer that names no pad token may have for it."""


def load_tokenizer(config: ModelConfig) -> PreTrainedTokenizerBase:
    """The tokenizer of `model.tokenizer`, else of `model.path`, else the small one in the package.

    Padding is never told from text by its id, so any piece serves; one is chosen where the tokenizer names none.

    Raises:
        ConfigError: the folder holds no tokenizer, or the tokenizer has no end-of-sequence token to learn.
    """
    folder = config.tokenizer or config.path or str(tokenizer_path())
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder)
    except (OSError, ValueError) as error:
        raise ConfigError(f"model.tokenizer: no tokenizer in {folder!r}: {one_line(error)}") from error
    if tokenizer.eos_token_id is None:
        raise ConfigError(f"model.tokenizer must have an end-of-sequence token to learn, got {folder!r}")
    if tokenizer.pad_token_id is None:
        vocabulary = tokenizer.get_vocab()
        tokenizer.pad_token = next((name for name in PAD_NAMES if name in vocabulary), tokenizer.eos_token)
    return tokenizer
