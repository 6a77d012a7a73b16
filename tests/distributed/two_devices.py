"""A run on a machine of two devices, where there is one: torch's rules about what is on a GPU, kept by hand.

python two_devices.py SCRIPT ARGUMENTS ... runs a script of the ranks so; `RANKS=cuda:gloo pytest tests/distributed`
runs all of them so.

A group made as "cuda:gloo" refuses a CPU's tensors, and without a GPU it has no others. So the run's device is called
cpu:0 here. Every storage knows where it is, and every operation of torch, DeepSpeed's and autograd's own among them, is
seen: what it makes is where its inputs are, inputs on two devices are refused, and so is a collective over what is not
on cpu:0. `to` copies, as it does between two devices. The arithmetic is the CPU's, to the bit.
"""

import runpy
import sys
from collections.abc import Callable
from functools import partial, wraps
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

HOST, GPU = torch.device("cpu"), torch.device("cpu", 0)
MARK = "is_on_gpu"
TO, DEVICE = Tensor.to, torch._C.TensorBase.device
BETWEEN = ("copy_", "_to_copy", "set_", "_local_scalar_dense", "barrier")  # of tensors on two devices, or on any
INDEXED = ("index", "index_put", "index_put_", "_index_put_impl_", "_unsafe_index", "_unsafe_index_put")


def is_on_gpu(tensor: Tensor) -> bool:
    return vars(tensor.untyped_storage()).get(MARK, False)


def put(tensor: Tensor, device: torch.device) -> Tensor:
    vars(tensor.untyped_storage())[MARK] = device == GPU
    return tensor


def tensors_in(values: Any) -> list[Tensor]:
    return [value for value in tree_leaves(values) if isinstance(value, Tensor)]


def check_inputs(name: str, is_collective: bool, inputs: list[Tensor]) -> None:
    """Raises:
    RuntimeError: as torch does where tensors are on two devices, or a collective has none for where they are.
    """
    if is_collective and not all(is_on_gpu(tensor) for tensor in inputs):
        raise RuntimeError(f"No backend type associated with device type cpu ({name})")
    of_size = [tensor for tensor in inputs if tensor.dim()]  # a single number goes to any device
    if any(map(is_on_gpu, inputs)) and not all(map(is_on_gpu, of_size)):
        shapes = [f"{tuple(tensor.shape)} on {'cpu:0' if is_on_gpu(tensor) else 'cpu'}" for tensor in inputs]
        raise RuntimeError(f"Expected all tensors to be on the same device ({name}): {', '.join(shapes)}")


class TwoDevices(TorchDispatchMode):
    """Sees every operation on tensors."""

    def __torch_dispatch__(self, operation: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        settings = kwargs or {}
        inputs = tensors_in((args, settings))
        space, _, name = operation._schema.name.partition("::")
        if name not in BETWEEN:
            checked = inputs[:1] if name in INDEXED else inputs  # a CPU's indices may index a GPU's values
            check_inputs(name, space == "c10d", checked)
        there = any(map(is_on_gpu, inputs)) if settings.get("device") is None else settings["device"] == GPU
        if torch._C._current_graph_task_id() != -1:  # autograd makes zeros where C++ has a tensor, and that says cpu
            there = there or not inputs or any(map(is_on_gpu, inputs))
        known = {tensor.untyped_storage()._cdata for tensor in inputs}
        results = operation(*args, **{key: as_torch_knows_it(value) for key, value in settings.items()})
        for tensor in tensors_in(results):
            if tensor.untyped_storage()._cdata not in known:
                put(tensor, GPU if there else HOST)
        return results


def as_torch_knows_it(value: Any) -> Any:
    """An argument that may be a device. To torch cpu:0 is another one than cpu and it would copy between them, where
    there is no copy on a GPU: DeepSpeed's ZeRO 3 would read a buffer before it is filled."""
    return HOST if isinstance(value, torch.device | str) and torch.device(value) == GPU else value


def asked(arguments: tuple[Any, ...], settings: dict[str, Any]) -> torch.device | None:
    """The device that a call of `to` names, if it names one."""
    devices = [a for a in (*arguments, settings.get("device")) if isinstance(a, torch.device | str)]
    others = [a for a in (*arguments, settings.get("other")) if isinstance(a, Tensor)]
    return torch.device(devices[0]) if devices else others[0].device if others else None


def moved(tensor: Tensor, *arguments: Any, **settings: Any) -> Tensor:
    device = asked(arguments, settings)
    known = {name: as_torch_knows_it(value) for name, value in settings.items()}
    with torch._C.DisableTorchFunction():  # or `Made` calls this again, from cpu:0 to cpu
        result = TO(tensor, *map(as_torch_knows_it, arguments), **known)
    if device is not None and device.type != "cpu":
        return result
    here = GPU if is_on_gpu(tensor) else HOST
    there = here if device is None else device
    is_same = result.untyped_storage()._cdata == tensor.untyped_storage()._cdata
    return put(result.clone() if is_same and there != here else result, there)


class Made(TorchFunctionMode):
    """Of values from outside of torch, which come to a device without an operation that names it."""

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        settings = kwargs or {}
        if function not in (torch.tensor, torch.as_tensor):
            return function(*args, **settings)
        result = function(*args, **{name: as_torch_knows_it(value) for name, value in settings.items()})
        return put(result, GPU) if asked((), settings) == GPU else result


def on_host(read: Callable[[Tensor], Any]) -> Callable[..., Any]:
    @wraps(read)
    def call(tensor: Tensor, *arguments: Any, **settings: Any) -> Any:
        if is_on_gpu(tensor):
            raise TypeError("can't convert a cpu:0 tensor to numpy: copy it to the host's memory first")
        return read(tensor, *arguments, **settings)

    return call


def install() -> None:
    Tensor.to = moved
    Tensor.device = property(lambda tensor: GPU if is_on_gpu(tensor) else DEVICE.__get__(tensor))
    Tensor.cpu = lambda tensor: moved(tensor, HOST)
    Tensor.numpy = on_host(Tensor.numpy)
    torch.distributed.distributed_c10d._get_object_coll_device = lambda group=None: "cpu:0"

    from alignment.distributed import collectives

    collectives.pick_device = lambda device: GPU
    collectives.group_device = lambda: GPU

    from deepspeed.accelerator import get_accelerator

    here = type(get_accelerator())
    here.device_name = lambda self, index=None: "cpu:0"
    here.current_device_name = lambda self: "cpu:0"
    here.on_accelerator = lambda self, tensor: is_on_gpu(tensor)
    kinds = {"BFloat16": torch.bfloat16, "Half": torch.half, "Float": torch.float, "Double": torch.double}
    for name, dtype in {**kinds, "Byte": torch.uint8, "Int": torch.int, "Long": torch.long}.items():
        setattr(here, f"{name}Tensor", partial(torch.tensor, dtype=dtype, device="cpu:0"))  # as a GPU's makes them


if __name__ == "__main__":
    script = Path(sys.argv[1])
    sys.path.insert(0, str(script.parent))
    sys.argv = sys.argv[1:]
    install()
    from alignment.distributed.collectives import leave

    with TwoDevices(), Made():
        runpy.run_path(str(script), run_name="__main__")
        leave()
