"""The batch planner: which examples make a step, and how a step is cut into micro-batches.

A step's set is a pure function of (seed, step): the data are shuffled anew for each pass, the passes are laid end to
end, and step k takes the k-th slice. So one integer is the whole data position.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from alignment.config.parts import BatchConfig, TrainConfig
from alignment.data.pack import Batch, laid_out_length, pack
from alignment.data.tokenize import Example


@dataclass(slots=True)
class Batches:
    """Examples and how to batch them."""

    examples: list[Example]
    config: BatchConfig
    seed: int
    pad_id: int
    rank: int = 0
    num_ranks: int = 1

    def step(self, index: int) -> list[Batch]:
        """This rank's micro-batches of optimizer step `index` (from 0); the ranks' together are the step's examples."""
        rows = self.step_rows(index)
        lengths = [laid_out_length(self.examples[row], self.config.layout) for row in rows]
        pieces = deal(cut(lengths, self.config.max_tokens), lengths, self.num_ranks)[self.rank]
        return [self._pack([rows[i] for i in piece]) for piece in pieces]

    def step_rows(self, index: int) -> list[int]:
        """The examples of optimizer step `index`, in the order of the shuffled passes."""
        first = index * self.config.size
        return [self._row(place) for place in range(first, first + self.config.size)]

    def once(self) -> list[Batch]:
        """This rank's micro-batches of a pass over every example; the ranks' together hold each once."""
        return self.share(range(len(self.examples)))[0]

    def spare(self) -> list[Batch]:
        """What this rank runs behind `once` and does not count: a batch, where others have one more than it has.

        Ranks that share weights out must run equally many forwards.
        """
        return self.share(range(len(self.examples)))[1]

    def share(self, rows: Iterable[int]) -> tuple[list[Batch], list[Batch]]:
        """This rank's micro-batches of the examples at `rows`, and its spare ones."""
        chosen = list(rows)
        lengths = [laid_out_length(self.examples[row], self.config.layout) for row in chosen]
        pieces = evened(cut(lengths, self.config.max_tokens), self.num_ranks)
        mine = pieces[self.rank :: self.num_ranks]
        spare = pieces[:1] * (-(-len(pieces) // self.num_ranks) - len(mine))
        mine_packed, spare_packed = ([self._pack([chosen[i] for i in p]) for p in part] for part in (mine, spare))
        return mine_packed, spare_packed

    def rows_of(self, num_steps: int) -> list[int]:
        """The examples that the first `num_steps` steps touch, each once."""
        places = min(num_steps * self.config.size, len(self.examples))
        return sorted(self._row(place) for place in range(places))

    def num_steps(self, train: TrainConfig) -> int:
        """Steps of the whole run: `train.max_steps`, or what `train.epochs` passes make (the last step is full too)."""
        if train.max_steps is not None:
            return train.max_steps
        assert train.epochs is not None
        return max(1, int(np.ceil(train.epochs * len(self.examples) / self.config.size)))

    def _pack(self, rows: list[int]) -> Batch:
        examples = [self.examples[row] for row in rows]
        return pack(examples, rows, layout=self.config.layout, pad_id=self.pad_id)

    def _row(self, place: int) -> int:
        epoch, index = divmod(place, len(self.examples))
        return int(shuffled(len(self.examples), self.seed, epoch)[index])


def packed(examples: Sequence[Example], rows: Iterable[int], config: BatchConfig, pad_id: int) -> list[Batch]:
    """The examples at `rows`, cut into micro-batches and packed; each batch remembers its rows."""
    chosen = list(rows)
    lengths = [laid_out_length(examples[row], config.layout) for row in chosen]
    return [
        pack([examples[chosen[i]] for i in piece], [chosen[i] for i in piece], layout=config.layout, pad_id=pad_id)
        for piece in cut(lengths, config.max_tokens)
    ]


@lru_cache(maxsize=4)
def shuffled(count: int, seed: int, epoch: int) -> np.ndarray:
    """A permutation of `range(count)`, a pure function of its arguments."""
    return np.random.default_rng([seed, epoch]).permutation(count)


def cut(lengths: Sequence[int], max_tokens: int) -> list[list[int]]:
    """Indices in micro-batches of similar length, each of at most `max_tokens` when padded to its longest.

    One item that is longer than the budget makes a micro-batch of its own.
    """
    pieces: list[list[int]] = []
    longest = 0
    for index in sorted(range(len(lengths)), key=lambda i: (-lengths[i], i)):
        if pieces and longest * (len(pieces[-1]) + 1) <= max_tokens:
            pieces[-1].append(index)
        else:
            pieces.append([index])
            longest = lengths[index]
    return pieces


def evened(pieces: list[list[int]], num_ranks: int) -> list[list[int]]:
    """The pieces, the fullest halved until there are as many for each rank, or none is left that can be halved."""
    pieces = [list(piece) for piece in pieces]
    while len(pieces) % num_ranks:
        fullest = max(range(len(pieces)), key=lambda p: len(pieces[p]))
        if len(pieces[fullest]) == 1:
            break
        piece = pieces.pop(fullest)
        pieces += [piece[: len(piece) // 2], piece[len(piece) // 2 :]]
    return pieces


def deal(pieces: list[list[int]], lengths: Sequence[int], num_ranks: int) -> list[list[list[int]]]:
    """The micro-batches of each rank: equally many, since every rank must take part in every backward pass, and of
    about equally many tokens.

    Raises:
        ValueError: there are not enough items to give every rank as many.
    """
    pieces = evened(pieces, num_ranks)
    if len(pieces) % num_ranks:
        raise ValueError(f"batch.size must be a multiple of the {num_ranks} processes, got {len(lengths)}")
    dealt: list[list[list[int]]] = [[] for _ in range(num_ranks)]
    tokens = [0] * num_ranks
    for piece in sorted(pieces, key=lambda piece: -sum(lengths[i] for i in piece)):
        open_ranks = [rank for rank in range(num_ranks) if len(dealt[rank]) < len(pieces) // num_ranks]
        lightest = min(open_ranks, key=lambda rank: tokens[rank])
        dealt[lightest].append(piece)
        tokens[lightest] += sum(lengths[i] for i in piece)
    return dealt
