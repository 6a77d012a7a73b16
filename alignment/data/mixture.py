"""Which row each place of the endless sequence of training rows has, be they of one source or of several.

A source of share p has its k-th draw (from 0) at (k + 1/2) / p places, and draws follow one another as they fall due,
a tie by the order of the sources. So any n places from the first on hold n p of it, to within half a draw for each
source that there is; with shares by rows, as many places as there are rows hold each row once. A source goes through
its rows in passes laid end to end, each shuffled anew. All of it is a function of seed, shares and place alone.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from itertools import accumulate

import numpy as np

from alignment.config.sources import TrainSource


@dataclass(frozen=True, slots=True)
class Portion:
    """The rows of one source, which stand together among the examples, one source's behind another's."""

    name: str
    """"" where there is one source alone, without a name."""
    rows: int
    share: float
    """Of the places, in (0, 1]; all sources' together are 1."""


def portions(rows: Mapping[str, int], weights: Mapping[str, float]) -> tuple[Portion, ...]:
    """Of so many rows of each source, and in the shares of its weight over all weights."""
    total = sum(weights[name] for name in rows)
    return tuple(Portion(name, count, weights[name] / total) for name, count in rows.items())


def weights_of(source: TrainSource, rows: Mapping[str, int]) -> dict[str, float]:
    """Those that a mix gives, or else n**(1/T), n being the rows of a source and T `temperature` (Arivazhagan et al.
    1907.05019, section 3; the alpha of XLM and mT5, 1901.07291 and 2010.11934, is 1/T)."""
    return {name: source.mix[name].weight or count ** (1 / source.temperature) for name, count in rows.items()}


def spans(rows: Mapping[str, int]) -> dict[str, range]:
    """Where the rows of each source stand."""
    ends = accumulate(rows.values())
    return {name: range(end - count, end) for (name, count), end in zip(rows.items(), ends, strict=True)}


class Order:
    """The rows at places, counted from 0."""

    def __init__(self, portions: Sequence[Portion], seed: int) -> None:
        self.portions = portions
        self.shares = np.array([portion.share for portion in portions])
        self.starts = [0, *accumulate(portion.rows for portion in portions)]
        self.passes: list[Callable[[int], np.ndarray]] = [
            lru_cache(maxsize=2)(partial(shuffled, portion.rows, seed, source=number))
            for number, portion in enumerate(portions)
        ]

    def rows(self, first: int, last: int) -> np.ndarray:
        """[last - first] int64, the rows at the places from `first` on, `last` not among them."""
        sources, draws = drawn(self.shares, first, last)
        found = np.empty(last - first, dtype=np.int64)
        for number, portion in enumerate(self.portions):
            at = np.flatnonzero(sources == number)
            passes, within = np.divmod(draws[at], portion.rows)
            for each in np.unique(passes).tolist():
                here = passes == each
                found[at[here]] = self.starts[number] + self.passes[number](each)[within[here]]
        return found

    def touched(self, places: int) -> np.ndarray:
        """The rows at the first `places` places, each once, sorted."""
        found = []
        for number, count in enumerate(self.counts(places)):
            of_first_pass = self.passes[number](0)[: min(count, self.portions[number].rows)]
            found.append(self.starts[number] + np.sort(of_first_pass))
        return np.concatenate(found)

    def counts(self, places: int) -> list[int]:
        """How many of the first `places` places each source has."""
        before, sources, _ = due(self.shares, places, places)
        inside = sources[: places - before.sum()]
        counts: list[int] = (before + np.bincount(inside, minlength=len(before))).tolist()
        return counts


def drawn(shares: np.ndarray, first: int, last: int) -> tuple[np.ndarray, np.ndarray]:
    """[last - first] int64 each: of every place from `first` on its source, and which draw from that one it is."""
    before, sources, draws = due(shares, first, last)
    chosen = slice(first - before.sum(), last - before.sum())
    return sources[chosen], draws[chosen]


def due(shares: np.ndarray, first: int, last: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The draws around the places from `first` to `last`: how many of each source are left out, all of which lie before
    `first`, and then source and number of each draw, in order, to behind `last`.

    The draws that are due before place n are n of all sources together, to within half a draw for each source: so that
    a window wider by a place a source holds what is asked for, whatever is rounded.
    """
    slack = len(shares) + 1
    begins = np.maximum(0, np.floor(shares * (first - slack))).astype(np.int64)
    counts = np.ceil(shares * (last + slack)).astype(np.int64) + 1 - begins
    sources = np.repeat(np.arange(len(shares)), counts)
    draws = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts - begins, counts)
    order = np.lexsort((sources, (draws + 0.5) / shares[sources]))
    return begins, sources[order], draws[order]


def shuffled(count: int, seed: int, epoch: int, source: int = 0) -> np.ndarray:
    """A permutation of `range(count)`, a pure function of its arguments."""
    return np.random.default_rng([seed, epoch, source] if source else [seed, epoch]).permutation(count)
