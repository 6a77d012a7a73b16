"""What only a tokenizer can tell of a row: whether its texts are texts, and whether two replies differ in tokens."""

from transformers import PreTrainedTokenizerBase

from alignment.config.vocabulary import Template
from alignment.data.records import DataError, Record
from alignment.data.tokenize import Example, Limits


def require_plain_texts(record: Record, tokenizer: PreTrainedTokenizerBase) -> None:
    """Raises:
    DataError: a reply holds the EOS token in its text.
    """
    eos = tokenizer.eos_token
    texts = [turn["content"] for turns in record.completions for turn in turns]
    if (record.template is Template.chat or not record.prompt) and eos and any(eos in text for text in texts):
        raise DataError(record.source, f"a reply holds the end-of-text token {eos!r}")


def require_difference(example: Example, limits: Limits) -> None:
    """Raises:
    DataError: the two replies of a pair do not differ within the limits.
    """
    if len(example.completion_ids) == 2:
        chosen, rejected = (ids.tolist() for ids in example.completion_ids)
        if chosen == rejected:
            rule = f"chosen and rejected are the same within data.max_length = {limits.max_length}"
            raise DataError(example.source, rule)
