"""What a model takes of a process's memory, counted before it is there.

One pass of it is run with tensors that have shapes and no numbers, on a model without weights (`counted_passes`), and
what its weights, gradients and optimizer take is counted of their shapes.
"""

from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, PreTrainedConfig, PreTrainedModel

from alignment.config.batch import Layout
from alignment.config.distributed import DistributedConfig
from alignment.config.folders import find_model
from alignment.distributed.collectives import pick_device
from alignment.distributed.placement import Whole
from alignment.distributed.precision import compute_dtype
from alignment.models.counted import Counted, Part, Phase, Role, Rows, heads_of, num_cached, of_pass
from alignment.models.counted_passes import passes_of
from alignment.models.folder import architecture_of, attention_of, read_shape
from alignment.models.held import States, held_of
from alignment.models.init import init_config
from alignment.models.optimizer_states import gradient_bytes
from alignment.models.packed import pack_layers
from alignment.models.prepare import prepared
from alignment.models.quantized import as_read, ask_packing, quantization_of, require_adapter
from alignment.models.rope import scale_rope
from alignment.models.tokenizer import load_tokenizer
from alignment.models.weight_dtype import frozen_in, made_in
from alignment.models.weights_counted import states_in, weights_of

__all__ = ["Footprint", "Role", "Rows", "counted_of", "footprint_of"]

MANY = 8192  # tokens of a pass, at which the phase that counts is the one that has most
DEPTHS = (2, 4)  # layers that are tried where a model has more
MARGIN = 1.05  # of what a pass takes: it does not rise evenly, where its last chunk of logits is a short one


@dataclass(frozen=True, slots=True)
class Footprint:
    """Bytes in one process."""

    held: float
    """Weights, gradients and optimizer, whatever a pass is of."""
    fixed: float
    """Of a pass, whatever its tokens: autocast's weights, a chunk of logits, gradients before they are added."""
    per_token: float
    """Of a pass, for each of its tokens."""
    gradients: float = 0.0
    """Of what is held, what is there while the model itself learns and gone while others do."""

    def of(self, tokens: int) -> float:
        """While a pass of so many tokens runs."""
        return self.held + self.fixed + self.per_token * tokens


def footprint_of(
    role: Role, rows: Rows, distributed: DistributedConfig, processes: int, *, layout: Layout = Layout.auto
) -> Footprint:
    """Of a model in one of so many processes.

    Raises:
        ConfigError: there is no such model.
        RuntimeError, and others: its code asks for the numbers in a tensor, of which there are none.
    """
    counted = counted_of(role, rows, compute_dtype(distributed), layout)
    held = held_of(
        counted.trained,
        counted.frozen,
        distributed,
        processes,
        is_gpu=pick_device(distributed.device).type == "cuda",
        averages=role.copies,
        states=counted.states,
        scales=counted.scales,
        gradients=gradient_bytes(role.train, counted.trained),
    )
    fixed, per_token = max(of_pass(counted.passes).T.tolist(), key=lambda phase: phase[0] + phase[1] * MANY)
    per_token = counted.own_part(per_token, distributed.sequence_parallel, compute_dtype(distributed).itemsize)
    return Footprint(held.on_device, MARGIN * fixed, MARGIN * per_token, held.on_device - held.between_steps)


def counted_of(role: Role, rows: Rows, compute: torch.dtype, layout: Layout) -> Counted:
    """A model that computes in that dtype.

    Raises:
        as `footprint_of`.
    """
    config, is_trusted = config_and_trust(role)
    build = partial(_counted, role, rows, compute, layout, is_trusted)
    num_layers = config.get_text_config().num_hidden_layers
    count, more = _drawn_out(config, build, is_even=role.is_even)
    found = count.tolist()
    trained, frozen, num_trained, num_frozen, num_fp8 = found[:5]
    states, (small, scales), passes = States(*found[5:9]), found[9:11], found[20:]
    shared, whole, merged, largest, unpacked, narrow, in_adapter, row, chunk = map(round, found[11:20])
    layer = (trained + frozen) / max(num_layers, 1) if more is None else float(more[:2].sum())
    many, few = np.array(passes).reshape(2, 2, len(Phase), len(Part))
    cached, heads, pieces = num_cached(config), heads_of(config), config.get_text_config().vocab_size
    numbers = round(num_trained), round(num_frozen), round(num_fp8)
    sizes = small, scales, shared, whole, merged, largest, unpacked, narrow, in_adapter
    return Counted(trained, frozen, *numbers, states, layer, *sizes, cached, heads, pieces, row, many, few, chunk)


