"""A run on a machine of two devices, where there is one: what has not been moved to the GPU is known, and refused.

python two_devices.py SCRIPT ARGUMENTS ... runs a script of the ranks so; `RANKS=cuda:gloo pytest tests/distributed`
runs all of them so.

A group made as "cuda:gloo" has no collective for a CPU's tensor, and without a GPU none at all. So the run's device is
called cpu:0 here, and a tensor is on it that came there by `to`, by `device=` or with its module; nothing else about it
changes. Asked for its device it says cpu:0, and a collective of the package takes no other. Models run where their rows
are: with all their parameters there, or none. The copies that this makes
change what PPO's ranks draw, so that it tells there where tensors are, and not that numbers are the same.
"""

import runpy
import sys
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

HOST, GPU = torch.device("cpu"), torch.device("cpu", 0)
MARK = "is_on_gpu"
REAL = {"to": Tensor.to, "device": torch._C.TensorBase.device, "tensor": torch.tensor, "module.to": nn.Module.to}


def is_on_gpu(tensor: Tensor) -> bool:
    return vars(tensor).get(MARK, False)


def put(tensor: Tensor, device: torch.device) -> Tensor:
    vars(tensor)[MARK] = device == GPU
    return tensor


def asked(arguments: tuple[Any, ...], settings: dict[str, Any]) -> torch.device | None:
    """The device that a call of `to` names, if it names one."""
    devices = [a for a in (*arguments, settings.get("device")) if isinstance(a, torch.device | str)]
    others = [a for a in arguments if isinstance(a, Tensor)]
    return torch.device(devices[0]) if devices else others[0].device if others else None


def moved(tensor: Tensor, *arguments: Any, **settings: Any) -> Tensor:
    device = asked(arguments, settings)
    here = GPU if is_on_gpu(tensor) else HOST
    if device is None or device == here:
        return put(REAL["to"](tensor, *arguments, **settings), here)
    result = REAL["to"](tensor, *arguments, **settings)
    return put(result.clone() if result is tensor else result, device)


def module_moved(module: nn.Module, *arguments: Any, **settings: Any) -> nn.Module:
    REAL["module.to"](module, *arguments, **settings)
    device = asked(arguments, settings)
    if device is not None:
        mark_module(module, device)
    return module


def mark_module(module: nn.Module, device: torch.device) -> None:
    for tensor in (*module.parameters(), *module.buffers()):
        put(tensor, device)


def made(make: Callable[..., Tensor]) -> Callable[..., Tensor]:
    @wraps(make)
    def call(*arguments: Any, **settings: Any) -> Tensor:
        result = make(*arguments, **settings)
        return put(result, GPU) if settings.get("device") == GPU else result

    return call


def refusing(collective: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(collective)
    def call(tensor: Tensor, *arguments: Any, **settings: Any) -> Any:
        if not is_on_gpu(tensor):
            raise RuntimeError(f"No backend type associated with device type cpu ({collective.__name__})")
        return collective(tensor, *arguments, **settings)

    return call


class Guarded:
    """torch.distributed as the package sees it."""

    def __getattr__(self, name: str) -> Any:
        value = getattr(dist, name)
        return refusing(value) if name in ("all_reduce", "broadcast", "all_gather", "reduce", "scatter") else value


def check_place(model: nn.Module, rows: Tensor) -> None:
    """Raises:
    RuntimeError: as torch does of tensors on two devices; names the first parameter that is elsewhere.
    """
    for name, parameter in model.named_parameters():
        if "ds_tensor" not in vars(parameter) and is_on_gpu(parameter) != is_on_gpu(rows):
            where = f"{name} of a {type(model).__name__} on {parameter.device}, its rows on {rows.device}"
            raise RuntimeError(f"Expected all tensors to be on the same device: {where}")


def install() -> None:
    Tensor.to, nn.Module.to = moved, module_moved
    Tensor.device = property(lambda tensor: GPU if is_on_gpu(tensor) else REAL["device"].__get__(tensor))
    Tensor.cpu = lambda tensor: moved(tensor, HOST)
    for name in ("tensor", "zeros", "ones", "full", "arange", "empty"):
        setattr(torch, name, made(vars(torch)[name]))

    from alignment.distributed import world

    world.pick_device = lambda device: GPU
    world.group_device = lambda: GPU
    world.dist = Guarded()

    import deepspeed

    initialize = deepspeed.initialize

    def initialized(*arguments: Any, **settings: Any) -> Any:
        result = initialize(*arguments, **settings)
        mark_module(result[0].module, GPU)
        return result

    deepspeed.initialize = initialized

    from alignment.models.heads import Trunk

    hidden = Trunk.hidden

    def checked(model: Trunk, batch: Any, positions: Tensor) -> Tensor:
        check_place(model, batch.input_ids)
        return hidden(model, batch, positions)

    Trunk.hidden = checked


if __name__ == "__main__":
    script = Path(sys.argv[1])
    sys.path.insert(0, str(script.parent))
    sys.argv = sys.argv[1:]
    install()
    runpy.run_path(str(script), run_name="__main__")
