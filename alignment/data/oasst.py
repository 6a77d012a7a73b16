"""OpenAssistant's trees of messages as native rows, one for each question that is answered."""

from collections.abc import Iterable, Iterator, Mapping
from itertools import groupby
from typing import Any

from alignment.config.data import ExampleKind
from alignment.data.json_rows import Row
from alignment.data.records import DataError, Message, Source

Rows = Iterable[tuple[Source, Row | DataError]]
ROLES = {"prompter": "user", "assistant": "assistant"}
LAST = 10**6  # the rank of a reply that nobody has ranked


def native_rows(rows: Rows, need: ExampleKind) -> Iterator[tuple[Source, Row | DataError]]:
    """Of each tree what `need` takes: `prompts` each thread that ends with a prompter's turn; `pairs` the
    best reply to each such turn, chosen before each other that is ranked behind it; `labeled` the same replies, each
    once, the best one desirable and the others not; else the best-ranked replies to
    each, the thread before as context. A message that is deleted is none, with all behind it.

    Args:
        rows: trees, {"prompt": {"text", "role", "replies": [...]}}, or single messages, those of a tree next to each
            other and each behind the one that it replies to.
    """
    for _, group in groupby(rows, key=_tree_id):
        tree = list(group)
        source, first = tree[0]
        if isinstance(first, DataError):
            yield from tree
            continue
        try:
            roots = [first["prompt"]] if isinstance(first.get("prompt"), dict) else _roots(tree)
            rows_of_tree = (made for root in roots for made in _of_tree(root, [], source, need))
            for number, made in enumerate(rows_of_tree, start=1):
                yield Source(source.file, source.line, number), made
        except DataError as error:
            yield source, error


def _tree_id(at: tuple[Source, Row | DataError]) -> Any:
    """What the messages of one tree share; a row that is a tree itself, or no row, stands alone."""
    source, row = at
    if isinstance(row, DataError) or "message_id" not in row:
        return str(source)
    return row.get("message_tree_id") or str(source)


def _roots(rows: list[tuple[Source, Row | DataError]]) -> list[Row]:
    """The messages of a tree, each with its replies."""
    found: dict[Any, Row] = {}
    roots = []
    for source, row in rows:
        if isinstance(row, DataError):
            raise row
        message = {**row, "replies": []}
        found[row.get("message_id")] = message
        parent = row.get("parent_id")
        if parent is None:
            roots.append(message)
        elif parent in found:
            found[parent]["replies"].append(message)
        else:
            raise DataError(
                source, f"the message replies to {parent!r:.60}, which does not stand before it in its tree"
            )
    return roots


def _of_tree(message: Mapping[str, Any], before: list[Message], source: Source, need: ExampleKind) -> Iterator[Row]:
    """The rows of a message and of all behind it."""
    if message.get("deleted"):
        return
    role, text = ROLES.get(str(message.get("role"))), message.get("text")
    if role is None or not isinstance(text, str):
        rule = "a message must have a text, and the role prompter or assistant"
        raise DataError(source, f"{rule}, got the role {message.get('role')!r:.40} and {text!r:.40}")
    thread = [*before, {"role": role, "content": text}]
    replies = [reply for reply in message.get("replies") or [] if not reply.get("deleted")]
    replies.sort(key=_rank)
    if role == "user":
        yield from _answered(thread, replies, message, need)
    for reply in replies:
        yield from _of_tree(reply, thread, source, need)


def _answered(
    thread: list[Message], replies: list[Any], message: Mapping[str, Any], need: ExampleKind
) -> Iterator[Row]:
    beside = {key: message[key] for key in ("message_id", "lang") if message.get(key) is not None}
    texts = [reply.get("text") for reply in replies]
    if need is ExampleKind.prompts:
        yield {**beside, "prompt": thread}
    elif need in (ExampleKind.pairs, ExampleKind.labeled):
        behind = [each for each in replies[1:] if _rank(replies[0]) < _rank(each) < LAST]
        if need is ExampleKind.labeled:  # each reply once, or the best would count as often as there are others
            judged = [(replies[0], True), *((each, False) for each in behind)] if behind else []
            row = {**beside, "prompt": thread}
            yield from ({**row, "completion": each.get("text"), "label": is_best} for each, is_best in judged)
            return
        yield from ({**beside, "prompt": thread, "chosen": texts[0], "rejected": each.get("text")} for each in behind)
    elif texts:
        yield {**beside, "prompt": thread, "completion": texts[0]}


def _rank(reply: Mapping[str, Any]) -> float:
    """0 is the best."""
    rank = reply.get("rank")
    return rank if isinstance(rank, int | float) else LAST
