"""Rows to records: whatever the layout, the same rules judge a prompt, a reply and a pair."""

from collections.abc import Callable, Iterable, Mapping
from itertools import takewhile, zip_longest
from typing import Any

from alignment.config.data import ExampleKind, Format, Learn, Template
from alignment.data.labels import SINGLE_REPLIES, in_one, labels_of
from alignment.data.records import Message, Record, Source, assistant
from alignment.data.row_parsers import PARSERS, REPLIES, Dialogues
from alignment.data.rows import MISPLACED, Row

UNLABELED = (
    "the row has neither a `completion` with its `label` nor the `chosen` reply of a pair (data=messages: `messages`)"
)
SINGLE = "the row has no single reply, a `completion` (data=messages: `messages`), that a score could be of"
MarginOf = Callable[[Mapping[str, Any], Source], float | None]
BEFORE_THE_QUESTION = ("system", "developer", "assistant")  # whose turns ask for no reply


def parse(
    row: Mapping[str, Any],
    source: Source,
    format: Format,
    need: ExampleKind,
    margin_of: MarginOf,
    *,
    learn: Learn = Learn.all,
    template: Template = Template.chat,
    scores: Mapping[str, float] | None = None,
    separator: str = "\n",
) -> Record:
    """The record of a row; a null field counts as absent.

    Args:
        need: `pairs` takes chosen and rejected; `demonstrations` the completion, or else the chosen reply; `labeled`
            the completion with its `label`, or else a pair; `scored` the completion with its score; `steps` the
            `completions` with their `labels`; `prompts` the prompt, whatever the replies are.
        margin_of: called for pairs only.
        learn: which of a demonstration's assistant turns are its completion, all or the last. What a row gives as its
            prompt, or as the dialogue that a chosen reply stands beside, is never learned.
        template: `none` takes prompt and replies as texts.
        scores: the columns of a score and their weights; None: `score`.
        separator: what stands between steps.

    Raises:
        DataError: a field is missing, empty, of the wrong type or in the wrong place, or is not read by any model of
            text; there is no question before a reply; a reply is blank; the replies of a pair are the same or answer
            different prompts; a demonstration is labelled undesirable.
    """
    fields = Row.of(row, source, unread=("rejected",) if need is ExampleKind.demonstrations else ())
    if format is Format.text:
        return _text(fields)
    fields.refuse_media("", fields.fields)
    fields.refuse_misplaced(*(("documents",) if need is ExampleKind.prompts else MISPLACED))
    if template is Template.none:
        _require_texts(fields)
    steps: tuple[int, ...] = ()
    if need is ExampleKind.steps:
        fields, steps = in_one(fields, separator)
    dialogues = {key: _with_system(fields, turns) for key, turns in PARSERS[format](fields).items()}
    prompt, completions, dropped = _prompt_and_completions(fields, dialogues, format, need, learn)
    return Record(
        prompt,
        completions,
        margin_of(row, source) if need is ExampleKind.pairs else None,
        source,
        fields.tags() if need is ExampleKind.prompts else (),
        fields.tools(),
        template,
        dropped=dropped,
        template_kwargs=fields.template_kwargs(),
        weight=1.0 if need is ExampleKind.prompts else fields.weight(),
        labels=labels_of(fields, dialogues, need, scores or {}),
        steps=steps,
    )


def _prompt_and_completions(
    row: Row, dialogues: Dialogues, format: Format, need: ExampleKind, learn: Learn
) -> tuple[list[Message], tuple[list[Message], ...], int]:
    """Prompt, completions, and how many turns behind them were left out."""
    is_single = "completion" in dialogues
    if need is ExampleKind.prompts:
        return _any_prompt(row, dialogues), (), 0
    if need is ExampleKind.labeled and not is_single and "chosen" not in dialogues:
        raise row.misfit(UNLABELED)
    if need is ExampleKind.pairs or (need is ExampleKind.labeled and not is_single):
        prompt, *replies = _pair(row, dialogues, format)
        return prompt, tuple(replies), 0
    if need is ExampleKind.scored and not is_single:
        raise row.misfit(SINGLE)
    if need in SINGLE_REPLIES:  # earlier turns are context, as they are of a pair
        learn = Learn.all if _own_prompt("completion", dialogues, format) else Learn.last
    else:
        _refuse_undesirable(row, dialogues)
    prompt, completion, dropped = _demonstration(row, dialogues, format, learn)
    return prompt, (completion,), dropped


def _refuse_undesirable(row: Row, dialogues: Dialogues) -> None:
    """Raises:
    DataError: the completion that would be learned is labelled as one that must not be.
    """
    if "completion" in dialogues and "label" in row.fields and not row.truth("label", row.fields["label"]):
        raise row.error("label is false: an undesirable reply is no demonstration")


def _text(row: Row) -> Record:
    text = row.text("text")
    if not text.strip():
        raise row.error("text: it is empty")
    return Record([], (assistant(text),), None, row.source, template=Template.none, weight=row.weight())


def _require_texts(row: Row) -> None:
    for key in ("prompt", *REPLIES):
        if not isinstance(row.fields.get(key, ""), str):
            raise row.error(f"field `{key}` must be text with data.template=none, which lays out no turns")
    for key in ("system", "tools", "chat_template_kwargs"):
        if row.fields.get(key):
            raise row.error(f"field `{key}` needs a chat template to write it, got data.template=none")


def _with_system(row: Row, dialogue: list[Message]) -> list[Message]:
    """The dialogue behind the system turn that the row's field `system` gives all its dialogues."""
    text = row.text("system") if "system" in row.fields else ""
    if not text.strip():
        return dialogue
    if any(turn["role"] == "system" for turn in dialogue):
        if dialogue[0] == {"role": "system", "content": text}:
            return dialogue
        raise row.error("field `system`: the dialogue has a system turn of its own")
    return [{"role": "system", "content": text}, *dialogue]


