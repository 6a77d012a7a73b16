"""The one batch type: a prompt and its n completions, laid out once.

    [prompt | completion 1 | ... | completion n]

Position ids restart at the end of the prompt in each branch, and a token attends to its own prompt and its own branch
only, so each completion sees exactly what it would see alone. All groups of a batch lie end to end in one row, so that
nothing is padding; attention goes group by group (models/attention.py).

Shapes: R rows, L row length, G groups (prompts), C = G * n completions, T completion tokens in the batch that are
learned: where a completion holds turns of others, those are seen and not read, E = C but where steps are labelled.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import torch
from torch import Tensor

from alignment.config.batch import Layout
from alignment.data.tokenize import Example

PADDING = -1  # the group of padding tokens, which belong to no example


@dataclass(slots=True)
class Batch:
    """Packed rows and where to read them. All index tensors point into the rows laid end to end, [R * L]."""

    input_ids: Tensor  # [R, L] long
    position_ids: Tensor  # [R, L] long; restarts after the prompt in each branch
    groups: Tensor  # [R, L] long; which prompt a token belongs to, PADDING for none
    branches: Tensor  # [R, L] long; 0 the prompt, k the k-th completion
    positions: Tensor  # [T] long; the hidden state that predicts each completion token, one token before it
    targets: Tensor  # [T] long; the completion tokens that are learned, completion by completion
    lengths: Tensor  # [C] long; learned tokens of each completion, all but those of others' turns; sums to T
    ends: Tensor  # [E] long; where completions are scored: at their last real tokens, or at the ends of their steps
    num_ends: Tensor  # [C] long; how many each completion has, 1 where it is scored as a whole; sums to E
    prompt_positions: Tensor  # [U] long; the hidden states that predict the prompts' tokens (all but their first)
    prompt_targets: Tensor  # [U] long
    prompt_lengths: Tensor  # [G] long; predicted tokens of each prompt; sums to U
    rows: Tensor  # [G] long; the example of each prompt
    margins: Tensor | None  # [G] float32; rating margins, where the data asks for them
    labels: Tensor | None  # [E] bool or float32; what the data say of single completions, or of their steps
    weights: Tensor  # [G] float32; what each row counts in the mean of a loss, 1 where the data say nothing
    longest: tuple[int, int]  # of `lengths` and of `prompt_lengths`, where no GPU has to be asked for them
    branch_lengths: tuple[tuple[int, ...], ...]
    """[G][1 + n], tokens of each group's prompt and completions in the one row of the shared layout; () in the other"""

    @property
    def shared(self) -> bool:
        """Groups and branches lie in one row: the attention must keep them apart."""
        return bool(self.branch_lengths)

    @property
    def group_lengths(self) -> tuple[int, ...]:
        """Tokens of each group of the one row; () in the separate layout."""
        return tuple(map(sum, self.branch_lengths))

    @property
    def plain_lengths(self) -> tuple[int, ...]:
        """Of these the prompt's and first completion's, which are one plain text."""
        return tuple(prompt + first for prompt, first, *_ in self.branch_lengths)

    @property
    def replies(self) -> int:
        """n, completions of each prompt."""
        return len(self.lengths) // len(self.rows)

    @property
    def num_tokens(self) -> int:
        """T, the completion tokens that are learned."""
        return len(self.targets)

    @property
    def total_weight(self) -> float:
        """The number of prompts, each counted by its weight."""
        return self.weights.sum().item()

    @property
    def token_weights(self) -> Tensor:
        """[T]: of each learned token its row's."""
        of_replies = self.weights.repeat_interleave(self.replies)
        return of_replies.repeat_interleave(self.lengths, output_size=self.num_tokens)

    def to(self, device: torch.device) -> "Batch":
        parts = (getattr(self, field.name) for field in fields(self))
        moved: list[Any] = [part.to(device, non_blocking=True) if isinstance(part, Tensor) else part for part in parts]
        return Batch(*moved)

    def sum_by_completion(self, values: Tensor) -> Tensor:
        """[T] -> [C], the sum over each completion's tokens."""
        return _table(values, self.lengths, self.longest[0]).sum(1)  # not index_add, whose order is open

    def sum_by_prompt(self, values: Tensor) -> Tensor:
        """[U] -> [G], the sum over each prompt's predicted tokens."""
        return _table(values, self.prompt_lengths, self.longest[1]).sum(1)

    def completion_mask(self) -> Tensor:
        """[C, max length] bool, True on a completion's tokens, which come first."""
        steps = torch.arange(self.longest[0], device=self.lengths.device)
        return steps < self.lengths[:, None]

    def by_completion(self, values: Tensor) -> Tensor:
        """[T] -> [C, max length], zeros after each completion's end."""
        return _table(values, self.lengths, self.longest[0])


def _table(values: Tensor, lengths: Tensor, longest: int) -> Tensor:
    """[sum of lengths] -> [runs, longest], zeros after each run's end. Every value has a place of its own, so that
    neither a mask has to be counted nor the order of sums is open on a GPU."""
    gaps = torch.arange(len(lengths), device=lengths.device) * longest - (lengths.cumsum(0) - lengths)
    order = torch.arange(len(values), device=lengths.device)
    places = order + gaps.repeat_interleave(lengths, output_size=len(values))
    table = values.new_zeros(len(lengths) * longest).index_copy(0, places, values)
    return table.view(len(lengths), longest)


def packed_length(example: Example, layout: Layout) -> int:
    """Tokens that an example takes, the padding between its own rows included."""
    lengths = [len(ids) for ids in example.completion_ids]
    if layout is Layout.separate:
        return len(lengths) * (len(example.prompt_ids) + max(lengths))
    return len(example.prompt_ids) + sum(lengths)


