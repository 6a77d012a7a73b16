"""Groups of replies learn from a function that checks them against a column of the data; an evaluation asks it too."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

ANSWERS = """
SEEN = []


def correct(prompts, replies, answer):
    assert len(prompts) == len(replies) == len(answer)
    SEEN.extend((prompt[-1]["content"], right) for prompt, right in zip(prompts, answer))
    return [float(len(reply) + len(right)) for reply, right in zip(replies, answer)]
"""


def test_a_reward_function_gets_the_answers(alignment: Callable[..., Any], tmp_path: Path) -> None:
    (tmp_path / "answers_of_rows.py").write_text(ANSWERS)
    rows = [{"question": f"what is {number}?", "solution": str(number)} for number in range(4)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    words = ["run", "tiny_grpo", "data=native", "data.train.path=rows.jsonl", "data.eval.path=rows.jsonl"]
    words += [
        "model=tiny",
        "reward.path=null",
        "reward.function=answers_of_rows.correct",
        "gold=answers_of_rows.correct",
    ]
    words += ["data.columns={prompt: question, answer: solution}", "generation.max_new_tokens=4", "train.max_steps=1"]
    words += ["batch.size=2", "num_samples=2", "train.warmup_steps=0", "data.max_prompt_length=32", "output_dir=run"]
    ended = alignment(*words)
    assert ended.code == 0, ended
    import answers_of_rows

    assert {(f"what is {number}?", str(number)) for number in range(4)} == set(answers_of_rows.SEEN)
    answers_of_rows.SEEN.clear()
    evaluate = ["run", "tiny_evaluate", "runs={a: run}", "baseline=a", "curves={}", "reward=null", "num_samples=1"]
    evaluate += [
        "gold=answers_of_rows.correct",
        "data=native",
        "data.eval.path=rows.jsonl",
        "generation.max_new_tokens=4",
    ]
    ended = alignment(*evaluate, words[9], "pairs.eval.limit=null", "pairs.format=auto", "output_dir=compared")
    assert ended.code == 0 and len(answers_of_rows.SEEN) == 4, ended
    lacking = alignment(*[word.replace(", answer: solution", "") for word in words], "output_dir=other")
    what = "reward.function=answers_of_rows.correct asks for the column 'answer', which no row of data.train has"
    assert lacking.code == 2 and what in lacking.err[0] and "they have question, solution, prompt" in lacking.err[0]
