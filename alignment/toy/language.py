"""The words, facts and phrasings of the toy task: visitors of a zoo ask its guide about an animal.

A question names one animal and two adjectives. A good reply names all three, the animal's true deed and true place, and
closes courteously:

    please tell me about the small brown fox .
    the small brown fox hunts in the forest . i hope this helps .
"""

from dataclasses import dataclass

FACTS: dict[str, tuple[str, str]] = {
    "fox": ("hunts", "forest"),
    "bear": ("climbs", "mountains"),
    "wolf": ("runs", "snow"),
    "rabbit": ("hides", "meadow"),
    "otter": ("swims", "river"),
    "whale": ("sings", "ocean"),
    "camel": ("rests", "desert"),
    "monkey": ("plays", "jungle"),
    "bat": ("sleeps", "cave"),
    "frog": ("jumps", "swamp"),
    "mole": ("digs", "garden"),
    "horse": ("sleeps", "barn"),
    "tiger": ("hunts", "jungle"),
    "goat": ("jumps", "mountains"),
    "seal": ("dances", "snow"),
    "deer": ("runs", "forest"),
    "duck": ("swims", "swamp"),
    "dolphin": ("dances", "ocean"),
    "lizard": ("hides", "desert"),
    "parrot": ("sings", "garden"),
    "spider": ("climbs", "cave"),
    "beaver": ("digs", "river"),
    "mouse": ("plays", "barn"),
    "lamb": ("rests", "meadow"),
}
"""Animal -> (what it does, where)."""

ANIMALS = tuple(FACTS)
VERBS = tuple(sorted({verb for verb, _ in FACTS.values()}))
PLACES = tuple(sorted({place for _, place in FACTS.values()}))
ADJECTIVES = ("small", "brown", "big", "gray", "young", "old", "quiet", "happy", "clever", "shy", "spotted", "hungry")
MISTAKEN_PLACES = dict(zip(ANIMALS, [FACTS[animal][1] for animal in (*ANIMALS[1:], ANIMALS[0])], strict=True))
"""Where most guides wrongly believe each animal to be: imitation repeats it, even without sampling."""

PHRASINGS = (
    "please tell me about the {} {} {} .",
    "what does the {} {} {} do ?",
    "i would like to know about the {} {} {} .",
    "where can we see the {} {} {} ?",
)
CLOSINGS = ("i hope this helps .", "thank you for asking .", "have a lovely day .", "enjoy your visit .")
REMARKS = ("now go away .", "stop asking me .", "you should know that .")
"""Closings that are not courteous."""

OPENING_FILLERS = ("well well", "so so", "um um um")
INNER_FILLER = "very"
TRAILING_FILLERS = ("and so on and so on", "or so they say they say")
AFTERTHOUGHTS = ("anyway anyway .", "and that is that is that .")
"""Rambling: before the statement, before its adjective, at its end, after the closing."""


class ToyError(ValueError):
    """Something was asked of the toy task that it does not hold; the message names it."""


@dataclass(frozen=True, slots=True)
class Question:
    """What a prompt asks about."""

    adjectives: tuple[str, str]
    animal: str

    def text(self, phrasing: str) -> str:
        return phrasing.format(*self.adjectives, self.animal)


def parse_question(text: str) -> Question:
    """The question in a prompt, whatever its phrasing, spacing or capitals.

    Raises ToyError unless the text names exactly one animal and two different adjectives.
    """
    words = text.lower().replace(".", " ").replace("?", " ").replace(",", " ").split()
    animals = [word for word in words if word in FACTS]
    adjectives = [word for word in words if word in ADJECTIVES]
    if len(animals) != 1 or len(adjectives) != 2 or adjectives[0] == adjectives[1]:
        raise ToyError(
            f"a prompt must name one animal and two different adjectives that the toy task knows, got {text!r}"
        )
    return Question((adjectives[0], adjectives[1]), animals[0])


def toy_words() -> tuple[str, ...]:
    """Every word and punctuation mark that a prompt or a generated reply may hold, sorted."""
    phrases = (*PHRASINGS, *CLOSINGS, *REMARKS, *OPENING_FILLERS, *TRAILING_FILLERS, *AFTERTHOUGHTS)
    words = {word for phrase in phrases for word in phrase.split() if word != "{}"}
    return tuple(sorted(words | {*ANIMALS, *VERBS, *PLACES, *ADJECTIVES, INNER_FILLER, "the", "in"}))
