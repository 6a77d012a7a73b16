"""The text of one reply as it grows, token by token."""

from collections.abc import Callable

from torch import Tensor
from transformers import PreTrainedTokenizerBase

from alignment.generation.generate import reply_of


class Stream:
    """Shows each piece of text as soon as no further token can change it: blanks at the end, half a character and the
    beginning of a stop string are held back. `text` is what was shown so far, a beginning of the reply's."""

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        show: Callable[[str], None],
        *,
        before: int,
        ends: list[int],
        stop: list[str],
    ) -> None:
        """`before`, `ends`, `stop`: the prompt's last token, the tokens and the strings that end a reply."""
        self.tokenizer, self.show = tokenizer, show
        self.before, self.ends, self.stop = before, ends, stop
        self.text = ""

    def __call__(self, tokens: Tensor) -> None:
        """`tokens`: [1, t], the reply's so far."""
        ids = tokens[0].cpu().numpy()
        by_token = int(ids[-1]) in self.ends
        reply = reply_of(ids, self.tokenizer, before=self.before, by_token=by_token, by_string=self.stop)
        text = reply.text.lstrip()
        lengths = {size for each in self.stop for size in range(1, len(each)) if text.endswith(each[:size])}
        self.until(text[: len(text) - max(lengths, default=0)].rstrip("\ufffd").rstrip())

    def until(self, text: str) -> None:
        """Show what of the text was not shown yet."""
        if text.startswith(self.text) and text != self.text:
            self.show(text[len(self.text) :])
            self.text = text
