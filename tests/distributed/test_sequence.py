"""Processes that share the tokens of their rows are one process that has them all."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from transformers import LlamaConfig

from alignment.cli.compose import composing, resolve, single
from alignment.config.errors import ConfigError
from alignment.models.sequence import require_heads

TOLERANCE = 1e-5
STAGES = ("0", "1", "2", "3")
METHODS = ("sft", "dpo", "reward", "orpo", "kto", "lora", "aot")
CASES = [
    *(f"{method}/{stage}/shared/2" for method in ("sft", "dpo", "reward") for stage in STAGES),
    *("orpo/2/shared/2", "kto/3/shared/2", "lora/1/shared/2", "aot/2/shared/2"),
    *("sft/3/separate/2", "dpo/2/separate/2", "reward/0/separate/2"),
]
FIRST = [
    *("sft/0/shared/2", "dpo/1/shared/2", "sft/2/shared/2", "dpo/3/shared/2", "reward/3/shared/2", "kto/3/shared/2"),
    "sft/3/separate/2",
]
"""Each stage and each kind of read-out; the others with -m slow."""
TRIED = [pytest.param(case, marks=[] if case in FIRST else pytest.mark.slow) for case in CASES]
REFUSED = [
    ("tiny_sft", ["distributed.sequence_parallel=2"], "must be 1 without distributed.zero"),
    ("tiny_sft", ["distributed=zero1", "distributed.sequence_parallel=0"], "must be >= 1, got 0"),
    (
        "tiny_sft",
        ["distributed=zero1", "launch.processes=3", "distributed.sequence_parallel=2"],
        "must divide the numb",
    ),
    (
        "tiny_ppo",
        ["distributed=zero1", "launch.processes=2", "distributed.sequence_parallel=2"],
        "must be 1 for a task",
    ),
    ("tiny_rejection", ["distributed=zero1", "distributed.sequence_parallel=2"], "must be 1 for a task that does not"),
]
READ = [
    f"{kind}/refused/{layout}/2" for kind in ("gemma3_text", "gpt2", "mixtral") for layout in ("shared", "separate")
]
OTHERS = [
    "sft/sent/shared/2",
    "mixtral/routed/shared/2",
    "gpt2/unread/shared/2",
    "bloom/refused/separate/2",
    "mamba/refused/separate/2",
    *READ,
]
FOUR = ["dpo/2/shared/2", "dpo/3/shared/2"]
ALL_FOUR = ["dpo/2/shared/4", "sft/3/separate/4"]
"""Of a model with two heads of keys, which are repeated."""
Found = dict[str, Any]
Ranks = Callable[[Sequence[str], int], Found]


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory, run_ranks: Callable[..., None]) -> Ranks:
    """What so many processes find of cases."""
    folder = tmp_path_factory.mktemp("sequence")

    def call(cases: Sequence[str], processes: int) -> Found:
        out = folder / "found.json"
        run_ranks(Path(__file__).with_name("sequence_ranks.py"), [str(out), *cases], processes=processes)
        return json.loads(out.read_text())

    return call


@pytest.fixture(scope="module")
def one(found: Ranks) -> Found:
    return found([f"{method}/none/shared/1" for method in METHODS], 1)


@pytest.fixture(scope="module")
def two(found: Ranks) -> Found:
    return found([*FIRST, *OTHERS], 2)


@pytest.fixture(scope="module")
def rest(found: Ranks) -> Found:
    return found([case for case in CASES if case not in FIRST], 2)


def same(case: str, found: Found, one: Found) -> None:
    own, plain = found[case], one[f"{case.split('/')[0]}/none/shared/1"]
    assert own["loss"] == pytest.approx(plain["loss"], rel=TOLERANCE, abs=TOLERANCE)
    assert own["grad_norm"] == pytest.approx(plain["grad_norm"], rel=1e-4, abs=TOLERANCE)
    assert max(plain["grad_norm"]) > 0.5  # it was clipped
    assert own["eval"] == pytest.approx(plain["eval"], rel=TOLERANCE, abs=TOLERANCE)
    assert own.get("statistics", []) == pytest.approx(plain.get("statistics", []), rel=TOLERANCE, abs=TOLERANCE)
    for step, wanted in zip(own["metrics"][1:], plain["metrics"][1:], strict=True):  # at first rewards tie
        assert step == pytest.approx(wanted, rel=1e-4, abs=TOLERANCE)


@pytest.mark.parametrize("case", TRIED)
def test_two_processes_that_share_rows_are_one(case: str, one: Found, request: pytest.FixtureRequest) -> None:
    same(case, request.getfixturevalue("two" if case in FIRST else "rest"), one)


@pytest.mark.slow
@pytest.mark.parametrize("cases", [FOUR, ALL_FOUR], ids=["two by two", "all four"])
def test_four_are_one_too(cases: list[str], one: Found, found: Ranks) -> None:
    four = found(cases, 4)
    for case in cases:
        same(case, four, one)


def test_a_layer_exchanges_twice(two: Found) -> None:
    """Queries, keys and values together, and the outputs, in each of two layers."""
    assert two["sft/sent/shared/2"] == 4


@pytest.mark.parametrize("kind", ["bloom", "mamba"])
def test_a_model_whose_rows_are_more_than_attention_is_refused(kind: str, two: Found) -> None:
    said = two[f"{kind}/refused/separate/2"]
    assert said.startswith("distributed.sequence_parallel must be 1 for this model (") and said.endswith(", got 2")


@pytest.mark.parametrize("case", READ)
def test_windows_learned_positions_and_experts_are_read_alike(case: str, two: Found) -> None:
    assert two[case] == ""


def test_routers_are_balanced_over_whole_rows(two: Found) -> None:
    """Their loss is no sum over tokens: a mean of the groups' own parts would be another."""
    assert two["mixtral/routed/shared/2"] == pytest.approx([0.0, 0.0], abs=TOLERANCE)


