"""The batch planner: which examples make a step, and how a step is cut into micro-batches.

A step's set is a pure function of (seed, step): the data are shuffled anew for each pass, the passes are laid end to
end, and step k takes the k-th slice. So one integer is the whole data position.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from alignment.config.parts import BatchConfig, TrainConfig
from alignment.config.vocabulary import Layout
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
        return dealt(self.examples, self.step_rows(index), self.config, self.pad_id, self.rank, self.num_ranks)

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
        return shared_out(self.examples, rows, self.config, self.pad_id, self.rank, self.num_ranks)

    def of(self, rows: Sequence[int]) -> Batch:
        """These examples as one batch."""
        return _packed(self.examples, list(rows), self.config, self.pad_id)

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

    def _row(self, place: int) -> int:
        epoch, index = divmod(place, len(self.examples))
        return int(shuffled(len(self.examples), self.seed, epoch)[index])


def dealt(
    examples: Sequence[Example], rows: Iterable[int], config: BatchConfig, pad_id: int, rank: int, num_ranks: int
) -> list[Batch]:
    """This rank's micro-batches of what is learned from: equally many on each, so that all take part in every backward
    pass, and about equally many tokens. Each batch remembers its rows.

    Raises:
        ValueError: there are not enough rows to give every rank as many micro-batches.
    """
    chosen = list(rows)
    lengths = [laid_out_length(examples[row], config.layout) for row in chosen]
    pieces = deal(cut(lengths, config.max_tokens, config.layout), lengths, num_ranks)[rank]
    return [_packed(examples, [chosen[i] for i in piece], config, pad_id) for piece in pieces]


def shared_out(
    examples: Sequence[Example], rows: Iterable[int], config: BatchConfig, pad_id: int, rank: int, num_ranks: int
) -> tuple[list[Batch], list[Batch]]:
    """This rank's micro-batches of what is only looked at, and its spare ones, with which all run equally many."""
    chosen = list(rows)
    lengths = [laid_out_length(examples[row], config.layout) for row in chosen]
    pieces = evened(cut(lengths, config.max_tokens, config.layout), num_ranks)
    mine = pieces[rank::num_ranks]
    spare = pieces[:1] * (-(-len(pieces) // num_ranks) - len(mine))
    mine_packed, spare_packed = (
        [_packed(examples, [chosen[i] for i in piece], config, pad_id) for piece in part] for part in (mine, spare)
    )
    return mine_packed, spare_packed


def _packed(examples: Sequence[Example], rows: list[int], config: BatchConfig, pad_id: int) -> Batch:
    return pack([examples[row] for row in rows], rows, layout=config.layout, pad_id=pad_id)


@lru_cache(maxsize=4)
def shuffled(count: int, seed: int, epoch: int) -> np.ndarray:
    """A permutation of `range(count)`, a pure function of its arguments."""
    return np.random.default_rng([seed, epoch]).permutation(count)


def cut(lengths: Sequence[int], max_tokens: int, layout: Layout) -> list[list[int]]:
    """Indices in micro-batches of at most `max_tokens` tokens, padding included, longest first.

    One item that is longer than the budget makes a micro-batch of its own.
    """
    order = sorted(range(len(lengths)), key=lambda i: (-lengths[i], i))
    return _first_fit(order, lengths, max_tokens) if layout is Layout.shared else _similar(order, lengths, max_tokens)


def _first_fit(order: Sequence[int], lengths: Sequence[int], max_tokens: int) -> list[list[int]]:
    """Lengths add up: each item goes to the first piece with room for it."""
    pieces: list[list[int]] = []
    room: list[int] = []
    for index in order:
        place = next((p for p, free in enumerate(room) if free >= lengths[index]), len(room))
        if place == len(room):
            pieces.append([])
            room.append(max_tokens)
        pieces[place].append(index)
        room[place] -= lengths[index]
    return pieces


def _similar(order: Sequence[int], lengths: Sequence[int], max_tokens: int) -> list[list[int]]:
    """Every item takes as much as the longest of its piece: neighbours in length go together."""
    pieces: list[list[int]] = []
    longest = 0
    for index in order:
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
