import copy
import math
import re
from typing import Any

import pytest

from alignment.config.data import ExampleKind, Format, Learn, Template
from alignment.data.formats import parse
from alignment.data.records import DataError, GradeError, Record, Source

AT = Source("rows.jsonl", 9)


def user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def assistant(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}


def system(text: str) -> dict[str, str]:
    return {"role": "system", "content": text}


def human(text: str) -> dict[str, str]:
    return {"from": "human", "value": text}


def gpt(text: str) -> dict[str, str]:
    return {"from": "gpt", "value": text}


def record(row: dict[str, Any], format: str, need: str, **how: Any) -> Record:
    return parse(row, AT, Format(format), ExampleKind(need), lambda row, source: 1.5, **how)


Q, Q2 = user("q"), user("q2")
DIALOGUE = [Q, assistant("a"), Q2]
HH = "\n\nHuman: q\n\nAssistant:  a\n\nHuman: q2\n\nAssistant: "

DEMONSTRATIONS = {
    "native": ("native", {"prompt": "q", "completion": " a "}, [Q], " a "),
    "native, turns": ("native", {"prompt": DIALOGUE, "completion": [assistant("b")]}, DIALOGUE, "b"),
    "native, a pair": ("native", {"prompt": "q", "chosen": "a", "rejected": " "}, [Q], "a"),
    "toy": ("toy", {"prompt": "q", "completion": "a"}, [Q], "a"),
    "hh": ("hh", {"chosen": HH + "b"}, DIALOGUE, "b"),
    "alpaca": ("alpaca", {"instruction": "q", "input": "", "output": "a"}, [Q], "a"),
    "alpaca, input": ("alpaca", {"instruction": "q", "input": "x", "output": "a"}, [user("q\n\nx")], "a"),
    "alpaca, before": (
        "alpaca",
        {"instruction": "q2", "output": "b", "system": "s", "history": [["q", "a"]]},
        [system("s"), *DIALOGUE],
        "b",
    ),
    "sharegpt": ("sharegpt", {"conversations": [human("q"), gpt("a"), human("q2"), gpt("b")]}, DIALOGUE, "b"),
    "sharegpt, system": ("sharegpt", {"system": "s", "conversations": [human("q"), gpt("a")]}, [system("s"), Q], "a"),
    "sharegpt, no system": ("sharegpt", {"system": "", "conversations": [human("q"), gpt("a")]}, [Q], "a"),
    "messages": ("messages", {"messages": [system("s"), Q, assistant("a")]}, [system("s"), Q], "a"),
    "messages, label": ("messages", {"messages": [Q, assistant("a")], "label": True}, [Q], "a"),
}


@pytest.mark.parametrize("name", DEMONSTRATIONS)
def test_a_demonstration(name: str) -> None:
    format, row, prompt, reply = DEMONSTRATIONS[name]
    assert record(row, format, "demonstrations", learn=Learn.last) == Record(prompt, ([assistant(reply)],), None, AT)
    assert record(row, format, "prompts") == Record(prompt, (), None, AT)


PAIRS = {
    "native": ("native", {"prompt": "q", "chosen": "a", "rejected": "b"}, [Q]),
    "native, turns": ("native", {"prompt": [Q], "chosen": [assistant("a")], "rejected": [assistant("b")]}, [Q]),
    "native, dialogues": ("native", {"chosen": [Q, assistant("a")], "rejected": [Q, assistant("b")]}, [Q]),
    "native, both": ("native", {"prompt": "q", "chosen": [Q, assistant("a")], "rejected": [Q, assistant("b")]}, [Q]),
    "native, in {from, value}": ("native", {"prompt": [human("q")], "chosen": [gpt("a")], "rejected": "b"}, [Q]),
    "native, null": ("native", {"prompt": "q", "completion": None, "chosen": "a", "rejected": "b"}, [Q]),
    "hh": ("hh", {"chosen": HH + "a", "rejected": HH + "b\n"}, DIALOGUE),
    "alpaca": ("alpaca", {"instruction": "q", "chosen": "a", "rejected": "b"}, [Q]),
    "sharegpt": ("sharegpt", {"conversations": [human("q")], "chosen": gpt("a"), "rejected": gpt("b")}, [Q]),
    "messages": ("messages", {"messages": DIALOGUE, "chosen": assistant("a"), "rejected": "b"}, DIALOGUE),
}


