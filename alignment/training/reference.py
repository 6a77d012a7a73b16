"""The log-probs of a frozen reference, computed once before the first step: no second model stays in memory.

They are computed in parts of a few thousand examples, and each part is kept as soon as it is whole: beside the data,
under a name made of everything it depends on, the reference's weights, the precision, and the token ids, which
hold tokenizer, template, data and truncation. So a run that was stopped in the middle computes the rest, rows that are
added cost no more than their own part, and later epochs, seeds and sweeps read them all.
"""

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from stat import S_IMODE

import numpy as np
import torch
import xxhash
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from alignment.config.errors import UserError
from alignment.config.hub import Kind, pinned_name
from alignment.config.reference import ReferenceConfig
from alignment.config.train import OnNonFinite
from alignment.config.user_cache import user_cache
from alignment.data.batches import Batches
from alignment.data.numbers import numbers
from alignment.data.sequences import Chosen
from alignment.data.tokenize import Example
from alignment.distributed.collectives import is_main, sum_over_ranks, tensor_from_main
from alignment.distributed.engine import Engine
from alignment.distributed.frozen import FrozenEngine
from alignment.models.adapters import lora_layers
from alignment.models.forwards import forwards
from alignment.models.heads import LanguageModel
from alignment.models.readout import token_logprobs
from alignment.models.soft_prompt import NAME as SOFT_PROMPT
from alignment.runs.written import whole_file
from alignment.terminal import progress, say

PART = 4096  # examples: what a stop costs at most, and enough for micro-batches that are full


@dataclass(frozen=True, slots=True)
class ReferenceCache:
    """Where the parts of tables are kept."""

    folder: Path
    weights: xxhash.xxh3_128
    """Of the reference, by `weights_digest`."""

    def file(self, examples: Sequence[Example]) -> Path:
        """Of the part of these examples."""
        return self.folder / f"{name_of(self.weights, examples)}.safetensors"


def reference_logprobs(
    engine: Engine | FrozenEngine, batches: Batches, rows: Iterable[int], *, cache: ReferenceCache | None = None
) -> Tensor:
    """[examples, n] float32: summed log-probs (nats) of each example's n completions, which are chosen and rejected
    where it is a pair, under the engine's model as it is now.

    Rows that `cache` holds are read, the others computed, each by one of the processes, and added to it part by part;
    the main process alone reads and writes. How a part's rows are computed depends on that part alone, so that a table
    that was begun twice has the same bits. Examples outside `rows` may be NaN, so that a use of one cannot pass unseen.
    """
    examples = batches.examples
    parts = [range(begin, min(begin + PART, len(examples))) for begin in range(0, len(examples), PART)]
    table = torch.full((len(examples), len(examples[0].completion_ids)), torch.nan)
    files = [cache.file(Chosen(examples, np.array(part))) for part in parts] if cache is not None and is_main() else []
    for part, file in zip(parts, files, strict=False):
        table[part.start : part.stop] = _read(file, table[part.start : part.stop])
    table = tensor_from_main(table)
    wanted = torch.zeros(len(examples), dtype=torch.bool)
    wanted[list(rows)] = True
    is_missing = wanted & table.isnan().any(1)
    missing = {part: (is_missing[part.start : part.stop].nonzero()[:, 0] + part.start).tolist() for part in parts}
    keeps = bool(files)
    for number, part in enumerate(parts, start=1):
        if not missing[part]:
            continue
        name = "reference" if len(parts) == 1 else f"reference, part {number} of {len(parts)}"
        own = table[part.start : part.stop]
        own[is_missing[part.start : part.stop]] = _computed(engine, batches, missing[part], name)
        keeps = keeps and _write(files[number - 1], own.clone())
    return table.to(engine.device)


def require_reference(table: Tensor, batches: Batches, rows: Iterable[int], choice: OnNonFinite) -> None:
    """Tell of rows for which the reference gives no number, before a step's loss is none.

    Raises:
        UserError: there are any, and `choice` is stop.
    """
    is_number = table.isfinite().all(1).tolist()
    broken = [row for row in rows if not is_number[row]]
    if not broken:
        return
    first = batches.examples[broken[0]].source
    line = f"the reference's log-probs are no finite numbers for {len(broken)} rows, first {first}"
    line += ": it is the model as it came, look there for weights that are none"
    if choice is OnNonFinite.stop:
        raise UserError(f"{line} (train.on_nonfinite=skip leaves steps with them out)")
    say(f"{line}; steps with them are left out")


