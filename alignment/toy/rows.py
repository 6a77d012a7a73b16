"""Rows of the toy task: demonstrations of mixed quality, graded pairs, prompts.

Every row is a pure function of (n, seed, split), and the first rows of a longer draw are the rows of a shorter one.
Which questions are held out for evaluation is decided by a hash of what they ask, in no particular order or phrasing.
"""

import hashlib
import random
from collections.abc import Iterator
from functools import cache
from itertools import permutations
from typing import Any

from alignment.toy.language import (
    ADJECTIVES,
    AFTERTHOUGHTS,
    ANIMALS,
    CLOSINGS,
    FACTS,
    INNER_FILLER,
    MISTAKEN_PLACES,
    OPENING_FILLERS,
    PHRASINGS,
    REMARKS,
    TRAILING_FILLERS,
    VERBS,
    Question,
    ToyError,
)
from alignment.toy.scoring import CHECKS, checks

SPLITS = ("train", "eval")
EVAL_SHARE = 1 / 6
QUALITY = (0.35, 1.0)
"""A reply's quality is uniform in this range: the chance of each of its PARTS to be right."""
RARELY_RIGHT = {"place": 0.45, "closing": 0.45}
"""Factors on that chance. Even the best guides mostly give the mistaken place and no courteous closing, so that the
likeliest reply of a model that imitates them is wrong in both, and only preferences tell it so."""
RATINGS = (("significantly_better", 0.45), ("better", 0.3), ("slightly_better", 0.12), ("negligibly_better", 0.0))
"""Rating and the least gold difference it stands for. Differences are multiples of 1/12 and meet no cut point but 0."""
FLIP_RATE = 0.2
"""How often the annotator prefers the worse reply of a negligibly better pair."""

MOST = 10_000_000
"""Rows of a split, which are all made before the first is read."""

PARTS = ("animal", "first adjective", "second adjective", "verb", "place", "closing", "plain")


def demonstrations(n: int, seed: int, split: str) -> list[dict[str, str]]:
    """n rows {"prompt", "completion"}. The completions' mean gold score is about 0.55: imitating them is not enough."""
    return [
        {"prompt": prompt, "completion": draw_reply(question, rng)}
        for rng, question, prompt in _questions(n, "demonstrations", seed, split)
    ]


def pairs(n: int, seed: int, split: str) -> list[dict[str, str]]:
    """n rows {"prompt", "chosen", "rejected", "rating"}; the two replies of a pair differ, their gold may not."""
    return [_graded_pair(question, prompt, rng) for rng, question, prompt in _questions(n, "pairs", seed, split)]


def scored(n: int, seed: int, split: str) -> list[dict[str, Any]]:
    """n rows {"prompt", "completion", "score"}: the completion's gold score, in [0, 1]."""
    rows = []
    for rng, question, prompt in _questions(n, "scored", seed, split):
        reply = draw_reply(question, rng)
        rows.append({"prompt": prompt, "completion": reply, "score": _score(question, reply)})
    return rows


def stepwise(n: int, seed: int, split: str) -> list[dict[str, Any]]:
    """n rows {"prompt", "completions", "labels"}: a reply's sentences, each right where no check that it decides fails:
    the last the closing, where there is one, the first all others."""
    rows = []
    for rng, question, prompt in _questions(n, "steps", seed, split):
        reply = draw_reply(question, rng)
        found = checks(question, reply)
        closing = found.pop("closing") == 1
        statement, _, rest = reply.partition(" . ")
        steps, labels = [f"{statement.removesuffix(' .')} ."], [all(check == 1 for check in found.values())]
        if rest.strip():
            steps, labels = [*steps, rest.strip()], [*labels, closing]
        rows.append({"prompt": prompt, "completions": steps, "labels": labels})
    return rows


def prompts(n: int, seed: int, split: str) -> list[dict[str, str]]:
    """n rows {"prompt"}: all different for `eval` (ToyError if it has fewer than n), repeated in turn for `train`."""
    most = len(_prompts_of(split))
    if split == "eval" and n > most:
        raise ToyError(f"the eval split has {most} prompts, got n = {n}")
    return [{"prompt": prompt} for _, _, prompt in _questions(n, "prompts", seed, split)]


def rating_of(difference: float) -> str:
    """The annotator's rating of a pair whose chosen reply is better by `difference` of gold, >= 0."""
    return next(rating for rating, least in RATINGS if difference >= least)


