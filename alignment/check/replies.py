"""What the policy replies before it has learned anything."""

from dataclasses import replace

from transformers import PreTrainedTokenizerBase

from alignment.check.subject import FEW
from alignment.check.verdict import Verdict, graded
from alignment.config.generation import GenerationConfig
from alignment.config.vocabulary import Grade
from alignment.data.load import Loaded
from alignment.data.records import Record
from alignment.data.tokenize import Example
from alignment.rollout.samples import Samples
from alignment.terminal import say, say_marked

MOST_TOKENS = 128  # of a reply that is drawn here
SHOWN = 2


def brief(config: GenerationConfig) -> GenerationConfig:
    """The run's, with replies that are cut earlier where it asks for long ones."""
    return replace(config, max_new_tokens=min(config.max_new_tokens, MOST_TOKENS))


def prompts_of(loaded: Loaded, count: int = FEW) -> list[tuple[Record, Example]]:
    """The rows with the shortest prompts."""
    rows = list(zip(loaded.records, loaded.examples, strict=True))
    return sorted(rows, key=lambda row: len(row[1].prompt_ids))[:count]


def stops(samples: Samples, tokenizer: PreTrainedTokenizerBase, asked: int, *, otherwise: Grade) -> Verdict:
    """That the policy ends its replies within the tokens that it is given; two of them are shown.

    Args:
        asked: the run's own `generation.max_new_tokens`.
        otherwise: the grade where none ends.
    """
    replies = [reply for row in samples.replies for reply in row]
    for example, [reply, *_] in list(zip(samples.examples, samples.replies, strict=True))[:SHOWN]:
        say(f"\nreply to {example.source}, marked")
        say_marked([(str(tokenizer.decode(reply.ids)), True)])
    say("")
    ended = sum(reply.finished for reply in replies)
    longest, given = max(len(reply.ids) for reply in replies), min(asked, MOST_TOKENS)
    figure = f"{ended} of {len(replies)} replies ended within {given} tokens (the run gives {asked}), longest {longest}"
    return Verdict("a reply stops", graded(ended > 0, otherwise), figure)
