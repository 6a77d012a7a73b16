"""The branch rule: which token of a packed row sees which.

A query sees a key that is not after it, of the same group, and in the prompt or in its own branch. With a sliding
window the distance is that of the position ids, which is the distance within the branch's own text.
"""

from collections.abc import Callable
from typing import Any

from torch import Tensor

from alignment.data.pack import Batch

Sees = Callable[[Any, Any, Tensor, Tensor], Tensor]


def branch_rule(batch: Batch, window: int | None = None) -> Sees:
    """(batch, head, query, key) -> bool, in the form of a flex_attention mask; indices are into the one row."""
    groups, branches, positions = batch.groups[0], batch.branches[0], batch.position_ids[0]

    def sees(_batch: Any, _head: Any, query: Tensor, key: Tensor) -> Tensor:
        is_seen = (query >= key) & (groups[query] == groups[key])
        is_seen = is_seen & ((branches[key] == 0) | (branches[query] == branches[key]))
        if window is not None:
            is_seen = is_seen & (positions[query] - positions[key] < window)
        return is_seen

    return sees