def states_of_role(role: Role, compute: torch.dtype) -> States:
    """`Counted.states` alone, of a role that has been counted under another optimizer.

    Raises:
        as `footprint_of`.
    """
    config, is_trusted = config_and_trust(role)

    def build(cut: PreTrainedConfig) -> np.ndarray:
        return np.array(states_in(role, _without_weights(role, cut, compute, is_trusted=is_trusted)))

    return States(*_drawn_out(config, build, is_even=role.is_even)[0].tolist())


def _drawn_out(
    config: PreTrainedConfig, build: Callable[[PreTrainedConfig], np.ndarray], *, is_even: bool
) -> tuple[np.ndarray, np.ndarray | None]:
    """What is counted of all layers, and of one, None of so few, or such unlike ones, that all are counted."""
    num_layers = config.get_text_config().num_hidden_layers
    if num_layers <= DEPTHS[1] or not is_even:
        return build(config), None
    shallow, deep = (build(_cut(config, depth)) for depth in DEPTHS)  # what each further layer adds is the same
    more = (deep - shallow) / (DEPTHS[1] - DEPTHS[0])
    return shallow + more * (num_layers - DEPTHS[0]), more


def _counted(
    role: Role, rows: Rows, compute: torch.dtype, layout: Layout, is_trusted: bool, config: PreTrainedConfig
) -> np.ndarray:
    """What `weights_of` counts, the tokens of a row, `Counted.chunk`, and `Counted.passes` and `.few` laid out flat."""
    hf = _without_weights(role, config, compute, is_trusted=is_trusted)
    numbers = weights_of(role, hf)
    row, chunk, many, few = passes_of(role, rows, hf, compute, layout)
    return np.concatenate([numbers, [row, chunk], many.ravel(), few.ravel()])


def config_and_trust(role: Role) -> tuple[PreTrainedConfig, bool]:
    """The model's config, and whether code that comes with it may run."""
    config = role.settings
    if config.path is None:
        return init_config(config, {"vocab_size": len(load_tokenizer(config))}), False
    folder = find_model(config.path, role.key, trusted=config.trust_remote_code)
    return scale_rope(as_read(read_shape(folder), folder), config.rope, f"{role.key} {config.path!r}"), folder.trusted


def _cut(config: PreTrainedConfig, depth: int) -> PreTrainedConfig:
    """The config of a model of its first `depth` layers."""
    config = deepcopy(config)
    text = config.get_text_config()
    for key, value in list(vars(text).items()):
        if isinstance(value, list) and len(value) == text.num_hidden_layers:
            setattr(text, key, value[:depth])
    text.num_hidden_layers = depth
    return config


def _without_weights(
    role: Role, config: PreTrainedConfig, compute: torch.dtype, *, is_trusted: bool
) -> PreTrainedModel:
    """The model.

    Raises:
        ConfigError: its weights, which are to train, are packed; or are so already, and are to be packed.
    """
    config, settings = deepcopy(config), role.settings
    folder = None if settings.path is None else find_model(settings.path, role.key, trusted=is_trusted)
    if folder is not None:
        where = f"{role.key} {settings.path!r}"
        ask_packing(config, settings, compute, where, folder)
        if role.is_trained:
            require_adapter(config, settings, where)
    quantization = quantization_of(config)
    if quantization is not None:
        del config.quantization_config
    if role.is_scalar:
        config.num_labels = 1
    auto: Any = AutoModelForSequenceClassification if role.is_scalar else AutoModelForCausalLM
    attention = attention_of(architecture_of(auto, config, role.key, folder), config, settings.attention, role.key)
    held = frozen_in(settings.fp8, config.dtype, compute)
    with torch.device("meta"), made_in(torch.float32 if role.is_trained and not settings.keeps_base else held):
        hf = auto.from_config(config, attn_implementation=attention, dtype=torch.float32, trust_remote_code=is_trusted)
    if quantization is not None:
        pack_layers(hf, quantization)
    with torch.device("meta"):
        return prepared(hf, settings, Whole(compute))
