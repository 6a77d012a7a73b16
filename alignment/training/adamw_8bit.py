"""bitsandbytes' AdamW in 8 bits, and its states in pages: in a module of its own, for it is an extra."""

from collections.abc import Iterable
from typing import Any

from bitsandbytes.optim import AdamW8bit
from torch import Tensor
from torch.optim import Optimizer

from alignment.config.optimizer import MIN_8BIT

STATES = ("state1", "state2")
"""What may be in pages; the scales of blocks never are."""


class AdamWOfBits(AdamW8bit):
    """With the bits of each group's states in the group. bitsandbytes' own way is a list by the weights' addresses,
    which outlives them and is for all optimizers of a process together."""

    def __init__(self, settings: Iterable[dict[str, Any]], *, is_paged: bool, **constants: Any) -> None:
        """`is_paged`: whether the states of large weights on a GPU are in pages, which the driver moves between its
        memory and the machine's."""
        super().__init__(settings, **constants, min_8bit_size=MIN_8BIT, is_paged=is_paged)
        if is_paged:
            self.register_state_dict_post_hook(_plain)

    def get_config(self, gindex: int, pindex: int, group: dict[str, Any]) -> dict[str, Any]:
        return {**super().get_config(gindex, pindex, group), "optim_bits": group["optim_bits"]}

    def load_state_dict(self, state_dict: dict[str, Any], move_to_device: bool = True) -> None:
        """bitsandbytes' own has all states on the GPU from here on, and none in pages: these go back into them, and
        into those that there are, for it never gives one back to the system."""
        if not self.is_paged:
            super().load_state_dict(state_dict, move_to_device)
            return
        before = dict(self.state)
        super().load_state_dict(state_dict, move_to_device=False)
        for weight, state in self.state.items():
            for name, value in state.items():
                if name in STATES:
                    state[name] = self._in_place(weight, value, before.get(weight, {}).get(name))
                elif isinstance(value, Tensor):
                    state[name] = value.to(weight.device)

    def _in_place(self, weight: Tensor, value: Tensor, own: Any) -> Any:
        """A state where bitsandbytes has a new one of this weight; `own`: what the weight has already."""
        if own is None or (own.shape, own.dtype) != (value.shape, value.dtype):
            own = self.get_state_buffer(weight, dtype=value.dtype)
        return own.copy_(value)


def _plain(optimizer: Optimizer, state_dict: dict[str, Any]) -> dict[str, Any]:
    """Without what marks a tensor as a page: a file would keep it, and what is read from a file is none."""
    states = {
        number: {name: value.detach() if isinstance(value, Tensor) else value for name, value in state.items()}
        for number, state in state_dict["state"].items()
    }
    return {**state_dict, "state": states}
