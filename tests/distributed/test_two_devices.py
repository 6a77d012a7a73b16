"""What stands for a GPU in the tests of several processes refuses what a GPU would."""

import importlib
from copy import deepcopy
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import nn


@pytest.fixture(scope="module")
def two() -> ModuleType:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(Path(__file__).parent))
        return importlib.import_module("two_devices")


def test_a_collective_takes_what_was_moved(two: ModuleType) -> None:
    value, sent = torch.ones(2), []

    def all_reduce(tensor: torch.Tensor) -> None:
        sent.append(tensor)

    with pytest.raises(RuntimeError, match="No backend type associated with device type cpu"):
        two.refusing(all_reduce)(value)
    there = two.moved(value, two.GPU)
    two.refusing(all_reduce)(there)
    assert sent == [there] and there is not value and not two.is_on_gpu(value)
    assert two.moved(there, two.GPU) is not value and not two.is_on_gpu(two.moved(there, two.HOST))
    with pytest.raises(RuntimeError, match="No backend type"):
        two.refusing(all_reduce)(there + 1)  # what came of a computation is moved again, by name


def test_a_model_and_its_rows_are_in_one_place(two: ModuleType) -> None:
    model = nn.Linear(2, 2)
    copy, rows = deepcopy(model), torch.ones(1, 2)
    two.check_place(model, rows)
    two.module_moved(model, two.GPU)
    there = two.moved(rows, two.GPU)
    two.check_place(model, there)
    for left, values in ((copy, there), (model, rows)):
        with pytest.raises(RuntimeError, match="same device: weight of a Linear"):
            two.check_place(left, values)
    two.module_moved(model, two.HOST)
    two.check_place(model, rows)