def _any_prompt(row: Row, dialogues: Dialogues) -> list[Message]:
    if "prompt" in dialogues:
        return _checked(row, "prompt", dialogues["prompt"])
    key = next((key for key in REPLIES if key in dialogues), None)
    if key is None:
        raise row.misfit("there is no prompt: the row has none of the fields of its format")
    return _checked(row, key, dialogues[key][:-1])


def _demonstration(
    row: Row, dialogues: Dialogues, format: Format, learn: Learn
) -> tuple[list[Message], list[Message], int]:
    """Prompt, completion and how many turns behind it were left out."""
    key = next((key for key in ("completion", "chosen") if key in dialogues), None)
    if key is None:
        way = "(a column of another name: data.columns.completion=NAME)"
        raise row.misfit(f"there is no reply: the row has neither a completion nor a chosen reply {way}")
    dialogue = dialogues[key]
    own = _own_prompt(key, dialogues, format)
    places = [place for place in range(own, len(dialogue)) if dialogue[place]["role"] == "assistant"]
    if not places or (key == "chosen" and places[-1] != len(dialogue) - 1):
        raise row.error(f"{key}: the dialogue must end with the assistant's reply")
    learned = _learned(row, key, dialogue, places)
    asked = [place for place in learned if place and dialogue[place - 1]["role"] not in BEFORE_THE_QUESTION]
    first = learned[-1] if learn is Learn.last or not asked else asked[0]
    completion = dialogue[first : learned[-1] + 1]
    _require_replies(row, key, completion)
    return _checked(row, key, dialogue[:first]), completion, len(dialogue) - 1 - learned[-1]


def _learned(row: Row, key: str, turns: list[Message], places: Iterable[int]) -> list[int]:
    """Of the places those of the assistant's turns that are learned from."""
    learned = [place for place in places if turns[place]["role"] == "assistant" and turns[place].get("weight", 1)]
    if not learned:
        raise row.error(f"{key}: every assistant's turn has weight 0: no reply is left")
    return learned


def _own_prompt(key: str, dialogues: Dialogues, format: Format) -> int:
    """How many turns the row itself sets apart from its reply, which is a whole dialogue in other rows."""
    if format in (Format.native, Format.toy):
        return len(dialogues.get("prompt", []))
    return 0 if key == "completion" or format is Format.hh else len(dialogues[key]) - 1


def _pair(row: Row, dialogues: Dialogues, format: Format) -> tuple[list[Message], list[Message], list[Message]]:
    for key in ("chosen", "rejected"):
        row.require(key, need=": a pair needs `chosen` and `rejected`")
        if not dialogues[key] or dialogues[key][-1]["role"] != "assistant":
            raise row.error(f"{key}: the dialogue must end with the assistant's reply")
    chosen, rejected = dialogues["chosen"], dialogues["rejected"]
    ends = [len(chosen) - 1, len(rejected) - 1]
    if format in (Format.native, Format.toy) and "prompt" in dialogues:
        # The row says where its replies begin, so that they may be of several turns, such as calls and their results.
        both = zip(chosen, rejected, strict=False)
        same = len(list(takewhile(lambda turns: turns[0] == turns[1], both)))
        places = range(min(same, *ends), len(dialogues["prompt"]) - 1, -1)
        begins = (place for place in places if chosen[place]["role"] == rejected[place]["role"] == "assistant")
        ends = [next(begins, ends[0])] * 2
    if chosen[: ends[0]] != rejected[: ends[1]]:
        turns = zip_longest(chosen[:-1], rejected[:-1])
        first = next(number for number, (left, right) in enumerate(turns, start=1) if left != right)
        raise row.error(f"chosen and rejected answer different prompts: turn {first} differs")
    prompt, replies = chosen[: ends[0]], (chosen[ends[0] :], rejected[ends[1] :])
    for key, reply in zip(("chosen", "rejected"), replies, strict=True):
        _require_replies(row, key, reply)
        _learned(row, key, reply, range(len(reply)))
    if [_bare(turn) for turn in replies[0]] == [_bare(turn) for turn in replies[1]]:
        raise row.error("chosen and rejected are the same reply")
    return _checked(row, "chosen", prompt), *replies


def _bare(turn: Message) -> Message:
    return {**turn, "content": turn["content"].strip()}


def _require_replies(row: Row, key: str, turns: list[Message]) -> None:
    for turn in turns:
        if turn["role"] == "assistant" and not turn["content"].strip() and not turn.get("tool_calls"):
            raise row.error(f"{key}: the reply is empty")
    _require_turns(row, key, turns)


def _require_turns(row: Row, key: str, turns: list[Message], before: int = 0) -> None:
    """Tools may return nothing, and a turn that calls them needs no words."""
    for number, turn in enumerate(turns, start=before + 1):
        if turn["role"] != "tool" and not turn["content"].strip() and not turn.get("tool_calls"):
            raise row.error(f"{key}: turn {number} is empty")


def _checked(row: Row, key: str, prompt: list[Message]) -> list[Message]:
    """The prompt of the dialogue in `key`, if it ends with a question, and no turn is blank. Whether the roles before
    follow each other rightly is the chat template's to say."""
    if not prompt:
        raise row.error(f"{key}: there is no turn to reply to")
    _require_turns(row, key, prompt)
    if prompt[-1]["role"] in BEFORE_THE_QUESTION:
        raise row.error(f"{key}: a reply must follow a user's or a tool's turn, and turn {len(prompt)} is neither")
    return prompt
