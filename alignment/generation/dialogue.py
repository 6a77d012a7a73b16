"""What a reward model reads: the text of prompt and reply, in its own tokens, as its training laid that dialogue out.

A reply is judged by its text and never by the policy's tokens. So a model of another family judges, with a vocabulary
and a chat template of its own; a reply that is complete ends as one in training ends, whatever token the policy ended
it with; and where a policy has put a text together from other pieces than the tokenizer would, its score is that of the
text all the same.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from transformers import PreTrainedTokenizerBase

from alignment.config.sections import ConfigError
from alignment.data.chat import render
from alignment.data.checks import require_read
from alignment.data.records import DataError, Record, replied
from alignment.data.tokenize import Example, Limits, Truncation, encode
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
    has_said: bool = field(default=False, init=False)

    def examples(self, samples: Samples) -> list[Example]:
        """[G], each with its n replies, laid out as in training. All processes together, each a share, and all get all.

        A reply that was cut ends with the last token of its text, a blank one with what the template ends it with.
        Nothing is cut off that the model has positions for; what is, is counted and said once.

        Raises:
            DataError: the template refuses a dialogue.
        """
        truncation = Truncation()
        mine = [self._example(samples, place, truncation) for place in places_of(len(samples.records))]
        parts = gathered((mine, truncation.prompts, truncation.completions))
        cut = sum(prompts + completions for _, prompts, completions in parts)
        if cut and not self.has_said:
            self.has_said = True
            say(f"{self.key}: {cut} texts are longer than the {self.limit} tokens that it reads, and were cut")
        shares = [examples for examples, _, _ in parts]
        return [shares[place % len(shares)][place // len(shares)] for place in range(len(samples.records))]

    def _example(self, samples: Samples, place: int, truncation: Truncation) -> Example:
        replies = samples.replies[place]
        record = replied(samples.records[place], [r.text for r in replies], [r.finished for r in replies])
        whole = encode(record, self.tokenizer, ENDLESS, Truncation())
        if self.limit is None or self.reads(whole):
            return whole
        room = max(1, self.limit - max(len(ids) for ids in whole.completion_ids))
        return encode(record, self.tokenizer, Limits(self.limit, room), truncation)

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
