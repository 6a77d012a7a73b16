"""How many tokens a pass of a run has: of batch.max_tokens no more than the rows come to that it is of."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from measured_runs import DRAWN, FULL, LORA, PPO, WIDE, checkpointing, made, measured, write_inputs

from alignment.cli.plan import composed
from alignment.config.batch import Layout
from alignment.data.batches import cut, deal
from alignment.plan.estimate import Plan, plan_of, planned
from alignment.plan.hardware import named
from alignment.plan.passes import PassTokens, pass_tokens
from alignment.plan.roles import Counts
from alignment.tasks.run import execute

COUNTS = Counts()


def plan(recipe: str, *words: str) -> Plan:
    config = planned(composed(recipe, ["model.init.num_hidden_layers=1", *words], [], None))
    return plan_of(config, named("1x80GB"), COUNTS)


def tokens_of(recipe: str, *words: str, processes: int = 1) -> dict[str, PassTokens]:
    found = plan(recipe, *words)
    return {each.role.key: pass_tokens(found.config, each, processes, found.max_tokens) for each in found.roles}


@pytest.mark.parametrize("ranks", [1, 2, 3, 4, 8])
@pytest.mark.parametrize("layout", [Layout.shared, Layout.separate])
def test_no_pass_of_what_the_packer_makes_has_more(ranks: int, layout: Layout) -> None:
    """Of rows up to their limit, of any lengths; and exactly so many of the longest where all would go into one pass,
    or each process has one."""
    found, row, random = plan("tiny_sft", "batch.max_tokens=128"), 128, np.random.default_rng(0)
    role, kinds = replace(found.roles[0], counted=replace(found.roles[0].counted, row=row)), set()
    for rows in (ranks * each for each in (1, 2, 3, 5, 8)):
        config = replace(found.config, batch=replace(found.config.batch, size=rows))
        for max_tokens in (100, 128, 383, 400, 639, 896, 1024, 10_000):
            own = pass_tokens(config, role, ranks, max_tokens)
            most, is_only = largest([row] * rows, max_tokens, layout, ranks)
            assert own.is_only == is_only and own.learned >= most
            if is_only and (rows == ranks or rows * row <= max_tokens):
                assert own.learned == most
            for _ in range(20):
                lengths = random.integers(row // random.integers(1, 8), row + 1, rows).tolist()
                most, is_only = largest(lengths, max_tokens, layout, ranks)
                assert own.learned >= most and (is_only or not own.is_only)
            kinds.add(own.is_only)
    assert kinds == {True, False}


def largest(lengths: list[int], max_tokens: int, layout: Layout, ranks: int) -> tuple[int, bool]:
    """Tokens of the largest pass of a step, and whether it is one pass in each process."""
    dealt = deal(cut(lengths, max_tokens, layout), lengths, ranks)
    sizes = [
        sum(lengths[i] for i in piece) if layout is Layout.shared else len(piece) * max(lengths[i] for i in piece)
        for pieces in dealt
        for piece in pieces
    ]
    return max(sizes), all(len(pieces) == 1 for pieces in dealt)


ROWS = ["data.max_length=128", "data.max_prompt_length=64", "batch.size=4", "batch.max_tokens=8192"]
REPLIES = ["data.max_prompt_length=8", "generation.max_new_tokens=32", "num_samples=2", "batch.max_tokens=8192"]
OF_REPLIES = 8 + 2 * 32
NONE_HELD_OUT = "data.eval.limit=null"


def test_what_learns_from_rows_reads_the_held_out_ones_without_gradients() -> None:
    found = tokens_of("tiny_sft", *ROWS, NONE_HELD_OUT)["model.init"]
    assert found == PassTokens(4 * 128, 0, is_only=True)
    assert tokens_of("tiny_sft", *ROWS)["model.init"] == replace(found, read=8192)
    found = tokens_of("tiny_sft", *ROWS, NONE_HELD_OUT, "batch.max_tokens=300")["model.init"]
    assert found == PassTokens(300, 0, is_only=False)


def test_a_reference_of_rows_reads_all_of_them() -> None:
    found = tokens_of("tiny_dpo", *ROWS, NONE_HELD_OUT)["model.init"]
    assert found == PassTokens(4 * (1 + 2 * 127), 8192, is_only=True)
    assert tokens_of("tiny_orpo", *ROWS, NONE_HELD_OUT)["model.init"] == replace(found, read=0)


def test_ppo_s_roles_read_what_is_learned_from_and_what_judges_fills_its_passes() -> None:
    """A judge lays replies out anew, by its own template and tokens, without the policy's limits."""
    found = plan("tiny_ppo", *REPLIES, NONE_HELD_OUT, "batch.size=16", "ppo.mini_batches=4")
    actor, reference, critic = found.roles
    judge = replace(critic, role=replace(critic.role, key="reward.path", is_trained=False))
    learned, read = PassTokens(2 * OF_REPLIES, 0, is_only=True), PassTokens(0, 2 * OF_REPLIES, is_only=False)
    for each, wanted in ((actor, learned), (critic, learned), (reference, read), (judge, replace(read, read=8192))):
        assert pass_tokens(found.config, each, 2, 8192) == wanted


