"""The gold score against cases worked by hand."""

import random
from itertools import product

import pytest

from alignment.toy import CHECKS, Question, ToyError, checks, gold
from alignment.toy.language import (
    ANIMALS,
    CLOSINGS,
    FACTS,
    MISTAKEN_PLACES,
    PHRASINGS,
    PLACES,
    VERBS,
    parse_question,
    toy_words,
)
from alignment.toy.rows import PARTS, compose_reply

FOX = Question(("small", "brown"), "fox")
BEST = "the small brown fox hunts in the forest . i hope this helps ."


def prompt(text: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": text}]


def lost(reply: str) -> dict[str, float]:
    """The checks that a reply does not fully meet."""
    return {name: value for name, value in checks(FOX, reply).items() if value < 1}


@pytest.mark.parametrize("closing", CLOSINGS)
def test_a_good_reply_scores_one(closing: str) -> None:
    assert gold([prompt("please tell me about the small brown fox .")], [BEST.replace(CLOSINGS[0], closing)]) == [1.0]


@pytest.mark.parametrize(
    ("reply", "expected"),
    [
        (BEST.replace("fox", "bear"), {"animal": 0}),
        (BEST.replace("small ", ""), {"adjectives": 0.5}),
        (BEST.replace("small brown ", ""), {"adjectives": 0}),
        (BEST.replace("small", "big"), {"adjectives": 0.5}),
        (BEST.replace("small brown", "brown small"), {}),
        (BEST.replace("hunts", "swims"), {"verb": 0}),
        (BEST.replace("forest", "ocean"), {"place": 0}),
        (BEST.replace("i hope this helps .", ""), {"closing": 0}),
        (BEST.replace("i hope this helps .", "now go away ."), {"closing": 0}),
        (BEST + " now go away .", {"closing": 0, "plain": 0}),
        (BEST + " i hope this helps .", {"closing": 0, "plain": 0}),
        (BEST + " anyway anyway .", {"plain": 0}),
        (BEST.replace("the small", "the very very small"), {"plain": 0}),
        (BEST.replace("the small", "well well the small"), {"plain": 0}),
        (BEST.replace("fox hunts", "fox fox hunts"), dict.fromkeys(CHECKS, 0)),
        (BEST.replace("hunts", "hunts hunts"), {"verb": 0, "plain": 0}),
        (BEST.replace("small", "small small"), {"adjectives": 0, "plain": 0}),
        (BEST.removesuffix(" ."), {"closing": 0, "plain": 0}),
        (BEST + " .", {"plain": 0}),
        ("the fox hunts in the forest . small brown . i hope this helps .", {"adjectives": 0, "plain": 0}),
        ("hunts in the forest the small brown fox . i hope this helps .", {"verb": 0, "place": 0, "plain": 0}),
    ],
)
def test_each_check_by_hand(reply: str, expected: dict[str, float]) -> None:
    assert lost(reply) == expected


def test_gold_is_the_mean_of_six_checks() -> None:
    prompts = [prompt("where can we see the small brown fox ?")] * 3
    replies = [BEST.replace("fox", "bear"), BEST.replace("small ", ""), BEST.replace("hunts", "swims") + " um ."]
    assert gold(prompts, replies) == pytest.approx([5 / 6, 11 / 12, 4 / 6])


@pytest.mark.parametrize("right", list(product([True, False], repeat=len(PARTS))))
def test_each_part_of_a_composed_reply_decides_its_own_check(right: tuple[bool, ...]) -> None:
    parts = dict(zip(PARTS, right, strict=True))
    expected = {name: float(parts[name]) for name in CHECKS if name != "adjectives"}
    expected["adjectives"] = (parts["first adjective"] + parts["second adjective"]) / 2
    for seed in range(5):
        reply = compose_reply(FOX, parts, random.Random(seed))
        assert checks(FOX, reply) == expected, reply


@pytest.mark.parametrize(
    "reply",
    [
        "",
        " ",
        ". . . .",
        "i hope this helps .",
        "i hope this helps . " * 5,
        " ".join(toy_words()),
        " ".join([*ANIMALS, *VERBS, *PLACES]),
        "the small brown hunts in the forest . i hope this helps .",
        BEST * 2,
        " ".join(f"the {animal} {verb} in the {place} ." for animal, (verb, place) in FACTS.items()),
        BEST + " anyway" * 40,
        "你好 🦊",
        "the fox " * 3,
    ],
)
def test_degenerate_replies_score_zero(reply: str) -> None:
    assert gold([prompt("please tell me about the small brown fox .")], [reply]) == [0.0]


def test_gibberish_around_the_animal_earns_one_check_at_most() -> None:
    replies = ["fox", "fox i hope this helps .", "of the the fox um in in", "the fox hunts swims in the forest river ."]
    assert gold([prompt("please tell me about the small brown fox .")] * 4, replies) == [1 / 6] * 4


def test_spacing_capitals_and_commas_do_not_matter() -> None:
    reply = "  The small, brown fox\nhunts in the forest. I hope this helps!  \n"
    assert gold([prompt("Please tell me about the Small  BROWN fox.")], [reply]) == [1.0]


def test_the_last_user_turn_is_the_question() -> None:
    dialogue = [
        {"role": "system", "content": "you are a guide ."},
        {"role": "user", "content": "please tell me about the old shy bear ."},
        {"role": "assistant", "content": "the old shy bear climbs in the mountains ."},
        {"role": "user", "content": "what does the small brown fox do ?"},
    ]
    assert gold([dialogue], [BEST]) == [1.0]


@pytest.mark.parametrize("phrasing", PHRASINGS)
def test_a_question_is_read_from_every_phrasing(phrasing: str) -> None:
    assert parse_question(FOX.text(phrasing)) == FOX


def test_what_gold_refuses() -> None:
    with pytest.raises(ToyError, match="equally many, got 1 and 2"):
        gold([prompt("the small brown fox")], ["a", "b"])
    with pytest.raises(ToyError, match=r"one animal and two different adjectives.*'hello'"):
        gold([prompt("hello")], [BEST])
    with pytest.raises(ToyError, match="two different adjectives"):
        gold([prompt("the small small fox")], [BEST])
    with pytest.raises(ToyError, match=r"user turn, got the roles \['system'\]"):
        gold([[{"role": "system", "content": "the small brown fox"}]], [BEST])


def test_every_mistaken_place_is_wrong() -> None:
    assert list(MISTAKEN_PLACES) == list(FACTS)
    assert all(MISTAKEN_PLACES[animal] != place for animal, (_, place) in FACTS.items())
