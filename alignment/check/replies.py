"""What the policy replies before it has learned anything."""

from dataclasses import replace
from statistics import median

from transformers import PreTrainedTokenizerBase

from alignment.check.agreement import EVERYTHING, Reader, of_tokens
from alignment.check.subject import FEW
from alignment.check.text import completions_of, show
from alignment.check.verdict import Grade, Verdict, graded
from alignment.config.generation import GenerationConfig
from alignment.data.batches import Batches
from alignment.data.loaded import Loaded
from alignment.data.records import Record
from alignment.data.tokenize import Example
from alignment.generation.samples import Samples

MOST_TOKENS = 128  # of a reply that is drawn here
KNOWN = 0.05  # of the end: a model that has never seen one there gives it a ten thousandth


def brief(config: GenerationConfig) -> GenerationConfig:
    """The run's, with replies that are cut earlier where it asks for long ones."""
    return replace(config, max_new_tokens=min(config.max_new_tokens, MOST_TOKENS))


def prompts_of(loaded: Loaded, count: int = FEW) -> list[tuple[Record, Example]]:
    """The rows with the shortest prompts."""
    rows = list(zip(loaded.records, loaded.examples, strict=True))
    return sorted(rows, key=lambda row: len(row[1].prompt_ids))[:count]


def stops(samples: Samples, tokenizer: PreTrainedTokenizerBase, asked: int, *, otherwise: Grade) -> Verdict:
    """That the policy ends its replies within the tokens that it is given; some of them are shown.

    Args:
        asked: the run's own `generation.max_new_tokens`.
        otherwise: the grade where none ends within all the tokens that the run gives.
    """
    show(samples.examples, tokenizer, "the reply that the model drew", "prompt", FEW // 2)
    replies = [reply for row in samples.replies for reply in row]
    ended = sum(reply.finished for reply in replies)
    longest, given = max(len(reply.ids) for reply in replies), min(asked, MOST_TOKENS)
    figure = f"{ended} of {len(replies)} replies to the shortest prompts ended within {given} tokens "
    figure += f"(the run gives {asked}), longest {longest}"
    if not ended:
        figure += ": it writes no end, or another than generation stops at (the line ends), or its replies are longer"
    if asked > given:  # some may have ended later
        otherwise = Grade.warn
    return Verdict("a reply stops", graded(ended > 0, otherwise), figure)


def begins_to_stop(samples: Samples, tokenizer: PreTrainedTokenizerBase, known: float, *, is_taught: bool) -> Verdict:
    """The same of a task that draws no replies: that half of them end, or that the end is likely where rows have one.

    Args:
        known: what `end_probability` gives.
        is_taught: whether it is this run that teaches a model to end.
    """
    show(samples.examples, tokenizer, "the reply that the model drew", "prompt", FEW // 2)
    replies = [reply for row in samples.replies for reply in row]
    ended = sum(reply.finished for reply in replies)
    figure = f"{ended} of {len(replies)} drawn replies ended within {max(len(reply.ids) for reply in replies)} tokens; "
    figure += f"the model gives the end of the rows' replies a probability of {100 * known:.2g}% (median)"
    if known > KNOWN:
        return Verdict("a reply stops", Grade.ok, f"{figure}, above {100 * KNOWN:g}%: it knows the end")
    if 2 * ended >= len(replies):
        return Verdict("a reply stops", Grade.ok, f"{figure}; half of them end")
    figure += f", below {100 * KNOWN:g}%, so that it does not know it"
    if is_taught:
        return Verdict("a reply stops", Grade.ok, f"{figure}; this run is to teach it")
    way = "it was not trained in this layout, or not trained to end: SFT comes before this"
    return Verdict("a reply stops", Grade.warn, f"{figure}: {way}")


def end_probability(reader: Reader, batches: Batches) -> float:
    """What the model gives the token that ends a reply of the rows, behind that reply; the median of those that end."""
    batches = of_tokens(batches, EVERYTHING)
    [(batch, _)] = batches.once()
    logprobs = reader.read(batch)
    found, place = [], 0
    for row in batch.rows.tolist():
        example = batches.examples[row]
        for (_, learned), finished in zip(completions_of(example), example.finished, strict=True):
            place += int(learned.sum())
            if finished and learned[-1]:
                found.append(float(logprobs[place - 1].exp()))
    return median(found) if found else 0.0