def _computed(engine: Engine | FrozenEngine, batches: Batches, rows: list[int], name: str) -> Tensor:
    """[rows, n] in the order of `rows`, which is ascending; every process gets what all of them have computed."""
    table = torch.zeros(len(rows), len(batches.examples[0].completion_ids), device=engine.device)
    places = torch.tensor(rows, device=engine.device)
    engine.model.eval()
    read = partial(token_logprobs, engine.model)
    shown = progress(batches.once(rows), name)
    for batch, logprobs, counts in forwards(shown, read, device=engine.device, precision=engine.precision):
        if counts:
            found = batch.sum_by_completion(logprobs).view(-1, table.shape[1]).to(table.dtype)
            table[torch.searchsorted(places, batch.rows)] = found
    return sum_over_ranks(table).cpu()


def fingerprint(model: LanguageModel, examples: list[Example], precision: str) -> str:
    """A name for (weights, precision, token ids): another of any of them is another name."""
    return name_of(weights_digest(model, precision), examples)


def weights_digest(model: LanguageModel, precision: str) -> xxhash.xxh3_128:
    """Of the weights, which are where the model's placement has them, and what they compute in."""
    digest = xxhash.xxh3_128(precision.encode())
    digest.update(model.hf.config.to_json_string(use_diff=False).encode())  # heads, RoPE and the library's version
    for name, tensor in sorted(model.state_dict(keep_vars=True).items()):
        is_begun = ".lora_" in name or f".{SOFT_PROMPT}." in name
        if is_begun and not model.begins_adapted:  # a fresh one is random, and is off or adds nothing
            continue
        digest.update(name.encode())
        with model.placement.whole([tensor]):
            digest.update(tensor.detach().cpu().flatten().contiguous().view(torch.uint8).numpy().data)
    if model.begins_adapted:  # by what an adapter's outputs are multiplied is in no weight
        digest.update(repr([sorted(layer.scaling.items()) for layer in lora_layers(model.hf)]).encode())
    return digest


def name_of(weights: xxhash.xxh3_128, examples: Sequence[Example]) -> str:
    digest = weights.copy()
    digest.update(numbers(examples, "tokens_hash").data)
    return digest.hexdigest()


def cache_folder(config: ReferenceConfig, data: str | None) -> Path:
    """`reference.folder`, else `.reference` beside the data, else, where that cannot be written, the user's cache."""
    if config.folder is not None:
        return Path(config.folder)
    if data is not None and pinned_name(data, Kind.data) is None and os.access(Path(data).parent, os.W_OK):
        return Path(data).parent / ".reference"
    return user_cache("reference")


def _read(path: Path, empty: Tensor) -> Tensor:
    """A part that was kept; the empty one where there is none, or where it cannot be read, which is said."""
    if not path.exists():
        return empty
    try:
        with safe_open(path, framework="pt") as file:
            table, recorded = file.get_tensor("logprobs"), (file.metadata() or {})["checksum"]
        if table.shape != empty.shape or checksum(table) != recorded:
            raise ValueError("its checksum is another")
    except (SafetensorError, KeyError, ValueError, OSError) as error:
        say(f"{path}: the reference cache is damaged and is computed again ({error})")
        return empty
    return table


def checksum(table: Tensor) -> str:
    return xxhash.xxh3_128(table.numpy().data).hexdigest()


def _write(path: Path, table: Tensor) -> bool:
    """Whether it could be written, and the next part is worth trying."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with whole_file(path) as beside:
            beside.touch()
            mode = beside.stat().st_mode  # safetensors makes its files for their owner alone
            save_file({"logprobs": table}, beside, metadata={"checksum": checksum(table)})
            beside.chmod(S_IMODE(mode))
    except (OSError, SafetensorError) as error:
        say(f"{path}: the reference cache cannot be written, the next run computes it again ({error})")
        return False
    return True
