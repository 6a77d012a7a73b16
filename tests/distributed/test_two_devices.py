"""What stands for a GPU in the tests of several processes refuses what a GPU would."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

GUARD = Path(__file__).with_name("two_devices.py")
MOVED = """
import torch
from torch import nn
there, model = torch.ones(2, 2).to("cpu:0"), nn.Linear(2, 2)
assert str(there.device) == "cpu:0" and str((there + 1)[0].device) == "cpu:0"
assert there.to("cpu:0").data_ptr() == there.to(there.device).data_ptr() == there.data_ptr()
assert str(there.cpu().device) == str(torch.ones(1).device) == "cpu"
assert torch.zeros(1, device=there.device).device == torch.tensor(1, device="cpu:0").device == there.device
source = torch.zeros(1)
source.to("cpu:0").add_(1)
assert source.item() == 0  # between two devices there is a copy
model.to("cpu:0")(there).sum().backward()
assert {str(value.device) for value in (model.weight, model.weight.grad)} == {"cpu:0"}
there[torch.tensor([0])] * torch.tensor(2.0)  # indices and single numbers of a CPU go to any device
"""
REFUSED = {
    "there + torch.ones(2, 2)": "Expected all tensors to be on the same device (add)",
    "nn.Linear(2, 2)(there)": "Expected all tensors to be on the same device (addmm)",
    "there.numpy()": "copy it to the host's memory first",
    "collectives.sum_over_ranks(there); dist.all_reduce(torch.ones(1))": "No backend type associated with device",
}


@pytest.fixture
def run(tmp_path: Path) -> Callable[[str], None]:
    """A program on two devices."""

    def call(program: str) -> None:
        script = tmp_path / "script.py"
        script.write_text(program)
        subprocess.run([sys.executable, GUARD, script], check=True, capture_output=True, text=True)

    return call


def test_what_is_made_of_a_tensor_is_where_it_is(run: Callable[[str], None]) -> None:
    run(MOVED)


@pytest.mark.parametrize(("what", "said"), REFUSED.items())
def test_it_refuses(what: str, said: str, run: Callable[[str], None]) -> None:
    group = "dist.init_process_group('gloo', store=dist.HashStore(), rank=0, world_size=1)"
    begin = f"import torch.distributed as dist\nfrom alignment.distributed import collectives\n{group}\n"
    with pytest.raises(subprocess.CalledProcessError) as failed:
        run(f"{MOVED}\n{begin}\n{what}\n")
    assert said in failed.value.stderr