def test_a_process_that_has_the_prompt_alone_takes_part(two: Found) -> None:
    assert two["gpt2/unread/shared/2"] == pytest.approx([0.0, 0.0], abs=TOLERANCE)


@pytest.mark.parametrize(("recipe", "words", "said"), REFUSED)
def test_what_cannot_share_rows_is_refused_by_its_config(recipe: str, words: list[str], said: str) -> None:
    with composing([]), pytest.raises(ConfigError, match=f"distributed.sequence_parallel {said}"):
        resolve(single(recipe, words))


def test_a_step_is_dealt_out_among_the_groups() -> None:
    """Three rows a step are enough for six processes that are three groups of two."""
    words = ["distributed=zero1", "launch.processes=6", "batch.size=3"]
    with composing([]):
        resolve(single("tiny_sft", [*words, "distributed.sequence_parallel=2"]))
        with pytest.raises(ConfigError, match=r"batch.size must be a multiple .* \(6\), got 3"):
            resolve(single("tiny_sft", words))
        with pytest.raises(ConfigError, match=r"batch.size .* processes \(6\) by distributed.sequence_parallel \(2\)"):
            resolve(single("tiny_sft", [*words, "distributed.sequence_parallel=3"]))


def test_dropout_that_they_would_draw_alike_is_refused() -> None:
    words = ["distributed=zero1", "launch.processes=2", "distributed.sequence_parallel=2", "model.lora.rank=2"]
    with composing([]), pytest.raises(ConfigError, match=r"^model.lora.dropout must be 0 with .* got 0.1"):
        resolve(single("tiny_sft", [*words, "model.lora.dropout=0.1"]))


def test_heads_are_shared_out_evenly() -> None:
    config = LlamaConfig(hidden_size=48, num_attention_heads=6, num_key_value_heads=2)
    for size in (1, 2, 3, 6):
        require_heads(config, size)
    with pytest.raises(
        ConfigError, match=r"must divide the number of attention heads .* \(llama, which has 6\), got 4"
    ):
        require_heads(config, 4)


def test_one_process_has_to_be_several(tmp_path: Path, start: Callable[..., Any]) -> None:
    """Which torchrun may make it, so that a config does not know."""
    running = start("dpo", tmp_path, "distributed.zero=1", "distributed.sequence_parallel=2")
    _, said = running.communicate(timeout=300)
    assert running.returncode == 2 and len(said.splitlines()) == 1
    assert "distributed.sequence_parallel must divide the number of processes (1; launch.processes=N), got 2" in said