def test_a_step_with_other_texts_in_it_is_of_several_passes() -> None:
    limits = ["ptx.size=4", "ptx.data.max_length=512", "ptx.data.max_prompt_length=16"]
    words = [*REPLIES, NONE_HELD_OUT, "batch.size=16", "ptx.weight=0.1", "ptx.data.train.limit=64", *limits]
    found = tokens_of("tiny_ppo", *words, "ptx.data.format=toy")
    assert found["model.init"] == PassTokens(16 * OF_REPLIES, 0, is_only=False, texts=4 * 512)
    assert found["critic"] == PassTokens(16 * OF_REPLIES, 0, is_only=True)  # which reads none of them


@pytest.mark.parametrize(("pairs", "count"), [("best_and_worst", 1), ("all", 6)])
def test_online_dpo_learns_from_pairs(pairs: str, count: int) -> None:
    words = [*REPLIES, NONE_HELD_OUT, "batch.size=4", "num_samples=4", f"pairs={pairs}"]
    found = tokens_of("tiny_online_dpo", *words)
    assert found["model.init"] == PassTokens(4 * count * OF_REPLIES, 0, is_only=True)
    assert found["reference"].read == 4 * count * OF_REPLIES


SCORER = """
from zlib import crc32
def score(prompts, replies):
    return [crc32(reply.encode()) / 2**32 for reply in replies]
"""  # of no two replies the same
PAIRS = ["tiny_online_dpo", *DRAWN[:-1], "train.max_steps=2", "reward.function=scorer.score", "batch.size=16"]
HALF = ["batch.size=1", "distributed.precision=bfloat16"]
JUDGE = [*FULL["reward model"], "model.path=base", LORA]
ON_ONE = [*PPO, "train.max_steps=2", "model.path=base", LORA, "roles.share=lora", "reward.path=judge/model"]
ON_ONE.append("reward.function=null")
RUNS = {  # in which a step has fewer tokens than a pass may have
    "SFT": [*FULL["SFT"], "batch.max_tokens=8192"],
    "SFT, held-out rows": [*FULL["SFT"], "batch.max_tokens=4096", "batch.size=2", "data.eval.path=rows.jsonl"],
    "DPO, held-out rows": [*FULL["DPO"], "batch.max_tokens=2048", "batch.size=2", "data.eval.path=pairs.jsonl"],
    "PPO, mini-batches": [*PPO, "batch.max_tokens=4096", "ppo.mini_batches=4"],
    "GRPO, LoRA": [*FULL["GRPO"], LORA, "batch.max_tokens=8192", "ppo.mini_batches=2"],
    "online DPO, of six replies": [*PAIRS, "num_samples=6", "batch.max_tokens=576"],
    # Where weights are more than what is between them: a step's gradients are there as the first layer's are made.
    "SFT, wide": [*FULL["SFT"], WIDE, "batch.size=4", "batch.max_tokens=512"],
    "SFT, wide, in bfloat16": [*FULL["SFT"], WIDE, *HALF, "batch.max_tokens=2560", "data.eval.path=rows.jsonl"],
    "SFT, wide, LoRA saved": [*FULL["SFT"], WIDE, LORA, *HALF, "batch.max_tokens=128"],
    "PPO, judge on the same backbone": [*ON_ONE, "ppo.mini_batches=16", "batch.size=32", "batch.max_tokens=2304"],
    "online DPO, all pairs": [*PAIRS, "batch.size=4", "num_samples=4", "pairs=all", "batch.max_tokens=8192"],
}
OFTEN = [("SFT, held-out rows", False), ("PPO, mini-batches", False), ("SFT, wide", True)]
OFTEN += [
    ("SFT, wide, in bfloat16", False),
    ("SFT, wide, LoRA saved", False),
    ("PPO, judge on the same backbone", True),
]


@pytest.mark.parametrize(
    ("name", "again"),
    [
        pytest.param(name, again, marks=() if (name, again) in OFTEN else pytest.mark.slow)
        for name in RUNS
        for again in (False, True)
    ],
)
def test_a_plan_is_what_is_alive(name: str, again: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "scorer.py").write_text(SCORER)
    write_inputs({name: RUNS[name]})
    if "judge" in name:
        with made(JUDGE, "judge") as config:
            execute(config)
    found = measured(checkpointing(RUNS[name], is_on=again), "run", COUNTS)
    assert 0.97 < found["planned"] / found["alive"] < 1.1, found
