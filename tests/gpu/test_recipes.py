"""The tiny recipes on a GPU: what only a second device can show, such as tensors left behind on the CPU."""

import pytest

pytestmark = pytest.mark.gpu
SMALL = ("data.train.limit=96", "data.eval.limit=16", "train.max_steps=3", "train.eval_every=2")


@pytest.mark.parametrize(
    "task",
    ["sft", "reward", "dpo", "orpo", "simpo", "cpo", "kto", "ppo", "grpo", "rloo", "reinforce_pp", "online_dpo"],
)
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_few_steps(task, precision, run, tmp_path):
    rows = run(tmp_path, f"tiny_{task}", *SMALL, f"distributed.precision={precision}")
    assert [row["step"] for row in rows] == [1, 2, 3]
    if task == "ppo":
        assert abs(rows[0]["kl"]) < 1e-6
