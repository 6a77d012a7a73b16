"""What a reward model reads: the text of prompt and reply, in its own tokens, as its training laid that dialogue out.

A reply is judged by its text and never by the policy's tokens. So a model of another family judges, with a vocabulary
and a chat template of its own; a reply that is complete ends as one in training ends, whatever token the policy ended
it with; and where a policy has put a text together from other pieces than the tokenizer would, its score is that of the
text all the same.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from transformers import PreTrainedTokenizerBase

from alignment.config.errors import ConfigError
from alignment.data.chat import PROBE, Piece, Rendered, render, written
from alignment.data.checks import holds, require_read
from alignment.data.records import DataError, Record, replied
from alignment.data.texts import Texts
from alignment.data.tokenize import Example, Limits, Truncation, encode_rendered
from alignment.distributed.collectives import gathered
from alignment.generation.samples import Samples, places_of
from alignment.terminal import say

ENDLESS = Limits(max_length=2**31 - 1, max_prompt_length=2**31 - 2)


@dataclass(slots=True)
class Reader:
    """A reward model's own tokenizer, with its chat template, and how far the model reads."""

    tokenizer: PreTrainedTokenizerBase
    limit: int | None  # tokens of prompt and reply that the model has positions for; None: any number
    key: str  # where its user set the model
    said: set[str] = field(default_factory=set, init=False)

    def examples(self, samples: Samples) -> list[Example]:
        """[G], each with its n replies, laid out as in training. All processes together, each a share, and all get all.

        A reply that was cut ends with the last token of its text, a blank one with what the template ends it with.
        Nothing is cut off that the model has positions for; what is, is counted and said once, and so is what the
        template leaves out of replies, such as the reasoning before a "</think>".

        Raises:
            DataError: the template refuses a dialogue.
        """
        truncation = Truncation()
        mine = [self._example(samples, place, truncation) for place in places_of(len(samples.records))]
        parts = gathered((mine, truncation.prompts + truncation.completions))
        cut, left_out = sum(cut for _, cut in parts), sum(left for share, _ in parts for _, left in share)
        self._say_once(cut, f"texts are longer than the {self.limit} tokens that it reads, and were cut")
        self._say_once(
            left_out, "replies lose a part to its chat template, such as their reasoning; the rest is scored"
        )
        shares = [[example for example, _ in share] for share, _ in parts]
        return [shares[place % len(shares)][place // len(shares)] for place in range(len(samples.records))]

    def _say_once(self, count: int, what: str) -> None:
        if count and what not in self.said:
            self.said.add(what)
            say(f"{self.key}: {count} {what}")

    def _example(self, samples: Samples, place: int, truncation: Truncation) -> tuple[Example, int]:
        """And the number of replies of which the template leaves out a part."""
        replies = samples.replies[place]
        record = replied(samples.records[place], [r.text for r in replies], [r.finished for r in replies])
        rendered = laid_out(record, self.tokenizer)
        texts = zip(replies, rendered.texts(), strict=True)
        left_out = sum(not holds(rendered.prompt + text, reply.text) for reply, text in texts)
        example = encode_rendered(record, rendered, Texts(self.tokenizer), ENDLESS, Truncation())
        if self.limit is None or self.reads(example):
            return example, left_out
        room = max(1, self.limit - max(len(ids) for ids in example.completion_ids))
        limits = Limits(self.limit, room)
        return encode_rendered(record, rendered, Texts(self.tokenizer), limits, truncation, laid_out), left_out

    def reads(self, example: Example) -> bool:
        """Whether the model has positions for the prompt with each of its completions."""
        longest = max(len(ids) for ids in example.completion_ids)
        return self.limit is None or len(example.prompt_ids) + longest <= self.limit

    def check(self, records: Sequence[Record], policy: PreTrainedTokenizerBase) -> None:
        """Before anything is computed: prompts that the policy's own template took are tried on this one. A switch of
        the policy's template, such as enable_thinking, is nothing that a judge must read.

        Raises:
            ConfigError: it refuses one of them with a reply, or leaves out what rows must have read; names the key and
                the row.
        """
        if self.tokenizer.chat_template == policy.chat_template:
            return
        for record in records:
            known = {
                name: value
                for name, value in record.template_kwargs.items()
                if name in str(self.tokenizer.chat_template) or isinstance(value, list | dict)
            }
            asked = replace(replied(record, ["."], [True]), template_kwargs=known)
            try:
                require_read(asked, self.tokenizer, render(asked, self.tokenizer))
            except DataError as error:
                rule = f"{self.key} must have a chat template that takes the prompts"
                raise ConfigError(f"{rule}, got {error}") from error


def laid_out(record: Record, tokenizer: PreTrainedTokenizerBase) -> Rendered:
    """A prompt with its replies, as `render` has them. A reply that the template writes elsewhere than behind the
    prompt as it is asked, as some do with a "</think>" that their own prompt has opened, was drawn behind it: there it
    stands as it is, with the end of a reply.

    Raises:
        DataError: the template refuses the prompt with any reply.
    """
    try:
        return render(record, tokenizer)
    except DataError:
        plain = render(replace(record, completions=(PROBE,), finished=None), tokenizer)
    asked = written(record, tokenizer, record.prompt, add_generation_prompt=True)
    end = plain.texts()[0].rpartition(PROBE[0]["content"])[2]
    texts = []
    for number, turns in enumerate(record.completions):
        ends = record.has_end(number)
        try:
            alone = render(replace(record, completions=(turns,), finished=(ends,)), tokenizer)
            texts.append(alone.prompt + alone.texts()[0])
        except DataError:
            texts.append(asked + turns[0]["content"] + (end if ends else ""))
    return Rendered(plain.prompt, tuple((Piece(text.removeprefix(plain.prompt), True),) for text in texts))
