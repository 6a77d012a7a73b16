"""What the weights of a model come to before they are there: bytes and numbers."""

from collections.abc import Mapping

from transformers import PreTrainedModel

from alignment.models.adapters import BENEATH
from alignment.models.counted import SMALL, Role
from alignment.models.fp8 import num_in_fp8
from alignment.models.held import States
from alignment.models.optimizer_states import HALF, all_states
from alignment.models.packed import Packed
from alignment.models.weight_kinds import head_of, weight_kinds

SINGLE = 4  # bytes of a number
OF_ADAPTER = ".lora_"  # in a weight's name


def weights_of(role: Role, hf: PreTrainedModel) -> list[float]:
    """The bytes of the weights that train and of the others, their numbers, those that multiply in 8 bits, the bytes of
    the optimizer's states, of small weights and of what unpacks packed ones, the elements that ZeRO 3 shares out, and
    the six numbers of `_as_saved`."""
    packed = {f"{name}.weight": module for name, module in hf.named_modules() if isinstance(module, Packed)}
    sizes, counts = {True: 0.0, False: 0.0}, {True: 0.0, False: 0.0}
    small = scales = elements = 0.0
    for name, weight in hf.named_parameters():
        layer, size = packed.get(name), float(weight.numel() * weight.element_size())
        beside = 0 if layer is None else layer.scales
        shared = weight.numel() - beside  # a byte of packed ones is an element
        is_trained = weight.requires_grad and role.is_trained
        sizes[is_trained] += size
        counts[is_trained] += weight.numel() if layer is None else layer.number
        small += size - beside if shared <= SMALL else 0.0
        scales += beside
        elements += shared
    states, apart = states_in(role, hf), _as_saved(hf, packed)
    return [*sizes.values(), *counts.values(), float(num_in_fp8(hf)), *states, small, scales, elements, *apart]


def _as_saved(hf: PreTrainedModel, packed: Mapping[str, Packed]) -> list[float]:
    """From `Counted.num_whole` to `Counted.num_in_adapter`."""
    whole = narrow = in_adapter = 0.0
    merged = [(0.0, 0.0)]  # of each weight its numbers, and those that are held in fewer bits
    for name, weight in hf.named_parameters():
        layer = packed.get(name)
        if weight.requires_grad:
            whole += 0 if OF_ADAPTER in name else weight.numel()
        elif layer is not None or BENEATH.search(name):
            number = float(weight.numel() if layer is None else layer.number)
            merged.append((number, number * (weight.element_size() < SINGLE)))
        else:
            narrow += weight.numel() if weight.element_size() == HALF else 0
    for weight in hf.state_dict(keep_vars=True).values():
        in_adapter += weight.numel() if weight.requires_grad else 0
    return [whole, sum(number for number, _ in merged), *max(merged, key=sum), narrow, in_adapter]


def states_in(role: Role, hf: PreTrainedModel) -> States:
    """What the optimizer keeps of the weights that train."""
    trained = {name: p.shape for name, p in hf.named_parameters() if role.is_trained and p.requires_grad}
    return all_states(role.train, weight_kinds(hf, head_of(hf)), trained)
