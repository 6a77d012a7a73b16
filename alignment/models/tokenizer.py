"""The tokenizer of a model: from its folder, or the small one in the package."""

from copy import deepcopy
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path

from transformers import AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast
from transformers.utils import CONFIG_NAME

from alignment.config.adapter import BESIDE
from alignment.config.errors import ConfigError
from alignment.config.folders import ModelFolder, find_model, read_json, require_fetched
from alignment.config.hub import Kind, located
from alignment.config.model import ModelConfig
from alignment.data.chat import ensure_template
from alignment.data.templates import replace_template
from alignment.models.files import Reading, require_trusted
from alignment.models.folder import parse_config
from alignment.models.init import init_config
from alignment.terminal import say, say_once
from alignment.toy import tokenizer_path

PAD_NAMES = ("<pad>", "<|pad|>", "<|padding|>", "<|finetune_right_pad_id|>", "<unk>")
"""What a tokenizer that names no pad token may have for it."""

SETTINGS = ("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json")
TEXT = "A text, 1 of 2:\n\n\u00e9 \u732b \U0001f404"


def load_tokenizer(config: ModelConfig) -> PreTrainedTokenizerBase:
    """The tokenizer of `model.tokenizer`, else of `model.path`, else the small one in the package.

    Padding is never told from text by its id, so any piece serves; one is chosen where the tokenizer names none.

    Raises:
        ConfigError: the folder holds no tokenizer, or the tokenizer has no end-of-sequence token.
    """
    folder = tokenizer_folder(config)
    tokenizer = _read(folder, trusted=config.trust_remote_code)
    if tokenizer.get_vocab().keys() <= {*tokenizer.all_special_tokens, *tokenizer.get_added_vocab()}:
        raise ConfigError(f"{_lacking(folder)} (transformers makes one of {len(tokenizer)} special tokens of it)")
    if tokenizer.eos_token_id is None:
        raise ConfigError(f"model.tokenizer must have an end-of-sequence token, which ends a reply, got {folder!r}")
    if tokenizer.pad_token_id is None:
        vocabulary = tokenizer.get_vocab()
        tokenizer.pad_token = next((name for name in PAD_NAMES if name in vocabulary), tokenizer.eos_token)
    return tokenizer


def _read(folder: str, *, trusted: bool) -> PreTrainedTokenizerBase:
    """The tokenizer, tried on a text, for some mistakes in its files show only then."""
    for name in SETTINGS:
        if (Path(folder) / name).is_file():
            read_json(Path(folder) / name, "model.tokenizer")
    for file in (*Path(folder).glob("*.jinja"), *Path(folder).glob("*.model")):
        require_fetched(file, f"model.tokenizer: {str(file)!r}")
    if trusted:
        _require_trusted(Path(folder), trusted=True)
    try:
        with Reading(_lacking(folder)):
            tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=trusted)
            tokenizer(TEXT, add_special_tokens=False)
            if tokenizer.split_special_tokens:
                what = f"split_special_tokens in {folder!r} is taken for false"
                say_once(f"model.tokenizer: {what}, for a template's tokens would be learned as pieces of text")
                tokenizer.split_special_tokens = False
            return tokenizer
    except ConfigError as error:
        _require_readable(Path(folder), error, trusted=trusted)
        raise