@pytest.mark.parametrize("name", PAIRS)
def test_a_pair(name: str) -> None:
    format, row, prompt = PAIRS[name]
    before = copy.deepcopy(row)
    assert record(row, format, "pairs") == Record(prompt, ([assistant("a")], [assistant("b")]), 1.5, AT)
    assert record(row, format, "demonstrations", learn=Learn.last) == Record(prompt, ([assistant("a")],), None, AT)
    assert record(row, format, "prompts") == Record(prompt, (), None, AT)
    assert row == before


LABELED = {
    "native": ("native", {"prompt": "q", "completion": "a"}, [Q]),
    "native, turns": ("native", {"prompt": DIALOGUE, "completion": [assistant("a")]}, DIALOGUE),
    "alpaca": ("alpaca", {"instruction": "q", "output": "a"}, [Q]),
    "sharegpt": ("sharegpt", {"conversations": [human("q"), gpt("c"), human("q2"), gpt("a")]}, None),
    "messages": ("messages", {"messages": [Q, assistant("a")]}, [Q]),
}
SAID = {True: (True, 1, 1.0, "true", "True", "1", "yes"), False: (False, 0, 0.0, "false", "False", "0", "no")}


@pytest.mark.parametrize("name", LABELED)
def test_a_reply_with_a_label_however_that_is_written(name: str) -> None:
    """Earlier turns of the assistant are context, as they are of a pair."""
    format, row, prompt = LABELED[name]
    prompt = [Q, assistant("c"), Q2] if prompt is None else prompt
    for label, words in SAID.items():
        for word in words:
            found = record({**row, "label": word}, format, "labeled")
            assert found == Record(prompt, ([assistant("a")],), None, AT, labels=(label,))
            assert found.unpaired() == [found]


@pytest.mark.parametrize("name", PAIRS)
def test_a_pair_is_two_replies_with_a_label(name: str) -> None:
    format, row, prompt = PAIRS[name]
    good, bad = record(row, format, "labeled").unpaired()
    assert good == Record(prompt, ([assistant("a")],), None, AT, labels=(True,))
    assert bad == Record(prompt, ([assistant("b")],), None, AT, labels=(False,))


@pytest.mark.parametrize(
    ("label", "what"),
    [
        ({}, "field `label` is missing: whether the completion is desirable"),
        ({"label": "good"}, "label must be one of true, yes, 1, 1.0, false, no, 0, 0.0, got 'good'"),
        ({"label": 2}, "label must be one of"),
    ],
)
def test_a_label_that_is_missing_or_no_label(label: dict[str, Any], what: str) -> None:
    with pytest.raises(DataError, match=f"^{AT}: {what}"):
        record({"prompt": "q", "completion": "a", **label}, "native", "labeled")