def draw_reply(question: Question, rng: random.Random) -> str:
    """A reply whose parts are right independently of each other, given one draw of quality for them all."""
    quality = rng.uniform(*QUALITY)
    right = {part: rng.random() < quality * RARELY_RIGHT.get(part, 1.0) for part in PARTS}
    return compose_reply(question, right, rng)


def compose_reply(question: Question, right: dict[str, bool], rng: random.Random) -> str:
    """A reply with the named PARTS right and the others wrong in a way that leaves every other part as it is."""
    verb, place = FACTS[question.animal]
    words = [] if right["plain"] else [INNER_FILLER, INNER_FILLER]
    strangers = [adjective for adjective in ADJECTIVES if adjective not in question.adjectives]
    rng.shuffle(strangers)
    for adjective, part in zip(question.adjectives, PARTS[1:3], strict=True):
        if right[part]:
            words.append(adjective)
        elif rng.random() < 0.5:
            words.append(strangers.pop())
    words.append(question.animal if right["animal"] else _other(ANIMALS, question.animal, rng))
    words.append(verb if right["verb"] else _other(VERBS, verb, rng))
    words += ["in the", place if right["place"] else MISTAKEN_PLACES[question.animal]]
    closing = rng.choice(CLOSINGS) if right["closing"] else rng.choice(("", "", rng.choice(REMARKS)))
    statement = " ".join(["the", *words])
    if right["plain"]:
        return f"{statement} . {closing}".rstrip()
    return _ramble(statement, closing, rng)


def _ramble(statement: str, closing: str, rng: random.Random) -> str:
    """The statement, already wordy, with up to one more filler at each of three places."""
    opening = rng.choice(("", f"{rng.choice(OPENING_FILLERS)} "))
    trailing = rng.choice(("", f" {rng.choice(TRAILING_FILLERS)}"))
    afterthought = rng.choice(("", rng.choice(AFTERTHOUGHTS)))
    return " ".join(part for part in (f"{opening}{statement}{trailing} .", closing, afterthought) if part)


def _graded_pair(question: Question, prompt: str, rng: random.Random) -> dict[str, str]:
    first, second = draw_reply(question, rng), draw_reply(question, rng)
    while first == second:
        second = draw_reply(question, rng)
    difference = _score(question, first) - _score(question, second)
    chosen, rejected = (first, second) if difference >= 0 else (second, first)
    rating = rating_of(abs(difference))
    if rating == "negligibly_better" and rng.random() < FLIP_RATE:
        chosen, rejected = rejected, chosen
    return {"prompt": prompt, "chosen": chosen, "rejected": rejected, "rating": rating}


def _score(question: Question, reply: str) -> float:
    return sum(checks(question, reply).values()) / len(CHECKS)


def _other(words: tuple[str, ...], right: str, rng: random.Random) -> str:
    return rng.choice([word for word in words if word != right])


def _questions(n: int, kind: str, seed: int, split: str) -> Iterator[tuple[random.Random, Question, str]]:
    """n questions: all of the split's prompts in a random order, then all again in another."""
    if n < 0:
        raise ToyError(f"n must be >= 0, got {n}")
    if n > MOST:
        raise ToyError(f"the toy task makes at most {MOST:,} rows of a split")
    order = random.Random(f"{kind} order {split} {seed}")
    rng = random.Random(f"{kind} replies {split} {seed}")
    deck: list[tuple[Question, str]] = []
    for _ in range(n):
        if not deck:
            deck = list(_prompts_of(split))
            order.shuffle(deck)
        yield rng, *deck.pop()


@cache
def _prompts_of(split: str) -> tuple[tuple[Question, str], ...]:
    if split not in SPLITS:
        raise ToyError(f"split must be one of {', '.join(SPLITS)}, got {split!r}")
    questions = (Question(pair, animal) for animal in ANIMALS for pair in permutations(ADJECTIVES, 2))
    return tuple(
        (question, question.text(phrasing))
        for question in questions
        if _is_held_out(question) == (split == "eval")
        for phrasing in PHRASINGS
    )


def _is_held_out(question: Question) -> bool:
    content = " ".join((*sorted(question.adjectives), question.animal))
    return int.from_bytes(hashlib.sha256(content.encode()).digest()[:8], "big") < EVAL_SHARE * 2**64
