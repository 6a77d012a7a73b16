"""What only a tokenizer and its template can tell of a row: whether its texts are texts, whether what it carries is
read, and whether two replies differ in tokens."""

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from transformers import PreTrainedTokenizerBase

from alignment.config.data import Template
from alignment.config.errors import ConfigError
from alignment.data.chat import PROBE, Rendered, written
from alignment.data.records import DataError, Message, Record, Source
from alignment.data.tokenize import Example, Limits

REASONING = ("reasoning_content", "reasoning", "thinking")  # what transformers takes for the same
ROLES = ("system", "developer", "user", "assistant", "tool")  # which a template need not name to know
MARK = PROBE[0]["content"]
SYSTEM: Message = {"role": "system", "content": MARK}
QUESTION: Message = {"role": "user", "content": MARK}
WAYS = "data.template=none takes texts that are laid out already"
NOTHING = re.compile("(?!)")


@dataclass(frozen=True, slots=True)
class Signs:
    """What opens and closes turns, and so must not stand in the text of one."""

    prompt: re.Pattern[str]
    reply: re.Pattern[str]
    question: re.Pattern[str]  # one that is laid out whole, from where a template begins it to where a reply begins
    template: str  # the template itself, which names what it reads of a turn


def signs_of(
    tokenizer: PreTrainedTokenizerBase, template: Template, separator: str = "", key: str = "data.step_separator"
) -> Signs:
    """Of the tokenizer's chat template; texts that no template lays out may hold anything.

    Args:
        separator: what stands between the steps of a reply, a special token such as Qwen's "<extra_0>" too.
        key: what it is called in the config.

    Raises:
        ConfigError: the separator would end the reply, or the turn.
    """
    if template is Template.none:
        return Signs(NOTHING, NOTHING, NOTHING, "")
    dialogue = [QUESTION, *PROBE, QUESTION]
    turns = _tried(tokenizer, [SYSTEM, *dialogue]) or _tried(tokenizer, dialogue) or str(tokenizer.chat_template)
    tokens = _control_tokens(tokenizer, turns)
    between = {token for token in tokens if token in separator}
    ends = {token for token in between if token in turns or token in (tokenizer.eos_token, tokenizer.pad_token)}
    if ends:
        rule = f"{key} must be what a reply may hold between its steps, and {min(ends)!r} opens or closes a turn"
        raise ConfigError(f"{rule}, got {separator!r}")
    return Signs(_any_of(tokens), _any_of(tokens - between), _question(tokenizer), str(tokenizer.chat_template))


def _control_tokens(tokenizer: PreTrainedTokenizerBase, turns: str) -> set[str]:
    """The special tokens, and added ones that stand around turns. What a reply may be made of, such as "<think>" or
    "<tool_call>", which templates write within the last one alone, is not among them."""
    added = tokenizer.added_tokens_decoder.values()
    kept = {token.content for token in added if token.special or token.content in turns}
    return {token for token in kept if token.strip()}


def _any_of(tokens: set[str]) -> re.Pattern[str]:
    spelled = sorted(tokens, key=lambda token: (-len(token), token))
    return re.compile("|".join(map(re.escape, spelled)) or NOTHING.pattern)


def _question(tokenizer: PreTrainedTokenizerBase) -> re.Pattern[str]:
    """Many templates mark turns by plain text, "[INST]" or "### Instruction:", which no token tells from a text's own.
    With or without what a template says before the first turn."""
    before, _, behind = _tried(tokenizer, [QUESTION], add_generation_prompt=True).partition(MARK)
    bos = tokenizer.bos_token or ""
    before, behind = before.strip().removeprefix(bos).strip(), behind.strip()
    if not before or not behind:
        return NOTHING
    word = before.split()[-1]
    opens = [before] if word.isalnum() else [before, word]  # "user" alone begins many a question
    return re.compile(rf"\s*(?:{re.escape(bos)}\s*)?({'|'.join(map(re.escape, opens))})[\s\S]*{re.escape(behind)}")


