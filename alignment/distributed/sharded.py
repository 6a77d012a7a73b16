"""Models whose weights are sharded among the processes from the first moment on: ZeRO 3 before there is an engine.

A model may be larger than what one process can hold. transformers builds it under DeepSpeed's zero.Init and fills in
one module's weights after the other: the main process reads them, from files mapped into memory, and sends each process
its shard. What must see whole weights (checks, a new head, copies, saving) gathers those of a layer or fewer at a time.
"""

from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from copy import deepcopy
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_parameter_registration_hook
from transformers.integrations.deepspeed import HfDeepSpeedConfig, unset_hf_deepspeed_config

from alignment.config.distributed import DistributedConfig
from alignment.distributed import collectives
from alignment.distributed.deepspeed import ready
from alignment.distributed.layers import running_by_layer
from alignment.distributed.placement import Placement, StorageDtype, Whole, dtypes, is_finite
from alignment.distributed.precision import compute_dtype
from alignment.distributed.settings import deepspeed_settings
from alignment.distributed.wire import as_stored

Module = TypeVar("Module", bound=nn.Module)

ANOTHER_SHAPE = "size mismatch"  # as torch says it
READ = "_is_hf_initialized"  # by which transformers knows a weight that it has read


def placement_of(config: DistributedConfig) -> Placement:
    """Where the weights of a run's models are: sharded under ZeRO 3, else whole in each process, on its device."""
    return Sharded(config) if config.zero == 3 else Whole(compute_dtype(config), collectives.pick_device(config.device))


class Sharded:
    """The placement of weights under ZeRO 3: a shard of each in every process, and all processes call it together."""

    def __init__(self, config: DistributedConfig) -> None:
        self._config = config
        self.compute = compute_dtype(config)
        self.reads_to: torch.device | None = None  # transformers asks DeepSpeed
        self.packs_on = collectives.pick_device(config.device)

    @contextmanager
    def reading(self) -> Iterator[None]:
        """As `Placement.reading`. Only the main process sees a weight's shape, so it tells the others.

        Raises:
            ValueError: on all processes, a weight in the file has another shape than in the model.
        """
        deepspeed, _ = ready(self._config)
        problem = ""
        overrides = deepspeed.runtime.zero.partition_parameters.DEFAULT_TENSOR_OVERRIDES
        before = list(overrides)
        overrides[:] = [each for each in before if each.name != "dtype"]  # it would make every weight float32
        settings = HfDeepSpeedConfig(self._settings())  # transformers keeps a weak reference to it
        try:
            yield
        except RuntimeError as error:
            if ANOTHER_SHAPE not in str(error):
                raise
            problem = str(error)
        finally:
            overrides[:] = before
            unset_hf_deepspeed_config()  # generate() would think that each of its forwards is a collective
            del settings
        problems = [each for each in collectives.gathered(problem) if each]
        if problems:
            raise ValueError(problems[0])

    @contextmanager
    def reading_packed(self) -> Iterator[None]:
        """As `Placement.reading_packed`. transformers takes no part in sharding what it packs, so that each process
        reads and packs all of it, one weight after the other, and keeps its share of each as soon as it is in its
        module. Packed weights stay bytes: in a dtype of floating point a cast would destroy them."""
        deepspeed, _ = ready(self._config)
        zero = deepspeed.zero.Init(config_dict_or_path=self._settings())

        def share_out(module: nn.Module, name: str, weight: nn.Parameter | None) -> None:
            if weight is None or weight.is_meta or READ not in vars(weight) or "ds_tensor" in vars(weight):
                return
            if "quant_state" in vars(weight):
                weight.data = weight.data.view(torch.uint8)
            zero._convert_to_zero_parameters([weight])

        register: Any = register_module_parameter_registration_hook  # annotated as if it had to replace the weight
        hook = register(share_out)
        try:
            yield
        finally:
            hook.remove()

    def shard(self, module: nn.Module) -> None:
        deepspeed, device = ready(self._config)
        module = nn.Module.to(module, device)  # transformers' own `to` asks how weights are packed
        deepspeed.zero.Init(module=module, config_dict_or_path=self._settings())

    @contextmanager
    def whole(self, weights: Iterable[Tensor], *, write: bool = False) -> Iterator[None]:
        deepspeed, _ = ready(self._config)
        weights = list(weights)
        with as_stored(weights), deepspeed.zero.GatheredParameters(weights, modifier_rank=0 if write else None):
            yield

    def by_layer(self, module: nn.Module) -> AbstractContextManager[None]:
        return running_by_layer(module, self.whole)

    def kept(self, weight: Tensor) -> Tensor:
        return weight.detach().to("cpu", copy=True)

    def shard_of(self, weight: Tensor) -> Tensor:
        shard: Tensor = vars(weight)["ds_tensor"]
        return shard.detach()

    def not_finite(self, module: nn.Module) -> list[str]:
        own: dict[str, Tensor] = dict(module.named_parameters())
        for name, weight in own.items():
            if "ds_tensor" in vars(weight):  # not one that was made since, and is sharded with the rest
                shard = self.shard_of(weight)
                first = collectives.rank() * len(shard)  # the last shards of a weight may end in nothing
                own[name] = shard[: max(0, vars(weight)["ds_numel"] - first)]
        found = collectives.gathered([name for name, shard in own.items() if not is_finite(shard)])
        return list(dict.fromkeys(name for each in found for name in each))

    @torch.no_grad()
    def copy_of(self, module: Module, held: StorageDtype) -> Module:
        copy = deepcopy(module)  # of a weight that is sharded, nothing but its name
        for (own, dtype), other in zip(dtypes(module, held), copy.parameters(), strict=True):
            with self.whole([own]):
                other.data = own.detach().to(dtype, copy=True)
            vars(own)["convert_to_zero_parameters"]([other])
        return copy

    def _settings(self) -> dict[str, Any]:
        settings = deepspeed_settings(self._config, max_grad_norm=float("inf"))
        settings["zero_optimization"].pop("offload_optimizer", None)
        return settings