def pack(examples: Sequence[Example], rows: Sequence[int], *, layout: Layout, pad_id: int) -> Batch:
    """Lay examples out as one batch.

    Args:
        examples: each with the same number of completions, none of them empty.
        rows: what to call each example (its index in the data set).
        layout: `shared` lays a prompt out once; `separate` gives each completion its own copy and its own row.
        pad_id: fills the ends of rows in the separate layout; never read by attention or by a read-out.
    """
    if layout is Layout.auto:
        raise ValueError("a layout must be settled before anything is packed: see models/layout.py")
    if len({len(example.completion_ids) for example in examples}) != 1:
        raise ValueError("examples of one batch must have the same number of completions")
    builder = _Builder(pad_id)
    count = len(examples[0].completion_ids)
    for index, example in enumerate(examples):
        completions = _completions(example)
        copies = (
            [(0, completions)]
            if layout is Layout.shared
            else [(index * count + branch, [completion]) for branch, completion in enumerate(completions)]
        )
        for copy, (row, branches) in enumerate(copies):
            builder.add(row, example.prompt_ids, branches, read_prompt=copy == 0)
    grouped = examples if layout is Layout.shared else ()
    branch_lengths = tuple((len(e.prompt_ids), *map(len, e.completion_ids)) for e in grouped)
    return builder.finish(examples, rows, branch_lengths)


# Token ids [C_k], which of them are learned [C_k] bool, and those at which the completion is scored.
Completion = tuple[np.ndarray, np.ndarray, np.ndarray]


def _completions(example: Example) -> list[Completion]:
    everything = [np.ones(len(ids), dtype=bool) for ids in example.completion_ids]
    last = [np.array([len(ids) - 1]) for ids in example.completion_ids]
    ends = [np.array(example.ends)] if example.ends else last
    return list(zip(example.completion_ids, example.learned or everything, ends, strict=True))


class _Builder:
    """Rows under construction; read-outs are noted as (row, column) and flattened when the row length is known."""

    def __init__(self, pad_id: int) -> None:
        self.pad_id = pad_id
        self.tokens: dict[int, list[tuple[np.ndarray, np.ndarray, int, int]]] = {}
        self.used: dict[int, int] = {}
        self.reads: list[tuple[int, np.ndarray]] = []
        self.targets: list[np.ndarray] = []
        self.ends: list[tuple[int, np.ndarray]] = []
        self.prompt_reads: list[tuple[int, np.ndarray]] = []
        self.prompt_targets: list[np.ndarray] = []
        self.num_groups = 0

    def add(self, row: int, prompt: np.ndarray, completions: Sequence[Completion], *, read_prompt: bool) -> None:
        group, self.num_groups = self.num_groups, self.num_groups + 1
        start = self._write(row, prompt, np.arange(len(prompt)), group, 0)
        if read_prompt:
            self.prompt_reads.append((row, np.arange(start, start + len(prompt) - 1)))
            self.prompt_targets.append(prompt[1:])
        prompt_end = start + len(prompt) - 1
        for branch, (ids, learned, ends) in enumerate(completions, start=1):
            begin = self._write(row, ids, len(prompt) + np.arange(len(ids)), group, branch)
            predicts = np.concatenate(([prompt_end], np.arange(begin, begin + len(ids) - 1)))
            self.reads.append((row, predicts[learned]))
            self.targets.append(ids[learned])
            self.ends.append((row, begin + ends))

    def _write(self, row: int, ids: np.ndarray, positions: np.ndarray, group: int, branch: int) -> int:
        start = self.used.get(row, 0)
        self.tokens.setdefault(row, []).append((ids, positions, group, branch))
        self.used[row] = start + len(ids)
        return start

    def finish(
        self, examples: Sequence[Example], rows: Sequence[int], branch_lengths: tuple[tuple[int, ...], ...]
    ) -> Batch:
        num_rows, length = max(self.used) + 1, max(self.used.values())
        table = np.zeros((4, num_rows, length), dtype=np.int64)
        table[0], table[1], table[2] = self.pad_id, np.arange(length), PADDING  # padding goes on where its text ends
        for row, pieces in self.tokens.items():
            start = 0
            for ids, positions, group, branch in pieces:
                end = start + len(ids)
                table[:2, row, start:end] = ids, positions
                table[2, row, start:end], table[3, row, start:end] = group, branch
                start = end
        flat = [row * length + columns for row, columns in self.reads]
        prompt_flat = [row * length + columns for row, columns in self.prompt_reads]
        margins = [example.margin for example in examples]
        labels = [label for example in examples for label in example.labels]
        has_margins = margins[0] is not None
        input_ids, position_ids, groups, branches = torch.from_numpy(table).unbind(0)
        return Batch(
            input_ids=input_ids,
            position_ids=position_ids,
            groups=groups,
            branches=branches,
            positions=_joined(flat),
            targets=_joined(self.targets),
            lengths=torch.tensor([len(ids) for ids in self.targets]),
            ends=_joined([row * length + columns for row, columns in self.ends]),
            num_ends=torch.tensor([len(columns) for _, columns in self.ends]),
            prompt_positions=_joined(prompt_flat),
            prompt_targets=_joined(self.prompt_targets),
            prompt_lengths=torch.tensor([len(ids) for ids in self.prompt_targets]),
            rows=torch.tensor(list(rows)),
            margins=torch.tensor(margins, dtype=torch.float32) if has_margins else None,
            labels=torch.tensor(labels) if labels else None,
            weights=torch.tensor([example.weight for example in examples], dtype=torch.float32),
            longest=(max(map(len, self.targets)), max(map(len, self.prompt_targets))),
            branch_lengths=branch_lengths,
        )


def _joined(pieces: list[np.ndarray]) -> Tensor:
    return torch.from_numpy(np.concatenate(pieces).astype(np.int64))