def _tried(tokenizer: PreTrainedTokenizerBase, turns: list[Message], **how: Any) -> str:
    """What the template writes; nothing where it refuses."""
    try:
        return written(Record(turns, (), None, Source("a dialogue", 1)), tokenizer, turns, **how)
    except DataError:
        return ""


def require_plain_texts(record: Record, signs: Signs) -> None:
    """Raises:
    DataError: a text holds half a character, a NUL, or a control token, which would open or close a turn within one,
        also as reasoning, in a call or in a tool; or a question is laid out already, and would be once more.
    """
    turns = [*record.prompt, *(turn for turns in record.completions for turn in turns)]
    for text in _texts([turns, record.tools, record.template_kwargs, record.tags]):
        try:
            text.encode()
        except UnicodeEncodeError as error:
            what = "a text holds half of a character, a lone surrogate: it was cut in the middle of one"
            raise DataError(record.source, what) from error
        if "\0" in text:
            raise DataError(record.source, "a text holds the character NUL")
    _refuse_tokens(record, "a text of field `tools`", signs.prompt, record.tools)
    _refuse_tokens(record, "a text of field `chat_template_kwargs`", signs.prompt, record.template_kwargs)
    for turn in turns:
        part = "prompt" if turn in record.prompt else "reply"
        where, tokens = f"a text of the {part}", {"prompt": signs.prompt, "reply": signs.reply}[part]
        _refuse_tokens(record, where, tokens, [value for key, value in turn.items() if key in signs.template])
        whole = signs.question.match(turn["content"]) if turn["role"] == "user" else None
        if whole is not None:
            what = f"is laid out already, from {whole[1]!r:.60} to where the chat template begins a reply"
            raise DataError(record.source, f"{where} {what}: {WAYS}")


def _refuse_tokens(record: Record, where: str, tokens: re.Pattern[str], value: Any) -> None:
    found = next(filter(None, map(tokens.search, _texts(value))), None)
    if found is not None:
        raise DataError(record.source, f"{where} holds the control token {found[0]!r}: {WAYS}")


def require_read(record: Record, tokenizer: PreTrainedTokenizerBase, rendered: Rendered) -> None:
    """Of the record and what the template has made of it.

    Raises:
    DataError: a turn has a role that the template knows nothing of; or it leaves out tools, a system or a tool turn,
        text of the question, or the text, the calls or the reasoning of a reply; or the name of a turn. What earlier
        replies have is its own to leave out, as Qwen 3 does with reasoning, and so is a tool's name.
    """
    if record.template is Template.none:
        return
    _require_known_roles(record, tokenizer)
    unused = [key for key in record.template_kwargs if key not in str(tokenizer.chat_template)]
    if unused:
        raise _unread(record, f"field `chat_template_kwargs.{unused[0]}`")
    others = [place for place, turn in enumerate(record.prompt) if turn["role"] not in ("user", "assistant")]
    if record.tools or others:
        prompt = written(record, tokenizer, record.prompt, add_generation_prompt=True)
        if record.tools and prompt == written(
            replace(record, tools=()), tokenizer, record.prompt, add_generation_prompt=True
        ):
            raise _unread(record, "field `tools`")
        for place in others:
            turn = record.prompt[place]
            other = [*record.prompt[:place], {**turn, "content": MARK}, *record.prompt[place + 1 :]]
            if turn["content"].strip() not in prompt and prompt == written(
                record, tokenizer, other, add_generation_prompt=True
            ):
                raise _unread(record, f"the text of turn {place + 1}, whose role is {turn['role']!r},")
    last = record.prompt[-1]
    if last["role"] == "user":  # what tools return is written in ways of the template's own
        _require_text(record, last, len(record.prompt), rendered.prompt)
    _require_carried(record, tokenizer, record.prompt, 0, add_generation_prompt=True)
    for turns, text in zip(record.completions, rendered.texts(), strict=True):
        _require_reply_read(record, turns, rendered.prompt + text)
        _require_carried(record, tokenizer, [*record.prompt, *turns], len(record.prompt))


