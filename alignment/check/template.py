"""Whether turns are laid out as the model knows them: the control tokens of its tokenizer, and what it says itself."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from statistics import median

import numpy as np
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from alignment.check.plain import plain_logprobs
from alignment.check.verdict import Grade, Verdict
from alignment.config.data import Template
from alignment.data.chat import render
from alignment.data.records import DataError, Record, Source, assistant
from alignment.data.tokenize import Limits, Truncation, encode

PROBES = (
    ("What is the capital of France?", "The capital of France is Paris."),
    ("What is two plus two?", "Two plus two is four."),
    ("Who wrote Romeo and Juliet?", "Romeo and Juliet was written by William Shakespeare."),
    ("Hello!", "Hello! How can I help you today?"),
)
CLEAR = 2.0  # nats a reply, its end included: so much likelier is a reply in the layout that was trained
KNOWN = 0.2  # of a layout's end behind a reply: only a model that has learned it gives it as much
WHOLE = Limits(max_length=4096, max_prompt_length=2048)


@dataclass(frozen=True, slots=True)
class Turns:
    """A layout of turns by control tokens, which many models share."""

    name: str
    head: str
    """What stands before a turn's text; `{role}` is its place for the role."""
    end: str
    between: str
    """Behind the end, before the next turn."""
    role: str = "assistant"
    """What it calls the assistant."""

    def opening(self) -> str:
        return self.head.format(role=self.role).strip()

    def is_known_to(self, tokenizer: PreTrainedTokenizerBase) -> bool:
        """Whether each of its control tokens is one piece."""
        marks = re.findall(r"<[^<>]+>", "".join(self.head.format(role=role) for role in ("user", self.role)) + self.end)
        return set(marks) <= tokenizer.get_vocab().keys()

    def ids(self, question: str, reply: str, tokenizer: PreTrainedTokenizerBase) -> tuple[np.ndarray, np.ndarray]:
        """The tokens of a prompt and of its reply with the end."""
        head = self.head.format(role=self.role)
        prompt = f"{self.head.format(role='user')}{question}{self.end}{self.between}{head}"
        bos = str(tokenizer.bos_token)
        if tokenizer.bos_token is not None and bos not in self.head:
            prompt = bos + prompt
        first, second = (
            np.array(tokenizer(text, add_special_tokens=False)["input_ids"]) for text in (prompt, f"{reply}{self.end}")
        )
        return first, second


TURNS = (
    Turns("ChatML", "<|im_start|>{role}\n", "<|im_end|>", "\n"),
    Turns("Llama 3's layout", "<|start_header_id|>{role}<|end_header_id|>\n\n", "<|eot_id|>", ""),
    Turns("Gemma's layout", "<start_of_turn>{role}\n", "<end_of_turn>", "\n", "model"),
    Turns("Phi 3's layout", "<|{role}|>\n", "<|end|>", "\n"),
)


def layout(records: Sequence[Record], tokenizer: PreTrainedTokenizerBase, plain: PreTrainedModel | None) -> Verdict:
    """That a model whose tokenizer has control tokens for turns is given turns with these.

    Where the chat template writes others, the model is asked in which layout some plain replies are likelier, and
    whether it knows how one ends in the other.

    Args:
        plain: the language model; None where it is none that could be asked.
    """
    name = "chat template"
    if all(record.template is Template.none for record in records):
        return Verdict(name, Grade.ok, "the data have none, a prompt is its own text")
    known = [turns for turns in TURNS if turns.is_known_to(tokenizer)]
    try:
        text = "".join(part for record in probes() for part in _texts(record, tokenizer))
    except DataError as error:
        return Verdict(name, Grade.ok, f"not tried on dialogues of two turns: {error}")
    written = [turns.name for turns in known if turns.opening() in text]
    if written:
        return Verdict(name, Grade.ok, f"{written[0]}, for which the tokenizer has the control tokens")
    if not known:
        others = ", ".join(turns.name for turns in TURNS)
        figure = f"rows are laid out as shown above; the tokenizer has no control tokens of another layout ({others})"
        return Verdict(name, Grade.ok, figure)
    other = known[0]
    figure = f"turns are written without {other.opening()!r}, for which the tokenizer has the control tokens"
    way = "the model's own chat template is in the folder that it was published in: model.tokenizer=FOLDER"
    if plain is None:
        return Verdict(name, Grade.warn, f"{figure}; if the model was trained in {other.name}, {way}")
    (here, _), (there, end) = _measure(plain, tokenizer, None), _measure(plain, tokenizer, other)
    figure += (
        f"; the model gives a plain reply {here:.1f} nats in this layout and {there:.1f} in {other.name}, where it "
    )
    figure += f"gives the end {100 * end:.2g}%"
    if here > there + CLEAR:
        return Verdict(name, Grade.ok, figure)
    if there > here + CLEAR or (there > here and end > KNOWN):
        return Verdict(name, Grade.fail, f"{figure}: it was trained in that; {way}")
    return Verdict(name, Grade.warn, f"{figure}; if it was trained in that, {way}")


def probes() -> Iterator[Record]:
    for number, (question, reply) in enumerate(PROBES, start=1):
        turns = [{"role": "user", "content": question}]
        yield Record(turns, (assistant(reply),), None, Source("a plain dialogue", number))


def _texts(record: Record, tokenizer: PreTrainedTokenizerBase) -> Iterator[str]:
    rendered = render(record, tokenizer)
    yield from (rendered.prompt, *rendered.texts())


def _measure(plain: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, turns: Turns | None) -> tuple[float, float]:
    """Nats of a plain reply with its end, their mean, and the median probability of the end: laid out by `turns`, or by
    the chat template."""
    total, ends = 0.0, []
    for record, (question, reply) in zip(probes(), PROBES, strict=True):
        if turns is not None:
            prompt, completion = turns.ids(question, reply, tokenizer)
        else:
            example = encode(record, tokenizer, WHOLE, Truncation())
            prompt, [completion] = example.prompt_ids, example.completion_ids
        logprobs = plain_logprobs(plain, prompt, completion)
        total += float(logprobs.sum())
        ends.append(float(logprobs[-1].exp()))
    return total / len(PROBES), median(ends)
