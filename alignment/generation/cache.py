"""Where a reply's keys and values are kept: in a cache that grows into room laid out beforehand, or in one place."""

from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache, StaticCache
from transformers.cache_utils import (
    DynamicLayer,
    DynamicSlidingWindowLayer,
    StaticLayer,
    StaticSlidingWindowLayer,
)

SHORTEST = 32  # tokens that prompts are padded to where shapes are to be few


def attended_in(states: Tensor) -> torch.dtype:
    """What attention computes in: positions make float32 of bfloat16 keys, which it would cast back at each token."""
    kind = states.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else states.dtype


def as_attended(*states: Tensor) -> list[Tensor]:
    return [each.to(attended_in(each)) for each in states]


class SlidingLayer(DynamicSlidingWindowLayer):
    """Keys and values of a window, in the dtype that attention computes in."""

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        return super().update(*as_attended(key_states, value_states), *args, **kwargs)


class PreallocatedLayer(DynamicLayer):
    """Keys and values in blocks with room for the whole reply, in the dtype that attention computes in: a step writes
    its own and copies no others."""

    def __init__(self, length: int) -> None:
        """`length`: of prompt and reply."""
        super().__init__()
        self.length = length
        self.blocks: list[Tensor] | None = None  # [rows, heads, length, D], of which keys and values are the beginning

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        key_states, value_states = as_attended(key_states, value_states)
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        before = self.get_seq_length()
        after = before + key_states.shape[2]
        if self.blocks is None:
            self.blocks = [
                new.new_empty(*new.shape[:2], self.length, new.shape[3]) for new in (key_states, value_states)
            ]
            if before:
                assert self.keys is not None and self.values is not None
                self._write(slice(before), self.keys, self.values)
        self._write(slice(before, after), key_states, value_states)
        self.keys, self.values = (block[:, :, :after] for block in self.blocks)
        return self.keys, self.values

    def batch_repeat_interleave(self, repeats: int) -> None:
        super().batch_repeat_interleave(repeats)
        self.blocks = None

    def batch_select_indices(self, indices: Tensor) -> None:
        super().batch_select_indices(indices)
        self.blocks = None

    def _write(self, places: slice, *states: Tensor) -> None:
        assert self.blocks is not None
        for block, state in zip(self.blocks, states, strict=True):
            block[:, :, places] = state


def new_cache(hf: Any, length: int) -> DynamicCache:
    cache = DynamicCache(config=hf.config)
    for place, layer in enumerate(cache.layers):
        if type(layer) is DynamicLayer:
            cache.layers[place] = PreallocatedLayer(length)
        elif type(layer) is DynamicSlidingWindowLayer:
            cache.layers[place] = SlidingLayer(layer.sliding_window)
    return cache


def whole_cache(hf: Any, length: int) -> DynamicCache:
    """The same, whose layers keep all keys, those that no window reaches any more too."""
    cache = DynamicCache(config=hf.config)
    cache.layers = [PreallocatedLayer(length) for _ in cache.layers]  # of what `splits`
    return cache


def splits(hf: Any) -> bool:
    """Whether the rows of the model's cache may be repeated and dropped: its layers are keys and values alone."""
    plain = (DynamicLayer, DynamicSlidingWindowLayer)
    return not hf._is_stateful and all(type(layer) in plain for layer in DynamicCache(config=hf.config).layers)


class FixedLayer(StaticLayer):
    """Keys and values whose place and shape never change, in the dtype that attention computes in."""

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        return super().update(*as_attended(key_states, value_states), *args, **kwargs)


class FixedSlidingLayer(StaticSlidingWindowLayer):
    """The same of a window."""

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        return super().update(*as_attended(key_states, value_states), *args, **kwargs)


class FixedCaches:
    """Caches whose shapes are few, so that a compiled step, or a graph of its kernels, serves all of a rollout: prompts
    are padded to a power of two, calls have the same number of rows, and each width has one cache, which is emptied and
    filled again."""

    def __init__(self, hf: Any) -> None:
        self.hf = hf
        self._by_length: dict[int, StaticCache] = {}

    @staticmethod
    def width(tokens: int) -> int:
        """What a prompt of these many tokens is padded to."""
        return max(SHORTEST, 1 << (tokens - 1).bit_length())

    def filled(self, prompts: DynamicCache, repeats: int, length: int) -> StaticCache:
        """The one of this length with the prompts' keys and values, each `repeats` times."""
        if length not in self._by_length:
            self._by_length[length] = self._new(length)
        cache = self._by_length[length]
        cache.reset()
        for layer, of in zip(cache.layers, prompts.layers, strict=True):
            assert isinstance(of, PreallocatedLayer) and of.keys is not None and of.values is not None
            assert isinstance(layer, StaticLayer)
            layer.update(of.keys.repeat_interleave(repeats, 0), of.values.repeat_interleave(repeats, 0))
        return cache

    def _new(self, length: int) -> StaticCache:
        cache = StaticCache(config=self.hf.config, max_cache_len=length)
        for place, layer in enumerate(cache.layers):
            if type(layer) is StaticLayer:
                cache.layers[place] = FixedLayer(length)
            elif type(layer) is StaticSlidingWindowLayer:
                cache.layers[place] = FixedSlidingLayer(length, layer.max_cache_len)
        return cache
