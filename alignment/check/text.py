"""What is learned, read back from its tokens: the prompt, the tokens that carry loss, and what ends a reply."""

import re
from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import Any

import numpy as np
from transformers import PreTrainedTokenizerBase

from alignment.check.verdict import Grade, Verdict
from alignment.config.data import Template
from alignment.data.loaded import Loaded
from alignment.data.records import Message, Record, Source
from alignment.data.tokenize import Example
from alignment.terminal import say, say_marked

LOOKED_AT = 200  # rows, of those that are read
SHOWN = 3
SHOWN_CHARACTERS = 600  # of a prompt, its end
BORDER = 8  # tokens before a reply that a prompt which the limits have cut still has
END_CHARACTERS = 24  # at most, of what a template writes behind a reply
NO_THOUGHT = "<think></think>"  # what templates of reasoning models write before a reply that has none


def show(
    examples: Sequence[Example], tokenizer: PreTrainedTokenizerBase, marked: str, what: str = "row", most: int = SHOWN
) -> None:
    """Some rows as the model reads them, the tokens that carry loss marked; `marked` says what these are, and `what`
    each row is."""
    for number, example in enumerate(examples[:most], start=1):
        place = f"{what} {number} of {len(examples)} ({example.source})"
        say(f"\n{place}" + (f", marked: {marked}" if example.completion_ids else ""))
        prompt = str(tokenizer.decode(example.prompt_ids))
        cut = prompt if len(prompt) <= SHOWN_CHARACTERS else f"... {prompt[-SHOWN_CHARACTERS:]}"
        say_marked([(cut, False)])
        names = (
            ("chosen -> ", "rejected -> ")
            if len(example.completion_ids) == 2
            else ["-> "] * len(example.completion_ids)
        )
        for name, (ids, learned) in zip(names, completions_of(example), strict=True):
            parts = runs(ids, learned)
            say_marked([(name, False), *((str(tokenizer.decode(part)), is_learned) for part, is_learned in parts)])
    say("")


