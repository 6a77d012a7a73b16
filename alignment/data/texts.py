"""Texts to a tokenizer's ids: many at a time, and no more of a text than its new tokens depend on."""

from collections.abc import Iterable, Iterator
from itertools import takewhile

from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

REPLACED = ("__call__", "_encode_plus")  # what a class defines that treats texts in a way of its own


class Texts:
    """A tokenizer, and the ids of texts that it was asked for ahead."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, borders: Iterable[str] = ()) -> None:
        """borders: tokens of which `borders_of` says that a text may be cut at them; the ids are the same without."""
        self.tokenizer = tokenizer
        self.borders = tuple(borders)
        self._ahead: dict[str, list[int]] = {}
        self._begins: bool | None = None

    def look_ahead(self, texts: Iterable[str]) -> None:
        """Tokenize these together, for a call costs as much as a short text; those of an earlier call are let go."""
        distinct = list(dict.fromkeys(texts))
        given = {"verbose": False, "return_attention_mask": False, "return_token_type_ids": False}
        ids = self.tokenizer(distinct, add_special_tokens=False, **given)["input_ids"] if distinct else []
        self._ahead = dict(zip(distinct, ids, strict=True))

    def ids(self, text: str) -> list[int]:
        """Without what the tokenizer puts around a text."""
        found = self._ahead.get(text)
        return self.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"] if found is None else found

    def behind(self, before: str, text: str) -> list[int]:
        """The ids of a text that follows another's, as they are in both together, less the other's; where a token spans
        the border, those of the text alone."""
        before = self.last_part(before)
        first, joint = self.ids(before), self.ids(before + text)
        return joint[len(first) :] if joint[: len(first)] == first else self.ids(text)

    def last_part(self, text: str) -> str:
        """The text from the last of its borders on, which is all that the ids behind it depend on."""
        return text[max(0, *(text.rfind(border) for border in self.borders)) :] if self.borders else text

    def begins_with_bos(self) -> bool:
        """Whether the tokenizer begins a text with BOS of itself."""
        if self._begins is None:
            bos = self.tokenizer.bos_token_id
            self._begins = bos is not None and self.tokenizer("")["input_ids"][:1] == [bos]
        return self._begins


def borders_of(tokenizer: PreTrainedTokenizerBase) -> Iterator[str]:
    """The tokens of a template that cut a text in two whose ids have nothing to do with each other.

    An added token is looked for in the text as it is, before any of it is normalized or split, and each part between
    two of them is then normalized, split and looked up by itself (tokenizers, AddedVocabulary::extract_and_normalize).
    So the ids up to such a token are those of the text up to it, whatever follows, and those from it on are those of
    the text from it on. That holds for one that is not looked for in normalized text, takes no blanks beside it, needs
    no word's end, and that no other one can take letters of: none holds it, or ends as it begins.
    """
    if not _is_plain(tokenizer) or tokenizer.split_special_tokens:
        return
    added = tokenizer.backend_tokenizer.get_added_tokens_decoder().values()
    raw = [token.content for token in added if not token.normalized]
    written = f"{tokenizer.chat_template} {' '.join(map(str, tokenizer.special_tokens_map.values()))}"
    for token in added:
        text = token.content
        is_whole = not (token.normalized or token.lstrip or token.rstrip or token.single_word)
        if is_whole and text in written and not any(_takes_of(other, text) for other in raw):
            yield text


def _is_plain(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether a text goes to the library `tokenizers` as it is."""
    if not isinstance(tokenizer, PreTrainedTokenizerFast):
        return False
    own = takewhile(lambda each: each is not PreTrainedTokenizerFast, type(tokenizer).__mro__)
    return not any(name in vars(each) for each in own for name in REPLACED)


def _takes_of(other: str, text: str) -> bool:
    begins = any(other.endswith(text[:length]) for length in range(1, len(text)))
    return begins or (other != text and text in other)
