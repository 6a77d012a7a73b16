"""Which rows are held out of training, by their prompts; and which prompts training and evaluation have in common."""

import json
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import xxhash

from alignment.config.errors import ConfigError
from alignment.data.loaded import Loaded
from alignment.data.mixture import spans
from alignment.data.records import Record
from alignment.data.sequences import chosen, column
from alignment.data.tokenize import Truncation

HASHES = 2**64


def hold_out(loaded: Loaded, fraction: float, seed: int) -> tuple[Loaded, Loaded]:
    """What is left to learn from, and the rows of about `fraction` of the prompts, of one prompt at least. Which ones
    is a function of a prompt's text and the seed, so that no other row has a say in it.

    Raises:
        ConfigError: all rows have one prompt, or a source has no row left to learn from.
    """
    hashes = prompt_hashes(loaded.records, seed)
    prompts = np.unique(hashes)
    if len(prompts) < 2:
        raise ConfigError(f"data.eval.fraction must be null for data of one prompt, of all {len(hashes)} rows")
    is_out = hashes < np.uint64(int(fraction * HASHES))
    if not is_out.any():
        is_out = hashes == prompts[0]
    elif is_out.all():
        is_out = hashes != prompts[-1]
    kept = _rows_at(loaded, ~is_out)
    bare = next((name for name, rows in kept.sources.items() if rows == 0), None)
    if bare is not None:
        rule = f"data.eval.fraction must leave rows of each source, and of data.train.mix.{bare} it takes all"
        raise ConfigError(f"{rule}, got {fraction:g}")
    out = _rows_at(loaded, is_out)
    sources = {name: rows for name, rows in out.sources.items() if rows}
    return kept, Loaded(out.records, out.examples, [], Truncation(), sources)


def num_prompts(loaded: Loaded) -> int:
    return len(np.unique(prompt_hashes(loaded.records, 0)))


def num_shared_prompts(train: Loaded, held_out: Loaded) -> tuple[int, int]:
    """How many prompts of the held-out rows are in the training rows too, and how many they have; texts without a
    prompt count by themselves."""
    asked = np.unique(prompt_hashes(held_out.records, 0))
    return int(np.isin(asked, prompt_hashes(train.records, 0)).sum()), len(asked)


def prompt_hashes(records: Sequence[Record], seed: int) -> np.ndarray:
    """[records] uint64, others for each seed: those of seed 0 are kept with the rows, and mixed with another seed's
    bits as SplitMix64 mixes its counter (Steele, Lea and Flood 2014), which makes no two of them the same."""
    hashes = column(records, "prompt_hash", prompt_hash, np.uint64)
    if not seed:
        return hashes
    mixed = hashes ^ np.uint64(xxhash.xxh3_64_intdigest(str(seed).encode()))
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        mixed = (mixed ^ (mixed >> np.uint64(shift))) * np.uint64(factor)
    return mixed ^ (mixed >> np.uint64(31))


def prompt_hash(record: Record) -> int:
    """Of the turns of a prompt as texts, and of a text that has no prompt; in [0, 2**64)."""
    turns = record.prompt or record.completions[0]
    text = json.dumps([0, *((turn["role"], turn["content"]) for turn in turns)])
    return xxhash.xxh3_64_intdigest(text.encode())


def _rows_at(loaded: Loaded, mask: np.ndarray) -> Loaded:
    """The rows where the mask holds, with what happened as all of them were read."""
    rows = np.flatnonzero(mask)
    return replace(
        loaded,
        records=chosen(loaded.records, rows),
        examples=chosen(loaded.examples, rows),
        sources={name: int(mask[span.start : span.stop].sum()) for name, span in spans(loaded.sources).items()},
    )