def completions_of(example: Example) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Token ids [C_k] of each completion, and which carry loss, [C_k] bool."""
    for number, ids in enumerate(example.completion_ids):
        yield ids, np.ones(len(ids), dtype=bool) if example.learned is None else example.learned[number]


def runs(ids: np.ndarray, learned: np.ndarray) -> list[tuple[np.ndarray, bool]]:
    """The parts of a completion that carry loss and those that do not, in order."""
    ranges = [(is_learned, list(part)) for is_learned, part in groupby(range(len(ids)), key=lambda i: bool(learned[i]))]
    return [(ids[part], is_learned) for is_learned, part in ranges]


def opening(loaded: Loaded, tokenizer: PreTrainedTokenizerBase) -> Verdict:
    """That a reply is generated behind the very tokens it is learned behind: the template's generation prompt.

    A template that opens a reply otherwise than it writes one ("<think>" at the end of the generation prompt alone)
    asks a trained model for something that it has never seen.
    """
    name, different, count = "generation prompt", [], 0
    for record, example in _rows(loaded):
        if record.template is Template.none:
            continue
        count += 1
        ids = tokenizer(_written(record.prompt, record, tokenizer, opens=True), add_special_tokens=False)["input_ids"]
        own = example.prompt_ids.tolist()
        if own != ids and (len(own) >= len(ids) or own[-BORDER:] != ids[-BORDER:]):
            different.append((str(tokenizer.decode(ids))[-40:], str(tokenizer.decode(own))[-40:]))
    if not count:
        return Verdict(name, Grade.ok, "the data have no template, a prompt is its own text")
    if not different:
        return Verdict(name, Grade.ok, f"{count} prompts of {count} are token for token what generation is given")
    generated, trained = different[0]
    figure = f"{len(different)} prompts of {count} differ: replies are generated behind {generated!r}"
    return Verdict(name, Grade.fail, f"{figure} and learned behind {trained!r}: mend the chat template")


def mask(loaded: Loaded, tokenizer: PreTrainedTokenizerBase) -> Verdict:
    """That what carries loss is the assistant's turns, each whole, and nothing else.

    What is learned is read back from its tokens and compared with the turns of the row.
    """
    wrong: list[str] = []
    num_turns = num_learned = num_tokens = 0
    for record, example in _rows(loaded):
        for turns, finished, (ids, learned) in zip(
            record.completions, example.finished, completions_of(example), strict=True
        ):
            texts = [_squeezed(tokenizer, part) for part, is_learned in runs(ids, learned) if is_learned]
            own = [turn for turn in turns if turn["role"] == "assistant" and turn.get("weight") != 0]
            num_turns, num_learned, num_tokens = (
                num_turns + len(own),
                num_learned + learned.sum(),
                num_tokens + len(ids),
            )
            if not _are(texts, own, tokenizer, is_cut=not finished):
                part = next((part for part, is_learned in runs(ids, learned) if is_learned), ids[:0])
                wrong.append(f"{example.source}: {str(tokenizer.decode(part))[:80]!r} is learned")
    share = f"{num_learned} of {num_tokens} tokens of completions carry loss, {num_turns} turns of the assistant"
    if not wrong:
        return Verdict("tokens that carry loss", Grade.ok, share)
    figure = f"{len(wrong)} completions carry it on other tokens than the assistant's turns, first {wrong[0]}; {share}"
    return Verdict("tokens that carry loss", Grade.fail, figure)


def _are(texts: list[str], turns: list[Message], tokenizer: PreTrainedTokenizerBase, *, is_cut: bool) -> bool:
    """Whether the learned texts are the turns, in order. Where the limits have cut a completion, the last may be short
    and others may be missing."""
    if len(texts) > len(turns) or (len(texts) < len(turns) and not is_cut):
        return False
    for number, (text, turn) in enumerate(zip(texts, turns, strict=False), start=1):
        content = _squeezed(tokenizer, tokenizer(turn["content"], add_special_tokens=False)["input_ids"])
        before, found, after = text.partition(content)
        has_more = bool(turn.get("reasoning_content") or turn.get("tool_calls"))
        is_short = is_cut and number == len(texts) and content.startswith(text.removeprefix(NO_THOUGHT))
        is_whole = bool(found) and before in ("", NO_THOUGHT) and len(after) <= END_CHARACTERS
        if not (is_short or is_whole or (has_more and (bool(found) or is_cut))):
            return False
    return True


def _squeezed(tokenizer: PreTrainedTokenizerBase, ids: list[int] | np.ndarray) -> str:
    """The text of tokens without any white space, which templates trim."""
    return re.sub(r"\s+", "", str(tokenizer.decode(ids)))


def ends(loaded: Loaded, tokenizer: PreTrainedTokenizerBase, end_ids: Sequence[int]) -> Verdict:
    """That each reply that was not cut ends in a token at which generation stops, that this token is learned, and that
    the chat template ends a turn itself.

    `end_ids`: the generator's. A template without an end has replies run into the next turn wherever it is used.
    """
    stops = " ".join(f"{tokenizer.decode([token])} ({token})" for token in end_ids)
    lasts = [
        int(ids[-1])
        for _, example in _rows(loaded)
        for ids, finished in zip(example.completion_ids, example.finished, strict=True)
        if finished
    ]
    endless = [token for token in lasts if token not in end_ids]
    if endless:
        last = tokenizer.decode([endless[0]])
        figure = f"{len(endless)} of {len(lasts)} learned replies do not end where generation stops ({stops})"
        figure += f", the first ends in {last!r}: the chat template must close a reply with one of them"
        return Verdict("ends", Grade.fail, figure)
    written = _template_end(loaded, tokenizer)
    ids = [] if written is None else tokenizer(written, add_special_tokens=False)["input_ids"]
    turn_ends = set(ids) & set(end_ids)
    unlearned = _without_end(loaded, turn_ends)
    if unlearned:
        figure = f"{len(unlearned)} of {len(lasts)} replies carry no loss on the token that ends them ({stops}), first "
        figure += f"{unlearned[0]}: a model that does not learn its end does not stop"
        return Verdict("ends", Grade.fail, figure)
    figure = f"{len(lasts)} of {len(lasts)} replies end where generation stops: {stops}" if lasts else ""
    figure = figure or f"generation stops at {stops}"
    if written is None:
        return Verdict("ends", Grade.ok, figure)
    if not written.strip():
        why = f"the chat template writes no end behind a reply ({written!r}): replies run into the next turn"
        return Verdict("ends", Grade.fail, f"{why}; add eos_token behind the assistant's turns")
    if not turn_ends:
        why = f"the chat template ends a reply with {written!r}, at which generation does not stop"
        return Verdict("ends", Grade.warn, f"{figure}; {why}: list it in generation_config.eos_token_id")
    return Verdict("ends", Grade.ok, f"{figure}; the template writes {written!r}")


def _without_end(loaded: Loaded, turn_ends: set[int]) -> list[Source]:
    """The replies with a learned turn whose end is not learned with it: the last turn's last token; of earlier turns
    one of `turn_ends`, with which the template ends them, where there are any."""
    found = []
    for record, example in _rows(loaded):
        for turns, finished, (ids, learned) in zip(
            record.completions, example.finished, completions_of(example), strict=True
        ):
            parts = [set(part.tolist()) for part, is_learned in runs(ids, learned) if is_learned]
            ends_unlearned = finished and turns[-1].get("weight") != 0 and not learned[-1]
            if ends_unlearned or (turn_ends and any(not part & turn_ends for part in parts[:-1])):
                found.append(example.source)
    return found


def _template_end(loaded: Loaded, tokenizer: PreTrainedTokenizerBase) -> str | None:
    """What the chat template writes between a reply and what comes next; None where the rows have no template."""
    record = next((record for record, _ in _rows(loaded) if record.template is Template.chat), None)
    if record is None:
        return None
    probe = "Quite so"
    turns = [*record.prompt, {"role": "assistant", "content": probe}]
    return _written(turns, record, tokenizer, opens=False).rpartition(probe)[2]


def _rows(loaded: Loaded) -> list[tuple[Record, Example]]:
    return list(zip(loaded.records, loaded.examples, strict=True))[:LOOKED_AT]


def _written(turns: Sequence[Message], record: Record, tokenizer: PreTrainedTokenizerBase, *, opens: bool) -> str:
    """The template itself, without this package's rendering."""
    tools: Any = list(record.tools) or None
    how = {**record.template_kwargs, "add_generation_prompt": opens}
    return str(tokenizer.apply_chat_template(list(turns), tools=tools, tokenize=False, **how))