def _require_known_roles(record: Record, tokenizer: PreTrainedTokenizerBase) -> None:
    """A template that writes any role would write "User" or "prompter" into the tokens of a header."""
    for number, turn in enumerate([*record.prompt, *(turn for turns in record.completions for turn in turns)], start=1):
        if turn["role"] not in ROLES and turn["role"] not in str(tokenizer.chat_template):
            rule = f"must be one of {', '.join(ROLES)}, or one that the tokenizer's chat template names"
            raise DataError(record.source, f"the role of turn {number} {rule}, got {turn['role']!r}")


def _require_reply_read(record: Record, turns: list[Message], text: str) -> None:
    for place, turn in enumerate(turns, start=len(record.prompt) + 1):
        if _is_learned(turn) or turn["role"] in ("system", "developer", "user"):
            _require_text(record, turn, place, text)


def _require_carried(
    record: Record, tokenizer: PreTrainedTokenizerBase, turns: list[Message], begin: int, **how: Any
) -> None:
    """Raise where the template ignores a field that the turns from `begin` on have beside their text: what it writes
    must change with the field's value, not only with whether the field is there."""
    for place, turn in enumerate(turns[begin:], start=begin):
        learned = (("tool_calls",), REASONING) if place >= len(record.prompt) and _is_learned(turn) else ()
        name = () if turn["role"] == "tool" else ("name",)
        for keys in (*learned, name):
            carried = [key for key in keys if turn.get(key)]
            other = [*turns[:place], {**turn, **dict.fromkeys(carried, MARK)}, *turns[place + 1 :]]
            if carried and _writes_alike(record, tokenizer, turns, other, **how):
                raise _unread(record, f"`{carried[0]}` of turn {place + 1}")


def leaves_out_calls(record: Record, tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether the template writes nothing of the calls in a dialogue, as those that know none do."""
    turns = [*record.prompt, *(record.completions[0] if record.completions else [])]
    bare = [{key: value for key, value in turn.items() if key != "tool_calls"} for turn in turns]
    return record.template is Template.chat and bare != turns and _writes_alike(record, tokenizer, turns, bare)


def _is_learned(turn: Message) -> bool:
    return turn["role"] == "assistant" and bool(turn.get("weight", 1))


def _writes_alike(
    record: Record, tokenizer: PreTrainedTokenizerBase, turns: list[Message], other: list[Message], **how: Any
) -> bool:
    try:
        return written(record, tokenizer, turns, **how) == written(record, tokenizer, other, **how)
    except DataError:  # what the template refuses it has read
        return False


def _require_text(record: Record, turn: Message, place: int, text: str) -> None:
    if not holds(text, turn["content"]):
        raise _unread(record, f"some of the text of turn {place}, {turn['content'].strip()!r:.40},")


def holds(whole: str, text: str) -> bool:
    """Whether a text is part of another but for its blanks, which are the template's to set."""
    return "".join(text.split()) in "".join(whole.split())


def _unread(record: Record, what: str) -> DataError:
    way = "take a model whose template writes it, or remove it from the row"
    if any(len(turns) > 1 for turns in record.completions):
        way += "; data.learn=last learns the last reply alone"
    return DataError(record.source, f"{what} is left out by the tokenizer's chat template: {way}")


def _texts(value: Any) -> Iterator[str]:
    """Every text within lists and objects."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for key, each in value.items():
            yield from _texts([key, each])
    elif isinstance(value, list | tuple):
        for each in value:
            yield from _texts(each)


def require_difference(example: Example, limits: Limits) -> None:
    """Raises:
    DataError: the two replies of a pair do not differ within the limits.
    """
    if len(example.completion_ids) == 2:
        chosen, rejected = (ids.tolist() for ids in example.completion_ids)
        if chosen == rejected:
            rule = f"chosen and rejected are the same within data.max_length = {limits.max_length}"
            raise DataError(example.source, rule)
