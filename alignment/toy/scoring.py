"""The gold score: what a reply is really worth, in [0, 1], by rules that no model can argue with."""

import re
from collections.abc import Mapping, Sequence

from alignment.toy.language import (
    ADJECTIVES,
    CLOSINGS,
    FACTS,
    PLACES,
    REMARKS,
    VERBS,
    Question,
    ToyError,
    parse_question,
)

MAX_WORDS = 40
CHECKS = ("animal", "adjectives", "verb", "place", "closing", "plain")

_TOKEN = re.compile(r"[^\s.,!?]+|[.!?]")
_COURTEOUS = frozenset(tuple(closing.split()[:-1]) for closing in CLOSINGS)
_ANY_CLOSING = _COURTEOUS | {tuple(remark.split()[:-1]) for remark in REMARKS}


def checks(question: Question, reply: str) -> dict[str, float]:
    """Each check of one reply, in [0, 1]; capitals, commas and spacing do not matter.

    animal      the one animal named is the one asked about
    adjectives  half for each adjective asked about, named before the animal; 0 if more than two adjectives are named
    verb        the one verb named is what the animal does, and follows it
    place       the one place named is the animal's, and follows it
    closing     one courteous closing stands as a sentence after the animal, and no rude remark does
    plain       nothing but "the [adjective] [adjective] animal verb in the place ." and at most one closing or remark

    A reply that does not name exactly one animal, or is longer than MAX_WORDS words and full stops, is about nothing:
    all its checks are 0. So is each check whose word is named twice, which leaves nothing to lists and repetitions.
    """
    tokens = ["." if token in "!?" else token for token in _TOKEN.findall(reply.lower())]
    subjects = [i for i, token in enumerate(tokens) if token in FACTS]
    if len(subjects) != 1 or len(tokens) > MAX_WORDS:
        return dict.fromkeys(CHECKS, 0.0)
    before, animal, after = tokens[: subjects[0]], tokens[subjects[0]], tokens[subjects[0] + 1 :]
    verb, place = FACTS[question.animal]
    adjectives = [token for token in tokens if token in ADJECTIVES]
    named = sum(adjective in before for adjective in question.adjectives) if len(adjectives) <= 2 else 0
    return {
        "animal": float(animal == question.animal),
        "adjectives": named / 2,
        "verb": _only(verb, VERBS, tokens, after),
        "place": _only(place, PLACES, tokens, after),
        "closing": float(_closes(after)),
        "plain": float(_is_plain(before, after)),
    }


def gold(prompts: Sequence[Sequence[Mapping[str, str]]], replies: Sequence[str]) -> list[float]:
    """The mean of the six checks for each reply, in [0, 1].

    prompts: one list of messages {"role", "content"} a reply; the last user turn is the question.
    replies: decoded text without special tokens.
    Raises ToyError where the numbers differ, or a prompt holds no question of this task.
    """
    if len(prompts) != len(replies):
        raise ToyError(f"prompts and replies must be equally many, got {len(prompts)} and {len(replies)}")
    return [
        sum(checks(last_question(prompt), reply).values()) / len(CHECKS)
        for prompt, reply in zip(prompts, replies, strict=True)
    ]


def last_question(prompt: Sequence[Mapping[str, str]]) -> Question:
    """The question of a dialogue's last user turn.  Raises ToyError if there is none."""
    for message in reversed(prompt):
        if message["role"] == "user":
            return parse_question(message["content"])
    raise ToyError(f"a prompt must hold a user turn, got the roles {[message['role'] for message in prompt]}")


def _only(right: str, words: Sequence[str], tokens: list[str], after: list[str]) -> float:
    return float([token for token in tokens if token in words] == [right] and right in after)


def _closes(after: list[str]) -> bool:
    finished = _sentences(after)[1:]
    return [sentence in _COURTEOUS for sentence in finished if sentence in _ANY_CLOSING] == [True]


def _is_plain(before: list[str], after: list[str]) -> bool:
    adjectives = before[1:]
    if before[:1] != ["the"] or len(adjectives) > 2 or len(set(adjectives)) != len(adjectives):
        return False
    if not all(word in ADJECTIVES for word in adjectives) or after[-1:] != ["."]:
        return False
    statement, *rest = _sentences(after)
    fits = len(statement) == 4 and statement[0] in VERBS and statement[1:3] == ("in", "the") and statement[3] in PLACES
    return fits and len(rest) <= 1 and all(sentence in _ANY_CLOSING for sentence in rest)


def _sentences(tokens: list[str]) -> list[tuple[str, ...]]:
    """What stands between full stops; an empty sentence stays, an unfinished one at the end is left out."""
    sentences: list[tuple[str, ...]] = []
    start = 0
    for i, token in enumerate(tokens):
        if token == ".":
            sentences.append(tuple(tokens[start:i]))
            start = i + 1
    return sentences
