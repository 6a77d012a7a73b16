"""The batch planner: which examples make a step, and how a step is cut into micro-batches.

A step's set is a pure function of (seed, step): the data are shuffled anew for each pass, the passes are laid end to
end, and step k takes the k-th slice. So one integer is the whole data position. With several sources the places of that
sequence are theirs in fixed shares (data/mixture.py).
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import groupby
from typing import Any, Generic, TypeVar

import numpy as np

from alignment.config.batch import BatchConfig, Layout
from alignment.config.train import TrainConfig
from alignment.data.mixture import Order, Portion, spans
from alignment.data.numbers import numbers, packed_as
from alignment.data.pack import Batch, pack
from alignment.data.sequences import Chosen
from alignment.data.tokenize import Example

Unit_co = TypeVar("Unit_co", covariant=True)
Piece = TypeVar("Piece", list[int], range)  # rows of one micro-batch


@dataclass(frozen=True, slots=True)
class EvenBatches(Generic[Unit_co]):
    """This process's batches, filled up with uncounted ones so that all processes run the same number of forwards, as
    ZeRO 3 needs it."""

    counted: Sequence[Unit_co]
    extra: Sequence[Unit_co] = ()
    """Run behind the others where another process has more, and not counted."""

    def __iter__(self) -> Iterator[tuple[Unit_co, bool]]:
        """Each batch, and whether it counts."""
        yield from ((batch, True) for batch in self.counted)
        yield from ((batch, False) for batch in self.extra)

    def __len__(self) -> int:
        return len(self.counted) + len(self.extra)


@dataclass(frozen=True, slots=True)
class Packer:
    """Makes batches of examples: bound once to their budget and layout, the padding, and this process's place."""

    config: BatchConfig
    pad_id: int
    rank: int = 0
    num_ranks: int = 1
    counts: bool = True
    """False of a process that reads the same rows as another, which counts them."""
    before: int = 0
    """Tokens that the model sets before each prompt, which count against the budget."""

    def train_batches(self, examples: Sequence[Example], rows: Iterable[int] | None = None) -> list[Batch]:
        """This rank's micro-batches of the examples at `rows` (None: of all): equally many on each rank, so that all
        take part in every backward pass, and about equally many tokens. Each batch remembers its rows.

        Raises:
            ValueError: there are not enough rows to give every rank as many micro-batches.
        """
        chosen, lengths = self._chosen(examples, rows)
        pieces = deal(cut(lengths, self.config.budget, self.config.layout), lengths, self.num_ranks)[self.rank]
        return [self.batch(examples, [chosen[i] for i in piece]) for piece in pieces]

    def eval_batches(self, examples: Sequence[Example], rows: Iterable[int] | None = None) -> EvenBatches[Batch]:
        """This rank's micro-batches of what is only looked at. The ranks' together count each example once. Each is
        packed as it is asked for, so that no more than one of them need be there."""
        chosen, lengths = self._chosen(examples, rows)
        pieces = evened(cut(lengths, self.config.budget, self.config.layout), self.num_ranks)
        mine = pieces[self.rank :: self.num_ranks]
        extra = pieces[:1] * (-(-len(pieces) // self.num_ranks) - len(mine))
        if not self.counts:
            mine, extra = [], mine + extra
        counted, uncounted = ([[chosen[i] for i in piece] for piece in part] for part in (mine, extra))
        return EvenBatches(Unpacked(self, examples, counted), Unpacked(self, examples, uncounted))

    def batch(self, examples: Sequence[Example], rows: Sequence[int]) -> Batch:
        """The examples at `rows` as one batch."""
        return pack([examples[row] for row in rows], rows, layout=self.config.layout, pad_id=self.pad_id)

    def _chosen(self, examples: Sequence[Example], rows: Iterable[int] | None) -> tuple[list[int], list[int]]:
        chosen = list(range(len(examples)) if rows is None else rows)
        lengths = numbers(Chosen(examples, np.array(chosen, dtype=np.int64)), packed_as(self.config.layout))
        is_copied = self.before > 0 and self.config.layout is Layout.separate and len(chosen) > 0
        copies = max(1, len(examples[chosen[0]].completion_ids)) if is_copied else 1
        return chosen, (lengths + copies * self.before).tolist()


@dataclass(frozen=True, slots=True)
class Unpacked(Sequence[Batch]):
    """Micro-batches of a pass over the data: each is packed anew whenever it is asked for."""

    packer: Packer
    examples: Sequence[Example]
    pieces: Sequence[list[int]]  # the rows of each

    def __len__(self) -> int:
        return len(self.pieces)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return Unpacked(self.packer, self.examples, self.pieces[index])
        return self.packer.batch(self.examples, self.pieces[index])


@dataclass(slots=True)
class Batches:
    """Examples, in which order they come, and how they are packed."""

    examples: Sequence[Example]
    packer: Packer
    seed: int
    portions: tuple[Portion, ...] = ()
    """The sources of the examples, in the order of these; (): there is one, without a name."""
    order: Order = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        self.order = Order(self.portions or (Portion("", len(self.examples), 1.0),), self.seed)

    def step(self, index: int) -> list[Batch]:
        """This rank's micro-batches of optimizer step `index` (from 0); the ranks' together are the step's examples."""
        return self.packer.train_batches(self.examples, self.step_rows(index))

    def step_rows(self, index: int) -> list[int]:
        """The examples of optimizer step `index`, in the order of the shuffled passes."""
        first = index * self.packer.config.size
        rows: list[int] = self.order.rows(first, first + self.packer.config.size).tolist()
        return rows

    def once(self, rows: Iterable[int] | None = None) -> EvenBatches[Batch]:
        """This rank's micro-batches of a pass over the examples at `rows` (None: over all)."""
        return self.packer.eval_batches(self.examples, rows)

    def of(self, rows: Sequence[int]) -> Batch:
        """These examples as one batch."""
        return self.packer.batch(self.examples, rows)

    def rows_of(self, num_steps: int) -> list[int]:
        """The examples that the first `num_steps` steps touch, each once."""
        rows: list[int] = self.order.touched(num_steps * self.packer.config.size).tolist()
        return rows

    def sets(self) -> dict[str, range]:
        """Where the rows of each source are; of one without a name, all of them by the name ""."""
        everything = {"": range(len(self.examples))}
        return spans({each.name: each.rows for each in self.portions}) if self.portions else everything

    def one_step_of(self, examples: Sequence[Example]) -> "Batches":
        """Others, all of which make a step."""
        config = replace(self.packer.config, size=len(examples))
        return Batches(examples, replace(self.packer, config=config), self.seed)

    def num_steps(self, train: TrainConfig) -> int:
        """Steps of the whole run: `train.max_steps`, or what `train.epochs` passes make (the last step is full too)."""
        if train.max_steps is not None:
            return train.max_steps
        assert train.epochs is not None
        return max(1, int(np.ceil(train.epochs * len(self.examples) / self.packer.config.size)))

    def epoch(self, step: int) -> float:
        """How many rows `step` steps have drawn, over the rows that there are; to four places."""
        return round(step * self.packer.config.size / len(self.examples), 4)


def cut(lengths: Sequence[int], max_tokens: int, layout: Layout) -> list[list[int]]:
    """Indices in micro-batches of at most `max_tokens` tokens, padding included, longest first.

    One item that is longer than the budget makes a micro-batch of its own.
    """
    order = sorted(range(len(lengths)), key=lengths.__getitem__, reverse=True)  # equal ones as they came
    return _first_fit(order, lengths, max_tokens) if layout is Layout.shared else _similar(order, lengths, max_tokens)


def _first_fit(order: Sequence[int], lengths: Sequence[int], max_tokens: int) -> list[list[int]]:
    """Lengths add up: each item goes to the first piece with room for it.

    `room` is a tree over the pieces, those not yet begun among them, in which a node has the most room of any piece
    beneath it: going down finds the piece, in as many looks as the tree is high. There are enough pieces, for all of
    them but one end more than half full.
    """
    begin = next((place for place, index in enumerate(order) if lengths[index] <= max_tokens), len(order))
    fitting = order[begin:]
    most = min(len(fitting), 2 * sum(lengths[index] for index in fitting) // max_tokens + 1)
    leaves = 1 << max(0, most - 1).bit_length()
    room = [max_tokens] * (2 * leaves)  # node k has the nodes 2k and 2k + 1 beneath it, and the root is 1
    pieces: list[list[int]] = [[] for _ in range(most)]
    for length, same in groupby(fitting, key=lengths.__getitem__):
        alike, done = list(same), 0
        while done < len(alike):
            node = 1
            while node < leaves:
                node = 2 * node if room[2 * node] >= length else 2 * node + 1
            count = room[node] // length  # so many of this length come here one after another
            taken = alike[done : done + count]
            pieces[node - leaves] += taken
            done += count
            room[node] -= len(taken) * length
            while node > 1 and room[node // 2] != (widest := max(room[node], room[node ^ 1])):
                node //= 2
                room[node] = widest
    return [[index] for index in order[:begin]] + [piece for piece in pieces if piece]


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


def evened(pieces: Sequence[Piece], num_ranks: int) -> list[Piece]:
    """The pieces, the fullest halved until there are as many for each rank, or none is left that can be halved."""
    pieces = list(pieces)
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
