"""What a model takes of a process's memory, counted before it is there.

One pass of it is run with tensors that have shapes and no numbers, on a model without weights: whatever the
architecture keeps for its backward pass, with checkpointing, adapters and autocast as they are asked for, and what is
alive for a moment only, is seen as it is made and as it goes. Two such passes, one of twice the tokens, say what a
token takes and what a pass takes beside its tokens; two more say it of few, whose logits are one chunk.
"""

from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass, fields, replace
from functools import partial
from logging import getLogger
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch._subclasses import fake_tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, PreTrainedConfig, PreTrainedModel

from alignment.config.batch import Layout
from alignment.config.distributed import DistributedConfig
from alignment.config.errors import ConfigError
from alignment.config.folders import find_model
from alignment.data.pack import Batch, pack
from alignment.data.records import Source
from alignment.data.tokenize import Example
from alignment.distributed.collectives import pick_device
from alignment.distributed.placement import Whole
from alignment.distributed.precision import compute_dtype
from alignment.models.allocations import leave_meta, peaks_of
from alignment.models.counted import Counted, Part, Phase, Role, Rows, heads_of, num_cached, of_pass
from alignment.models.folder import architecture_of, attention_of, read_shape
from alignment.models.heads import LanguageModel, ScalarModel, tokens_at_once
from alignment.models.held import States, held_of
from alignment.models.init import init_config
from alignment.models.layer_kinds import check_branches
from alignment.models.optimizer_states import gradient_bytes
from alignment.models.packed import pack_layers
from alignment.models.prepare import prepared
from alignment.models.quantized import ask_packing, quantization_of, require_adapter
from alignment.models.rope import scale_rope
from alignment.models.tokenizer import load_tokenizer
from alignment.models.weight_dtype import frozen_in, made_in
from alignment.models.weights_counted import states_in, weights_of

__all__ = ["Footprint", "Role", "Rows", "counted_of", "footprint_of"]

TOKENS = 2048  # of the smaller pass at least: more than a chunk of logits of most vocabularies
getLogger(fake_tensor.__name__).disabled = True  # what cannot be counted is told in a line, by whoever asked
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
    states, (small, scales, shared, *apart, row, chunk), passes = States(*found[5:9]), found[9:18], found[18:]
    layer = (trained + frozen) / max(num_layers, 1) if more is None else float(more[:2].sum())
    many, few = np.array(passes).reshape(2, 2, len(Phase), len(Part))
    cached, heads, pieces = num_cached(config), heads_of(config), config.get_text_config().vocab_size
    numbers = round(num_trained), round(num_frozen), round(num_fp8)
    whole = small, scales, round(shared), *map(round, apart)
    sizes = cached, heads, pieces, round(row)
    return Counted(trained, frozen, *numbers, states, layer, *whole, *sizes, many, few, round(chunk))


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
    layout = Layout.separate if layout is Layout.separate else _layout_of(hf)
    with FakeTensorMode() as fake:
        leave_meta(hf)
        reads_apart = role.is_scalar and not role.is_in_ppo  # scores at the ends; else every token is read
        model = (ScalarModel if role.is_scalar else LanguageModel)(hf, Whole(compute), reads_apart=reads_apart)
        peaks = partial(peaks_of, model, compute=compute, is_trained=role.is_trained, is_in_ppo=role.is_in_ppo)

        prompt, copies = model.soft_prompt(), rows.count if layout is Layout.separate else 1
        before = 0 if prompt is None else copies * prompt.length

        def pass_of(groups: int) -> tuple[int, np.ndarray]:
            """Tokens, as they are packed, and [Phase, Part] of a pass of so many rows."""
            batch = _batch(rows, groups, layout, fake)
            size = batch.input_ids.numel() + groups * before
            return size, peaks(batch, is_moved=role.settings.activation_offloading)

        groups = -(-TOKENS // rows.together)
        chunk = tokens_at_once(hf.config.get_text_config().vocab_size)
        at = pass_of(groups)
        few = many = _line(at, pass_of(2 * groups))
        if not role.is_scalar and 2 * rows.together <= chunk < 2 * groups * rows.together:
            few = _line(pass_of(1), pass_of(2))
        elif groups > 1 and role.is_trained:
            # Gradients and unpacked weights are whole however few the tokens: what is most of a backward pass of these
            # may come at another place than where there are many.
            few, chunk = many.copy(), at[0]
            few[:, Phase.backward :] = _line(pass_of(1), at)[:, Phase.backward :]
    return np.concatenate([numbers, [at[0] / groups, chunk], many.ravel(), few.ravel()])


def _line(small: tuple[int, np.ndarray], large: tuple[int, np.ndarray]) -> np.ndarray:
    """[2, Phase, Part] of what passes of so many tokens take: whatever these are, and for each of them."""
    per_token = (large[1] - small[1]) / (large[0] - small[0])
    return np.stack([small[1] - per_token * small[0], per_token])


def config_and_trust(role: Role) -> tuple[PreTrainedConfig, bool]:
    """The model's config, and whether code that comes with it may run."""
    config = role.settings
    if config.path is None:
        return init_config(config, {"vocab_size": len(load_tokenizer(config))}), False
    folder = find_model(config.path, role.key, trusted=config.trust_remote_code)
    return scale_rope(read_shape(folder), config.rope, f"{role.key} {config.path!r}"), folder.trusted


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


def _layout_of(hf: PreTrainedModel) -> Layout:
    """What it promises; whether it keeps to that, only its weights can tell."""
    try:
        check_branches(hf)
    except ConfigError:
        return Layout.separate
    return Layout.shared


def _batch(rows: Rows, groups: int, layout: Layout, fake: FakeTensorMode) -> Batch:
    """Every token is read out: prompts may be shorter than their limit, and a pass is filled with more completions."""
    prompt, completion = (np.zeros(length, dtype=np.int32) for length in (rows.prompt, rows.completion))
    example = Example(prompt, (completion,) * rows.count, None, Source("footprint", 1), (True,) * rows.count)
    batch = pack([example] * groups, range(groups), layout=layout, pad_id=0)
    targets = batch.input_ids.flatten()
    batch = replace(batch, positions=torch.arange(len(targets)), targets=targets)
    parts = (getattr(batch, field.name) for field in fields(batch))
    made: list[Any] = [fake.from_tensor(part) if isinstance(part, Tensor) else part for part in parts]
    return Batch(*made)