def _require_readable(folder: Path, error: ConfigError, *, trusted: bool) -> None:
    """Raises:
    ConfigError: the file is known that is at fault for a tokenizer that cannot be read: config.json, from which its
        class may be taken; tokenizer.json; or the class that another file names for it.
    """
    _require_trusted(folder, trusted=trusted)
    if (folder / CONFIG_NAME).is_file():
        parse_config(folder, "model.tokenizer", trusted=trusted)
    file, settings = folder / "tokenizer.json", folder / "tokenizer_config.json"
    if not file.is_file():
        return
    read_json(file, "model.tokenizer")
    rule = f"model.tokenizer: no tokenizer in {str(file)!r} that tokenizers {version('tokenizers')} reads, as one of a"
    with Reading(f"{rule} later version is"):
        PreTrainedTokenizerFast(tokenizer_file=str(file))
    named = read_json(settings, "model.tokenizer").get("tokenizer_class") if settings.is_file() else None
    rule = f"model.tokenizer: {str(settings)!r} and the files beside it must say what goes with tokenizer.json"
    way = "tokenizer_class=PreTrainedTokenizerFast takes it as it is"
    why = str(error).removeprefix(_lacking(str(folder))).strip()
    raise ConfigError(f"{rule}, got tokenizer_class={named!r} {why}; {way}") from error


def _require_trusted(folder: Path, *, trusted: bool) -> None:
    """Of code that comes with a tokenizer, or with the model from whose config its class may be taken."""
    model = ModelFolder(folder, (), "model.tokenizer", trusted)
    for file in (folder / "tokenizer_config.json", folder / CONFIG_NAME):
        code = read_json(file, model.key).get("auto_map") if file.is_file() else None
        if code:
            require_trusted(model, code, file.name)


def tokenizer_folder(config: ModelConfig) -> str:
    """Where the tokenizer is: for an adapter's folder without one in that of the model which a run has merged it into,
    or in that of its base."""
    if config.tokenizer is not None or config.path is None:
        return str(tokenizer_path() if config.tokenizer is None else located(config.tokenizer, Kind.tokenizer))
    if located(config.path).is_file():
        raise ConfigError(f"model.path must be a model's folder, got {config.path!r}")
    model = find_model(config.path, "model.path", trusted=config.trust_remote_code)
    last = model.adapters[-1:]
    merged = [each.parent for each in last if each.name == BESIDE]  # which has the run's tokenizer and template
    folders = [*last, *merged, *reversed(model.adapters[:-1]), model.path]
    return str(next((each for each in folders if any(each.glob("tokenizer*"))), model.path))


def _lacking(folder: str) -> str:
    return f"model.tokenizer: no tokenizer in {folder!r}, so name the folder of one by model.tokenizer"


def prepare_tokenizer(model: ModelConfig) -> PreTrainedTokenizerBase:
    """The tokenizer, with a chat template whatever its folder says; a template that is ours is said."""
    if model.path is None:
        init_config(model)  # whose mistakes are found before any rows are read
    tokenizer = load_tokenizer(model)
    _warn_of_other_ids(model, tokenizer)
    if model.chat_template is not None:
        sentence: str | None = replace_template(tokenizer, model.chat_template)
    else:
        sentence = ensure_template(tokenizer)
    if sentence is not None:
        say(sentence)
    return tokenizer


def _warn_of_other_ids(model: ModelConfig, tokenizer: PreTrainedTokenizerBase) -> None:
    """Where `model.tokenizer` gives other ids to pieces than the tokenizer that came with the model."""
    if model.tokenizer is None or model.path is None:
        return
    folder = tokenizer_folder(replace(model, tokenizer=None))
    if folder == str(located(model.tokenizer, Kind.tokenizer)) or not any(Path(folder).glob("tokenizer*")):
        return
    try:
        came_with, here = _read(folder, trusted=model.trust_remote_code).get_vocab(), tokenizer.get_vocab()
    except ConfigError:  # which may be why another is named
        return
    others = sum(here.get(piece) != number for piece, number in came_with.items())
    if others:
        of = f"{others:,} of the {len(came_with):,} pieces that {model.path!r} came with have another id or none"
        say(f"WARNING: model.tokenizer={model.tokenizer!r}: {of}: the model reads these as other text than it learned")


def knows_tokens_of(other: PreTrainedTokenizerBase, tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether each of the tokenizer's ids is the same piece to the other, which may have more."""
    return bool(tokenizer.get_vocab().items() <= other.get_vocab().items())


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
