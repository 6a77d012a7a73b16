"""A scoring function of the user's: what it may return, and how its mistakes are told."""

import random
import sys
from collections.abc import Callable
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from alignment.config.errors import ConfigError
from alignment.generation.function import FunctionScorer, Theirs, load_function
from alignment.generation.samples import Samples

SamplesOf = Callable[[list[list[str]]], Samples]


def test_function_sees_each_reply_with_its_prompt(samples_of: SamplesOf) -> None:
    def function(prompts: list[list[dict[str, str]]], replies: list[str]) -> list[float]:
        return [
            10.0 * int(prompt[-1]["content"][-1]) + len(text) for prompt, text in zip(prompts, replies, strict=True)
        ]

    scores = FunctionScorer(function).score(samples_of([["a", "bb"], ["ccc", "dddd"]]))
    assert scores.tolist() == [[1.0, 2.0], [13.0, 14.0]]
    assert scores.dtype == torch.float32


@pytest.mark.parametrize("count", [0, 3, 8])
def test_function_must_score_each_reply(samples_of: SamplesOf, count: int) -> None:
    scorer = FunctionScorer(lambda prompts, replies: [0.0] * count)
    with pytest.raises(ConfigError, match=rf"reward\.function must give 4 replies a score each, got {count}"):
        scorer.score(samples_of([["a", "b"], ["c", "d"]]))


@pytest.mark.parametrize(
    "answer",
    [
        [1, 0, 1, 0],
        (1.0, 0.0, 1.0, 0.0),
        [True, False, True, False],
        np.array([1, 0, 1, 0]),
        np.array([True, False, True, False]),
        torch.tensor([1.0, 0.0, 1.0, 0.0], dtype=torch.bfloat16, requires_grad=True),
        [np.float32(1), np.int64(0), np.bool_(True), torch.tensor(0.0)],
    ],
    ids=["ints", "tuple", "bools", "array", "array of bools", "tensor", "numbers of others"],
)
def test_numbers_of_every_kind(samples_of: SamplesOf, answer: Any) -> None:
    scorer = FunctionScorer(lambda prompts, replies: answer)
    assert scorer.score(samples_of([["a", "b"], ["c", "d"]])).tolist() == [[1.0, 0.0], [1.0, 0.0]]
    assert [type(each) for each in scorer.answers(samples_of([["a", "b"], ["c", "d"]]))] == [float] * 4


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (None, r"must return a list of 4 numbers, one a reply, got NoneType"),
        (1.0, r"must return a list of 4 numbers, one a reply, got float"),
        ("high", r"must return a list of 4 numbers, one a reply, got str"),
        ({"a": 1.0}, r"must return a list of 4 numbers, one a reply, got dict"),
        (torch.tensor(1.0), r"must return a list of 4 numbers, one a reply, got Tensor"),
        ((float(n) for n in range(4)), r"must return a list of 4 numbers, one a reply, got generator"),
        ([0.0, None, 1.0, 2.0], r"must give numbers, got None for reply 2 of 4"),
        (["0.5", "1", "2", "3"], r"must give numbers, got '0.5' for reply 1 of 4"),
        (torch.zeros(4, 1), r"must give numbers, got \[0.0\] for reply 1 of 4"),
        ([0.0, 1.0, 2j, 3.0], r"must give numbers, got 2j for reply 3 of 4"),
        ([0.0, 1.0, float("nan"), 2.0], r"must give finite scores, got nan for reply 3 of 4"),
        (np.array([0.0, -np.inf, 1.0, 2.0]), r"must give finite scores, got -inf for reply 2 of 4"),
        ([1e39, 0.0, 0.0, 0.0], r"must give finite scores, got 1e\+39 for reply 1 of 4"),  # infinite in float32
        ([0, 0, 0, 10**400], r"must give finite scores, got 1000\d* for reply 4 of 4"),
    ],
)
def test_what_is_no_number_for_each_reply(samples_of: SamplesOf, answer: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=rf"^reward\.function {message}$"):
        FunctionScorer(lambda prompts, replies: answer).score(samples_of([["a", "b"], ["c", "d"]]))


