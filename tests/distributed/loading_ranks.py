"""What one process of the test of loading onto a device does: models that are whole in it, from folders.

python loading_ranks.py FOLDER on two devices (two_devices.py), with RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT set;
`sharded_ranks.write_folders` made FOLDER.
"""

import gc
import json
import sys
import weakref
from pathlib import Path
from typing import Any

import torch
from sharded_ranks import MODELS, load, trained
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from two_devices import MARK, is_on_gpu

from alignment.config.distributed import Device, DistributedConfig
from alignment.distributed import collectives

NAMES = ("policy", "new head", "foreign head", "lora, new head", "experts", "grown", "bfloat16 lora", "bfloat16")
ZERO2 = DistributedConfig(device=Device.cpu, zero=2)


class Alive(TorchDispatchMode):
    """Bytes of the host's tensors that are made inside and alive, but of those that are in a mapped file."""

    def __init__(self) -> None:
        super().__init__()
        self.highest = 0
        self._seen: dict[int, tuple[weakref.ref[Any], bool]] = {}  # and whether it counts

    @property
    def now(self) -> int:
        storages = [each() for each, counts in self._seen.values() if counts]
        return sum(each.nbytes() for each in storages if each is not None and not vars(each).get(MARK))

    def __torch_dispatch__(self, operation: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        results = operation(*args, **(kwargs or {}))
        made = [each for each in tree_leaves(results) if isinstance(each, Tensor) and each.device.type != "meta"]
        for storage in [each.untyped_storage() for each in made]:
            place = id(storage)
            if place in self._seen:
                continue
            is_read = operation._schema.name == "aten::set_" and is_mapped(storage.data_ptr())
            self._seen[place] = weakref.ref(storage, lambda _, place=place: self._seen.pop(place)), not is_read
            self.highest = max(self.highest, self.now)
        return results


def is_mapped(address: int) -> bool:
    """Whether it is in a file of weights that is mapped into memory."""
    files = [
        line for line in Path("/proc/self/maps").read_text().splitlines() if line.endswith((".safetensors", ".bin"))
    ]
    for line in files:
        first, last = (int(end, 16) for end in line.partition(" ")[0].split("-"))
        if first <= address < last:
            return True
    return False


def largest(model: nn.Module) -> int:
    """Bytes of the largest weight in float32."""
    return 4 * max(weight.numel() for weight in model.parameters())


def loaded(name: str, folder: Path) -> dict[str, Any]:
    with Alive() as alive:
        model = load(name, folder, ZERO2)
    weights = [*model.parameters(), *model.buffers()]
    return {"host": alive.highest, "largest": largest(model), "there": all(map(is_on_gpu, weights))}


def main() -> None:
    gc.freeze()
    torch.set_num_threads(1)
    folder = Path(sys.argv[1])
    collectives.init(ZERO2)
    found: dict[str, Any] = {}
    for name in NAMES:
        found[name] = loaded(name, folder)
        if MODELS[name][2]:
            found[name]["steps"] = trained(name, folder, ZERO2)[2]
    if collectives.is_main():
        (folder / "loaded.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main()
