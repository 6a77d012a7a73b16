"""The tiny recipes on a GPU: what only a second device can show, such as tensors left behind on the CPU."""

import pytest
import torch

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


@pytest.mark.skipif(not torch.cuda.is_available(), reason="a step is compiled on a GPU alone")
def test_replies_by_a_compiled_step_are_those_of_one_that_is_not(run, tmp_path):
    """Whose graph serves every iteration; float32, as other kernels round otherwise."""
    small = (*SMALL, "distributed.precision=float32", "kl.weight=0.1")
    plain, compiled = (
        run(tmp_path / name, "tiny_ppo", *small, f"generation.compile={name}") for name in ("false", "true")
    )
    for name in ("length", "finished", "reward"):
        assert [row[name] for row in compiled] == pytest.approx([row[name] for row in plain], rel=1e-3)