def test_a_closed_stdout_is_the_function_s_own(samples_of: SamplesOf, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdout", StringIO())

    def closing(prompts: list[list[dict[str, str]]], replies: list[str]) -> list[float]:
        sys.stdout.close()
        return [0.0 for _ in replies]

    with pytest.raises(ConfigError, match=r"^gold a\.closing closed sys\.stdout, which the run writes to"):
        FunctionScorer(closing, "gold", "a.closing").score(samples_of([["a"]]))


def test_an_error_of_its_own_is_one_line_with_its_place(
    samples_of: SamplesOf, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The line is the user's, though the error is raised within a library that the user called."""
    (tmp_path / "rules_that_fail.py").write_text(
        "import json\n\nclass Odd(Exception):\n    pass\n\n"
        "def own(prompts, replies):\n    raise Odd('how\\nodd')\n\n"
        "def library(prompts, replies):\n    return [json.loads(r) for r in replies]\n\n"
        "def narrow(prompts):\n    return [0.0 for _ in prompts]\n\n"
        "def leaves(prompts, replies):\n    raise SystemExit(0)\n"
    )
    monkeypatch.chdir(tmp_path)
    for name, said in (
        ("own", rf"Odd: how\nodd \({tmp_path}/rules_that_fail.py:7\)"),
        ("library", rf"JSONDecodeError: .* \({tmp_path}/rules_that_fail.py:10\)"),
        ("narrow", r"TypeError: narrow\(\) takes 1 positional argument but 2 were given"),
        ("leaves", rf"SystemExit: 0 \({tmp_path}/rules_that_fail.py:16\)"),
    ):
        path = f"rules_that_fail.{name}"
        scorer = FunctionScorer(load_function(path, "gold"), "gold", path)
        with pytest.raises(ConfigError, match=rf"^gold {path} raised {said}$"):
            scorer.score(samples_of([["a"]]))


def test_what_it_does_to_its_prompts_is_its_own_affair(samples_of: SamplesOf) -> None:
    def function(prompts: list[list[dict[str, str]]], replies: list[str]) -> list[float]:
        found = [float(len(prompt)) for prompt in prompts]
        for prompt in prompts:
            prompt[0]["content"] = ""
            prompt.clear()
        return found

    samples = samples_of([["a", "b"]])
    for _ in range(2):
        assert FunctionScorer(function).score(samples).tolist() == [[1.0, 1.0]]
    assert samples.prompts == [[{"role": "user", "content": "prompt 0"}]]


@pytest.mark.parametrize(
    "path",
    ["", "gold", "no.such.module", "alignment.toy.golden", "alignment.toy.CHECKS", ".gold", "..gold", "a..b"],
)
def test_no_function_at_that_path(path: str) -> None:
    with pytest.raises(ConfigError, match=r"^reward\.function must be the dotted path of a function, got"):
        load_function(path, "reward.function")


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("import no_such_module\n", "ModuleNotFoundError: No module named"),
        ("def f(:\n", "SyntaxError"),
        ("1 / 0", "ZeroDiv"),
        ("import sys; sys.exit(0)", "SystemExit: 0"),
    ],
)
def test_a_module_that_cannot_be_imported(
    text: str, error: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = f"rules_{error[:6].lower()}"
    (tmp_path / f"{name}.py").write_text(text)
    monkeypatch.chdir(tmp_path)
    rule = rf"^gold must be the dotted path of a function, got '{name}.f'; importing '{name}' raised {error}"
    with pytest.raises(ConfigError, match=rule):
        load_function(f"{name}.f", "gold")


def test_what_it_sets_for_the_whole_process_is_its_own_affair(
    samples_of: SamplesOf, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At the top of its module or in a call; its later calls find it again, the run never does."""
    (tmp_path / "rules_that_set.py").write_text(
        "import os, random, numpy, torch\n\n"
        "def settings():\n"
        "    return [torch.is_grad_enabled(), torch.get_default_dtype(), torch.get_default_device(),\n"
        "            torch.get_num_threads(), os.getcwd()]\n\n"
        "def seed():\n    for draw in (random.seed, numpy.random.seed, torch.manual_seed):\n        draw(5)\n\n"
        "found = []\nseed()\ntorch.set_grad_enabled(False)\ntorch.set_default_dtype(torch.float64)\n"
        "torch.set_default_device('meta')\ntorch.set_num_threads(2)\n\n"
        "def rule(prompts, replies):\n    found.append(settings())\n    seed()\n"
        "    os.chdir(os.path.dirname(__file__) + '/elsewhere')\n"
        "    return [0.0 for _ in replies]\n\n"
        "def cleans_up(prompts, replies):\n    os.rmdir(os.getcwd())\n    return [0.0 for _ in replies]\n"
    )
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(Theirs, "settings", {})
    threads = torch.get_num_threads()
    draws = [np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()]

    def is_ours() -> bool:
        settings = [torch.is_grad_enabled(), torch.get_default_dtype(), torch.empty(0).device, torch.get_num_threads()]
        own = [True, torch.float32, torch.device("cpu"), threads]
        drawn = [np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()]
        return [*settings, Path.cwd(), *drawn] == [*own, tmp_path, *draws]

    rule = load_function("rules_that_set.rule", "gold")
    assert is_ours() and threads != 2
    scorer = FunctionScorer(rule)
    for _ in range(2):
        scorer.score(samples_of([["a"]]))
        assert is_ours()
    theirs = [False, torch.float64, torch.device("meta"), 2]
    assert rule.__globals__["found"] == [[*theirs, str(tmp_path)], [*theirs, str(tmp_path / "elsewhere")]]
    cleans_up = load_function("rules_that_set.cleans_up", "gold")
    for last in (cleans_up, lambda prompts, replies: [0.0]):
        FunctionScorer(last).score(samples_of([["a"]]))
        assert is_ours()


def test_what_it_draws_is_new_at_each_call_and_the_same_in_a_run_that_goes_on(samples_of: SamplesOf) -> None:
    def noisy(prompts: list[list[dict[str, str]]], replies: list[str]) -> list[float]:
        return [random.random(), float(np.random.random()), torch.rand(()).item()]

    scorer, samples = FunctionScorer(noisy), samples_of([["a", "b", "c"]])
    random.seed(0)
    first, before, second = scorer.answers(samples), random.getstate(), scorer.answers(samples)
    assert not set(first) & set(second)
    random.setstate(before)
    assert scorer.answers(samples) == second
