"""What the weights of a model come to before they are there: bytes and numbers."""

from transformers import PreTrainedModel

from alignment.models.counted import SMALL, Role
from alignment.models.fp8 import num_in_fp8
from alignment.models.held import States
from alignment.models.optimizer_states import all_states
from alignment.models.packed import Packed
from alignment.models.weight_kinds import head_of, weight_kinds


def weights_of(role: Role, hf: PreTrainedModel) -> list[float]:
    """The bytes of the weights that train and of the others, their numbers, those that multiply in 8 bits, the bytes of
    the optimizer's states, of small weights and of what unpacks packed ones, and the elements that ZeRO 3 shares
    out."""
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
    return [*sizes.values(), *counts.values(), float(num_in_fp8(hf)), *states_in(role, hf), small, scales, elements]


def states_in(role: Role, hf: PreTrainedModel) -> States:
    """What the optimizer keeps of the weights that train."""
    trained = {name: p.shape for name, p in hf.named_parameters() if role.is_trained and p.requires_grad}
    return all_states(role.train, weight_kinds(hf, head_of(hf)), trained)
