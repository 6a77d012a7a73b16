"""All GPUs at once: what one process learns, all learn, under ZeRO and with the roles of PPO wherever they may be."""

import pytest

pytestmark = pytest.mark.gpu
SMALL = ("data.train.limit=64", "data.eval.limit=8", "train.max_steps=3", "train.eval_every=2", "log.every=1")
ON_CPU, ONE_BACKBONE = "the reward model and the reference on the CPU", "one backbone"
LAYOUTS = {
    "four models": (),
    ON_CPU: ("roles.offload=true",),
    "lora": ("model.lora.rank=4",),
    ONE_BACKBONE: ("model.lora.rank=4", "roles.share=lora"),
}
ROLES = [
    (zero, layout) for zero in (0, 2, 3) for layout in LAYOUTS if zero != 3 or layout not in (ON_CPU, ONE_BACKBONE)
]


def sharded(zero, processes):
    return (f"distributed.zero={zero}", f"launch.processes={processes}")


@pytest.mark.parametrize("zero", [0, 1, 2, 3])
def test_dpo_is_one_process_s(zero, run, processes, tmp_path):
    words = ("tiny_dpo", *SMALL, f"batch.size={4 * processes}")
    whole = run(tmp_path / "one", *words)
    found = run(tmp_path / "all", *words, *sharded(zero, processes))
    assert [row["loss"] for row in found] == pytest.approx([row["loss"] for row in whole], rel=1e-3)


@pytest.mark.parametrize("task", ["dpo", "sft", "reward"])
def test_a_real_vocabulary_under_zero_3(task, run, processes, tmp_path):
    words = (f"tiny_{task}", *SMALL, f"batch.size={4 * processes}", "model.init.vocab_size=131072")
    rows = run(tmp_path, *words, *sharded(3, processes))
    assert [row["step"] for row in rows] == [1, 2, 3]


@pytest.mark.parametrize(("zero", "layout"), ROLES)  # what ZeRO 3 shards has no place on the CPU, nor two engines
def test_ppo_in_every_layout_of_its_roles(zero, layout, run, processes, tmp_path):
    words = ("tiny_ppo", *SMALL, f"batch.size={4 * processes}", "generation.max_new_tokens=8", *LAYOUTS[layout])
    rows = run(tmp_path, *words, *sharded(zero, processes))
    assert [row["step"] for row in rows] == [1, 2, 3]
    assert abs(rows[0]["kl"]) < 1e-5