def test_a_row_that_is_neither_labeled_nor_a_pair_is_told_what_it_lacks() -> None:
    row = {"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}], "label": True}
    with pytest.raises(
        DataError,
        match=r"neither a `completion` with its `label` nor the `chosen` reply of a pair \(data=messages: `messages`\)",
    ):
        record(row, "native", "labeled")
    assert record(row, "messages", "labeled").labels == (True,)


@pytest.mark.parametrize("name", PAIRS)
def test_a_chosen_reply_as_a_demonstration_teaches_all_that_is_no_prompt(name: str) -> None:
    """Of a whole dialogue every turn of the assistant; beside a prompt, or the dialogue that was, the reply alone."""
    format, row, prompt = PAIRS[name]
    first = 1 if name == "hh" else len(prompt)
    dialogue = [*prompt, assistant("a")]
    assert record(row, format, "demonstrations") == Record(prompt[:first], (dialogue[first:],), None, AT)
    whole = {"chosen": [*DIALOGUE, assistant("a")], "rejected": [*DIALOGUE, assistant("b")]}
    every = Record([Q], ([assistant("a"), Q2, assistant("a")],), None, AT)
    assert record(whole, "native", "demonstrations") == every
    assert record({"prompt": DIALOGUE, **whole}, "native", "demonstrations").prompt == DIALOGUE


def test_a_plain_text_has_no_prompt() -> None:
    text = Record([], ([assistant(" once\n")],), None, AT, template=Template.none)
    assert record({"text": " once\n"}, "text", "demonstrations") == text
    for row, message in (({"prompt": "a"}, "field `text` is missing"), ({"text": " \n"}, "text: it is empty")):
        with pytest.raises(DataError, match=f"^{AT}: {message}"):
            record(row, "text", "demonstrations")


PROMPTS = {
    "native": ("native", {"prompt": "q"}, [Q]),
    "native, turns": ("native", {"prompt": DIALOGUE}, DIALOGUE),
    "sharegpt": ("sharegpt", {"conversations": [human("q"), gpt("a"), human("q2")]}, DIALOGUE),
    "messages": ("messages", {"messages": DIALOGUE}, DIALOGUE),
    "alpaca": ("alpaca", {"instruction": "q", "input": "  "}, [Q]),
    "replies do not matter": ("native", {"prompt": "q", "chosen": "", "rejected": ""}, [Q]),
}


@pytest.mark.parametrize("name", PROMPTS)
def test_a_prompt(name: str) -> None:
    format, row, prompt = PROMPTS[name]
    assert record(row, format, "prompts") == Record(prompt, (), None, AT)


def test_the_margin_is_asked_of_the_row_and_its_place() -> None:
    row = {"prompt": "q", "chosen": "a", "rejected": "b", "rating": "better"}
    asked = []
    parse(row, AT, Format.native, ExampleKind.pairs, lambda *seen: asked.append(seen))
    assert asked == [(row, AT)]


QUESTION = "a reply must follow a user's or a tool's turn, and turn"
BAD = [
    ("native", "pairs", {"prompt": "q", "completion": "a"}, "field `chosen` is missing: a pair needs "),
    (
        "native",
        "pairs",
        {"question": "q", "better": "a"},
        "field `chosen` is missing: a pair needs `chosen` and `rejected`; the row has `question`, `better`",
    ),
    ("native", "pairs", {"prompt": "q", "chosen": "a"}, "field `rejected` is missing: a pair needs "),
    ("native", "pairs", {"prompt": "q", "chosen": "a", "rejected": None}, "field `rejected` is missing: "),
    ("native", "pairs", {"chosen": "a", "rejected": "b"}, "field `prompt` is missing"),
    ("native", "pairs", {"prompt": "q", "chosen": "a", "rejected": " \n"}, "rejected: the reply is empty"),
    ("native", "pairs", {"prompt": "q", "chosen": "a", "rejected": " a\n"}, "chosen and rejected are the same reply"),
    (
        "native",
        "pairs",
        {"prompt": "q", "chosen": 3, "rejected": "a"},
        "field `chosen` must be text or a list of turns, {role, content}, got 3",
    ),
    ("native", "pairs", {"prompt": " ", "chosen": "a", "rejected": "b"}, "chosen: turn 1 is empty"),
    (
        "native",
        "pairs",
        {"chosen": [*DIALOGUE, assistant("a")], "rejected": [Q, assistant("x"), Q2, assistant("b")]},
        "chosen and rejected answer different prompts: turn 2 differs",
    ),
    (
        "native",
        "pairs",
        {"chosen": [*DIALOGUE, assistant("a")], "rejected": [Q, assistant("b")]},
        "chosen and rejected answer different prompts: turn 2 differs",
    ),
    ("native", "demonstrations", {"prompt": "q"}, "there is no reply: "),
    ("native", "demonstrations", {"prompt": "q", "completion": ""}, "completion: the reply is empty"),
    ("native", "demonstrations", {"prompt": "q", "completion": []}, "completion: the dialogue must end with the as"),
    ("native", "demonstrations", {"completion": [assistant("a")]}, "completion: there is no turn to reply to"),
    ("native", "prompts", {"completion": "a"}, "field `prompt` is missing"),
    ("native", "prompts", {"text": "a"}, "there is no prompt: the row has none of the fields of its format"),
    ("native", "prompts", {"prompt": []}, "prompt: there is no turn to reply to"),
    ("native", "prompts", {"prompt": [system("s")]}, f"prompt: {QUESTION} 1 is neither"),
    ("native", "prompts", {"prompt": [Q, assistant("a")]}, f"prompt: {QUESTION} 2 is neither"),
    ("native", "prompts", {"prompt": [Q, assistant(" "), Q2]}, "prompt: turn 2 is empty"),
    ("native", "prompts", {"prompt": [{"role": 3, "content": "x"}]}, "prompt[0]: the role must be text, got 3"),
    ("native", "prompts", {"prompt": [Q, {"role": "assistant"}]}, "prompt[1]: the content must be text, got NoneType"),
    (
        "native",
        "prompts",
        {"prompt": ["q"]},
        "field `prompt` must be text or a list of turns, {role, content}, got ['q']",
    ),
    ("hh", "pairs", {"chosen": HH + "a"}, "field `rejected` is missing: "),
    ("hh", "pairs", {"chosen": HH, "rejected": HH + "b"}, "chosen: the reply is empty"),
    ("hh", "pairs", {"chosen": "hi", "rejected": HH}, r"field `chosen` must begin with \n\nHuman:, got 'hi'"),
    ("hh", "pairs", {"chosen": "x" + HH, "rejected": HH}, r"field `chosen` must begin with \n\nHuman:, got 'x\n"),
    (
        "hh",
        "pairs",
        {"chosen": HH + "a\n\nHuman: c", "rejected": HH + "b"},
        "chosen: the dialogue must end with the as",
    ),
    (
        "hh",
        "pairs",
        {"chosen": HH + "a", "rejected": HH + "b\n\nAssistant: c"},
        "rejected: roles out of order: a transcript must be Human, Assistant, Human, ..., got Human, Assistant",
    ),
    ("alpaca", "demonstrations", {"input": "x", "output": "a"}, "field `instruction` is missing"),
    ("alpaca", "demonstrations", {"instruction": "", "input": "", "output": "a"}, "completion: turn 1 is empty"),
    ("alpaca", "prompts", {"instruction": "q", "history": [["q"]]}, "field `history` must be a list of [instruction, "),
    ("alpaca", "prompts", {"instruction": "q", "history": "x"}, "field `history` must be a list of [instruction, "),
    ("sharegpt", "demonstrations", {"messages": [Q, assistant("a")]}, "field `conversations` is missing"),
    ("sharegpt", "demonstrations", {"conversations": [human("q")]}, "there is no reply: "),
    ("sharegpt", "pairs", {"conversations": [human("q"), gpt("a")]}, "field `chosen` is missing: "),
    (
        "sharegpt",
        "pairs",
        {"conversations": [human("q"), gpt("a")], "chosen": gpt("b"), "rejected": gpt("c")},
        f"chosen: {QUESTION} 2 is neither",
    ),
    (
        "sharegpt",
        "pairs",
        {"conversations": [human("q")], "chosen": {"from": "observation", "value": "x"}, "rejected": gpt("a")},
        "chosen: the dialogue must end with the assistant's reply",
    ),
    ("messages", "demonstrations", {"messages": []}, "field `messages` is empty"),
    ("messages", "demonstrations", {"messages": [Q, assistant("a")], "label": False}, "label is false: "),
]


@pytest.mark.parametrize(("format", "need", "row", "what"), BAD)
def test_a_bad_row(format: str, need: str, row: dict[str, Any], what: str) -> None:
    with pytest.raises(DataError) as caught:
        record(row, format, need)
    assert str(caught.value).startswith(f"rows.jsonl:9: {what}")


@pytest.mark.parametrize(("tags", "found"), [("safety", ("safety",)), (["a", "safety"], ("a", "safety")), (None, ())])
@pytest.mark.parametrize("format", ["native", "alpaca"])
def test_a_prompt_keeps_its_tags(format: str, tags: Any, found: tuple[str, ...]) -> None:
    row = {"prompt": "q", "instruction": "q", "tags": tags}
    assert record(row, format, "prompts") == Record([Q], (), None, AT, found)


@pytest.mark.parametrize("tags", [True, {"safety": 1}, ["safety", 3]])
def test_tags_that_are_no_texts(tags: Any) -> None:
    with pytest.raises(DataError, match=r"^rows\.jsonl:9: field `tags` must be text or a list of texts, got "):
        record({"prompt": "q", "tags": tags}, "native", "prompts")


LABELS = {True: [True, 1, 1.0, "True", "true", "1", "1.0", "yes", "YES "], False: [False, 0, 0.0, -0.0]}
LABELS[False] += ["False", "false", "0", "0.0", "no", "NO"]


@pytest.mark.parametrize(("truth", "label"), [(truth, label) for truth, labels in LABELS.items() for label in labels])
def test_a_label_is_read_however_it_is_written(truth: bool, label: Any) -> None:
    row = {"prompt": "q", "completion": "a", "label": label}
    if truth:
        assert record(row, "native", "demonstrations") == Record([Q], ([assistant("a")],), None, AT)
    else:
        with pytest.raises(DataError, match=r"^rows\.jsonl:9: label is false: an undesirable reply"):
            record(row, "native", "demonstrations")


def test_a_label_that_is_neither_is_a_bad_row_and_a_null_is_none() -> None:
    for label in (2, -1, 0.5, math.nan, "", "good", [], {}, [True]):
        with pytest.raises(DataError, match=r"^rows\.jsonl:9: label must be one of true, yes, 1, 1\.0, false, "):
            record({"prompt": "q", "completion": "a", "label": label}, "native", "demonstrations")
    row = {"prompt": "q", "completion": "a", "label": None}
    assert record(row, "native", "demonstrations") == Record([Q], ([assistant("a")],), None, AT)


PAIR = {"prompt": "q", "chosen": "a", "rejected": "b"}


def test_a_score_is_a_weighted_sum_of_columns() -> None:
    row = {"prompt": "q", "completion": "a", "score": 3, "helpfulness": 4, "verbosity": 2.5}
    assert record(row, "native", "scored").labels == (3.0,)
    found = record(row, "native", "scored", scores={"helpfulness": 0.5, "verbosity": -0.2})
    assert found.labels == (pytest.approx(1.5),)
    assert record({"messages": [Q, assistant("a")], "score": 1}, "messages", "scored").completions == (
        [assistant("a")],
    )


@pytest.mark.parametrize("score", [None, "3", True, math.nan, math.inf, [3]])
def test_a_score_that_is_none_is_never_skipped(score: Any) -> None:
    with pytest.raises(GradeError, match=r"^rows.jsonl:9: (a score was asked for|score must be a finite number)"):
        record({"prompt": "q", "completion": "a", "score": score}, "native", "scored")


@pytest.mark.parametrize("scores", [{}, {"score": 2.0, "other": -2.0}])
def test_a_score_is_one_that_a_reward_can_be(scores: dict[str, float]) -> None:
    row = {"prompt": "q", "completion": "a", "score": 1e308, "other": 1e308}
    with pytest.raises(GradeError, match=r"^rows.jsonl:9: a score must be between -.* and .*, got (1e\+308|nan)"):
        record(row, "native", "scored", scores=scores)


def test_a_score_is_of_one_reply() -> None:
    with pytest.raises(DataError, match="the row has no single reply"):
        record({"prompt": "q", "chosen": "a", "rejected": "b", "score": 1}, "native", "scored")


def test_a_reply_of_steps_is_one_text_whose_steps_end_where_it_says() -> None:
    row = {"prompt": "q", "completions": [" one", "two ", "three\n"], "labels": [True, "no", 1.0], "weight": 2}
    found = record(row, "native", "steps", separator="\n\n")
    text = "one\n\ntwo \n\nthree"
    assert found == Record(
        [Q], ([assistant(text)],), None, AT, labels=(True, False, True), steps=(5, 11, 18), weight=2.0
    )
    assert [text[:end] for end in found.steps] == ["one\n\n", "one\n\ntwo \n\n", text]


@pytest.mark.parametrize(
    ("row", "what"),
    [
        ({"labels": [True]}, "field `completions` is missing: a reply is `completions`, its steps, and `labels`"),
        ({"completions": ["a"]}, "field `labels` is missing: a reply is"),
        ({"completions": "a", "labels": [True]}, "field `completions` must be a list of texts"),
        ({"completions": [], "labels": []}, "field `completions` must be a list of texts"),
        ({"completions": ["a", " "], "labels": [True, True]}, "completions[1] is blank: a step must have a text"),
        ({"completions": ["a", "b"], "labels": [True]}, "field `labels` must be a list, one for each of the 2 steps"),
        ({"completions": ["a", "b"], "labels": [True, None]}, "labels[1] must be one of true, yes"),
    ],
)
def test_steps_that_are_none_are_told(row: dict[str, Any], what: str) -> None:
    with pytest.raises(DataError, match=f"^rows.jsonl:9: {re.escape(what)}"):
        record({"prompt": "q", **row}, "native", "steps")


@pytest.mark.parametrize("need", ["pairs", "labeled"])
@pytest.mark.parametrize("key", ["chosen", "rejected"])
def test_a_reply_of_a_pair_has_a_turn_that_is_learned(key: str, need: str) -> None:
    """Its log-prob would be 0, whatever the model."""
    unlearned = {"role": "assistant", "content": "c", "weight": 0}
    with pytest.raises(DataError, match=f"^rows.jsonl:9: {key}: every assistant's turn has weight 0: no reply is left"):
        record({**PAIR, key: [unlearned]}, "native", need)
    asked = [unlearned, {"role": "user", "content": "so?"}, assistant("d")]
    assert record({**PAIR, key: asked}, "native", need).completions[key == "rejected"] == asked


@pytest.mark.parametrize(
    ("key", "value", "place"),
    [
        (
            "reasoning_content",
            "so",
            'the assistant\'s turn, {"role": "assistant", "content": ..., "reasoning_content": ',
        ),
        ("tool_calls", [{"name": "f"}], 'the assistant\'s turn, {"role": "assistant", "content": ..., "tool_calls": '),
        ("documents", [{"text": "d"}], '"chat_template_kwargs": {"documents": ...}; if it is not meant for the templ'),
    ],
)
def test_what_goes_into_a_turn_is_not_left_out_beside_it(key: str, value: object, place: str) -> None:
    told = f"^rows.jsonl:9: field `{key}` would be left out, for it goes into {re.escape(place)}"
    for row, format, need in (
        ({"prompt": "q", "completion": "a"}, "native", "demonstrations"),
        (PAIR, "native", "pairs"),
        ({"messages": [Q, assistant("a")]}, "messages", "demonstrations"),
    ):
        with pytest.raises(DataError, match=told):
            record({**row, key: value}, format, need)
        assert record({**row, key: type(value)()}, format, need)
        assert record({**row, "id": 3, "reasoning": value, "source": "web"}, format, need)
    if key == "documents":
        with pytest.raises(DataError, match=told):
            record({"prompt": "q", key: value}, "native", "prompts")
    else:  # a reply's, and there is none to learn from
        assert record({"prompt": "q", "completion": "a", key: value}, "native", "prompts").completions == ()


@pytest.mark.parametrize(
    ("said", "weight"),
    [
        ({"train": False}, 0),
        ({"train": True}, 1),
        ({"train": "no"}, 0),
        ({"train": None}, None),
        ({"train": True, "weight": 0}, 0),
        ({"train": False, "weight": 1}, 0),
    ],
)
def test_a_turn_says_in_either_name_whether_it_is_learned(said: dict[str, Any], weight: int | None) -> None:
    turns = [{**human("q"), "train": False}, {**gpt("a"), **said}, human("q2"), gpt("b")]
    found = record({"conversations": turns}, "sharegpt", "demonstrations")
    first = next(turn for turn in (*found.prompt, *found.completions[0]) if turn["content"] == "a")
    assert first == assistant("a") | ({} if weight is None else {"weight": weight})
    assert len(found.completions[0]) == (1 if weight == 0 else 3)  # from the first turn that is learned on


def test_a_call_says_it_too_and_another_s_turn_cannot_be_learned() -> None:
    call = {"from": "function_call", "value": '{"name": "w", "arguments": {}}', "train": False}
    turns = [human("q"), call, {"from": "observation", "value": "sun"}, gpt("a")]
    found = record({"conversations": turns}, "sharegpt", "demonstrations")
    assert (found.prompt[1]["weight"], found.completions) == (0, ([assistant("a")],))
    with pytest.raises(
        DataError, match=r"^rows.jsonl:9: conversations\[0\]: train is true, but of all turns the assist"
    ):
        record({"conversations": [{**human("q"), "train": True}, gpt("a")]}, "sharegpt", "demonstrations")


@pytest.mark.parametrize(("weight", "read"), [(2, 2.0), (0.25, 0.25), (None, 1.0)])
def test_a_row_may_say_what_it_counts(weight: float | None, read: float) -> None:
    assert record({**PAIR, "weight": weight}, "native", "pairs").weight == read
    turns = {"conversations": [human("q")], "chosen": gpt("a"), "rejected": gpt("b"), "weight": weight}
    assert record(turns, "sharegpt", "pairs").weight == read
    for row, format in (({"prompt": "q", "completion": "a"}, "native"), ({"text": "a"}, "text"), (PAIR, "native")):
        assert record({**row, "weight": weight}, format, "demonstrations").weight == read


@pytest.mark.parametrize("weight", [0, -1, "2", True, float("nan"), float("inf"), 1e7, 1e-7, [1]])
def test_a_weight_that_is_none_is_refused(weight: object) -> None:
    with pytest.raises(DataError, match=r"^rows.jsonl:9: field `weight`, .* must be a number in \[1e-06, 1e\+06\]"):
        record({**PAIR, "weight": weight}, "native", "pairs")


def test_a_prompt_alone_has_no_weight() -> None:
    assert record({"prompt": "q", "weight": "12 kg"}, "native", "prompts").weight == 1.0


@pytest.mark.parametrize("name", ["add_generation_prompt", "chat_template", "tokenize", "tools", "truncation"])
def test_what_the_run_itself_tells_the_template_is_not_a_row_s_to_say(name: str) -> None:
    row: dict[str, Any] = {**PAIR, "chat_template_kwargs": {name: True, "enable_thinking": True}}
    with pytest.raises(DataError, match=rf"^rows.jsonl:9: chat_template_kwargs.{name} is the run's to say, got True"):
        record(row, "native", "pairs")
    row["chat_template_kwargs"] |= {name: None}  # as a table has it whose other rows give that key
    assert record(row, "native", "pairs").template_kwargs == {"enable_thinking": True}


def test_a_turn_s_own_role_and_content_stand_before_others_names_for_them() -> None:
    """A table of rows of both kinds has nulls for the fields of the other."""
    turns = [
        {"role": "user", "content": "q", "from": None, "value": None},
        {"role": "assistant", "content": "a", "from": "web", "value": "other"},
    ]
    found = record({"conversations": turns}, "sharegpt", "demonstrations")
    assert [turn["content"] for turn in (*found.prompt, *found.completions[0])] == ["q", "a"]
    assert [turn["role"] for turn in (*found.prompt, *found.completions[0])] == ["user", "assistant"]
    nulls = [{**turn, "role": None, "content": None} for turn in (human("q"), gpt("a"))]
    assert record({"conversations": nulls}, "sharegpt", "demonstrations").completions == ([assistant("a")],)
