"""The share of gradients and weights that a dtype does not hold, by layer."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.optim import SGD
from torch.optim.lr_scheduler import LambdaLR

from alignment.config.distributed import Device, DistributedConfig, Precision
from alignment.distributed import ranges
from alignment.distributed.engine import TorchEngine
from alignment.distributed.ranges import RangeWatch


def watch_of(*layers: str, dtype: torch.dtype = torch.float16, every: int = 1) -> tuple[RangeWatch, list[nn.Parameter]]:
    weights = [nn.Parameter(torch.zeros(3, dtype=torch.float64)) for _ in layers]
    return RangeWatch(dict(zip(weights, layers, strict=True)), dtype=dtype, every=every), weights


@pytest.mark.parametrize(
    ("dtype", "least", "largest"),
    [
        (torch.float16, 2.0**-14, 65504.0),
        (torch.bfloat16, 2.0**-126, (2 - 2.0**-7) * 2.0**127),
        (torch.float32, 2.0**-126, (2 - 2.0**-23) * 2.0**127),
    ],
)
def test_what_is_counted_is_beyond_the_normal_numbers(dtype: torch.dtype, least: float, largest: float) -> None:
    watch, _ = watch_of("head", dtype=dtype)
    inf, nan = float("inf"), float("nan")
    small = [least * 0.999, -least / 1e9]
    large = [largest * 1.01, -inf, nan]
    held = [least, -least, 1.0, largest, -largest]
    numbers = torch.tensor([0.0, 0.0, *small, *large, *held], dtype=torch.float64)
    assert watch.count(numbers).tolist() == [2, 10, 3, 12]
    assert watch.count(numbers.view(3, 4)).tolist() == [2, 10, 3, 12]


def test_a_large_tensor_is_counted_part_by_part(monkeypatch: pytest.MonkeyPatch) -> None:
    watch, _ = watch_of("head")
    numbers = 10.0 ** torch.linspace(-9, 9, 120).reshape(2, 60).T
    numbers[:3] = 0.0
    at_once = watch.count(numbers).tolist()
    assert at_once[1::2] == [114, 120]
    monkeypatch.setattr(ranges, "AT_ONCE", 7)
    assert watch.count(numbers).tolist() == at_once
    assert watch.count(numbers[:0]).tolist() == [0, 0, 0, 0]


def test_numbers_of_two_bytes_are_held_to_the_same_bounds() -> None:
    watch, _ = watch_of("head")
    subnormal = torch.tensor([2.0**-24, 2.0**-15, 2.0**-14, 0.0, float("inf")], dtype=torch.float16)
    assert watch.count(subnormal).tolist() == [2, 4, 1, 5]
    above = torch.tensor([65280.0, 65536.0, 1e-30], dtype=torch.bfloat16)  # 65504 lies between the first two
    assert watch.count(above).tolist() == [1, 3, 1, 3]


def test_shares_are_of_a_layer_s_weights_together() -> None:
    watch, (first, second, third) = watch_of("layer_0", "layer_0", "head")
    watch.look([(first, torch.tensor([1e-6, 0.0, 1.0])), (second, torch.tensor([1.0, 1e5, 1.0]))], [(third, third)])
    found = {name: (total.item(), count.item()) for name, (total, count) in watch.take().items()}
    assert found == {
        "ranges/layer_0/grad_underflow": (1, 5),
        "ranges/layer_0/grad_overflow": (1, 6),
        "ranges/head/grad_underflow": (0, 0),
        "ranges/head/grad_overflow": (0, 0),
        "ranges/layer_0/weight_underflow": (0, 0),
        "ranges/layer_0/weight_overflow": (0, 0),
        "ranges/head/weight_underflow": (0, 0),
        "ranges/head/weight_overflow": (0, 3),
    }
    assert watch.take() == {}


def test_gradients_are_looked_at_as_the_loss_scale_has_them() -> None:
    """d/dw of scale * (w . c) is scale * c: of 4, 2^-20 and 2^-30 at 2^10 one is subnormal in float16, at 1 both."""
    shares = {}
    for scale in (1.0, 2.0**10, 2.0**20):
        model = nn.Linear(3, 1, bias=False)
        watch = RangeWatch({model.weight: "head"}, dtype=torch.float16, every=2)
        optimizer = SGD(model.parameters(), lr=0.1)
        config = DistributedConfig(device=Device.cpu, precision=Precision.float16, initial_loss_scale=scale)
        schedule = LambdaLR(optimizer, lambda step: 1.0)
        engine = TorchEngine(model, optimizer, schedule, config=config, max_grad_norm=1e-3, watch=watch)
        seen = []
        for _ in range(4):
            engine.backward((model.weight * torch.tensor([[4.0, 2.0**-20, 2.0**-30]])).sum(), is_last=True)
            engine.step()
            seen.append({name: (total / count).item() for name, (total, count) in watch.take().items()})
        assert [bool(each) for each in seen] == [False, True, False, True]
        shares[scale] = [seen[1][f"ranges/head/grad_{kind}"] for kind in ("underflow", "overflow")]
    assert shares == {
        1.0: pytest.approx([2 / 3, 0]),
        2.0**10: pytest.approx([1 / 3, 0]),
        2.0**20: pytest.approx([0, 1 / 3]),
    }


def test_processes_of_every_stage_count_as_one_does(run_ranks: Callable[..., None], tmp_path: Path) -> None:
    script, found = Path(__file__).with_name("range_ranks.py"), {}
    for processes, stages in ((1, ["none"]), (2, ["0", "1", "2", "3"])):
        out = tmp_path / f"found-{processes}.json"
        run_ranks(script, [str(out), *stages], processes=processes)
        found |= json.loads(out.read_text())
    alone = found.pop("none")
    for step in alone:
        for name, (total, count) in step.items():
            assert count > 0 and (total > 0 or not name.endswith("grad_underflow")), name
    for stage, steps in found.items():
        for one, many in zip(alone, steps, strict=True):
            assert many.keys() == one.keys()
            for name, counted in many.items():  # a few lie at a bound, and are summed in another order
                near = 0 if name.endswith("overflow") else 3
                assert counted == pytest.approx(one[name], abs=near), (stage, name)
