"""Work on rows in several processes, in their order."""

import os
import signal
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context
from typing import Any, TypeVar

from alignment.config.errors import UserError
from alignment.process import die_with_parent, environment

Item = TypeVar("Item")
Result = TypeVar("Result")
AHEAD = 2  # items for each process that are handed out and not yet taken back
TOKENIZERS = "TOKENIZERS_PARALLELISM"
_work: Callable[[Any], Any] | None = None


def cores() -> int:
    """That this process may use."""
    return len(os.sched_getaffinity(0))


def in_order(items: Iterable[Item], work: Callable[[Item], Result], processes: int) -> Iterator[Result]:
    """`work` of each item, in the order of these; only so many are under way that memory does not grow.

    Raises:
        what `work` raises of an item, when its turn comes.
        UserError: a process is gone.
    """
    if processes == 1:
        yield from map(work, items)
        return
    under_way: deque[Future[Result]] = deque()
    with (
        environment(TOKENIZERS, "false"),  # which fork, and must have no threads of their own
        ProcessPoolExecutor(processes, get_context("fork"), initializer=_begin, initargs=(work,)) as pool,
    ):
        try:
            for item in items:
                under_way.append(pool.submit(_do, item))
                if len(under_way) > AHEAD * processes:
                    yield under_way.popleft().result()
            while under_way:
                yield under_way.popleft().result()
        except BrokenProcessPool as error:
            what = "a process that read rows is gone, as where the machine has no memory left"
            raise UserError(f"{what} ({processes} of them were at work)") from error
        finally:
            pool.shutdown(cancel_futures=True)


def _begin(work: Callable[[Any], Any]) -> None:
    global _work
    _work = work
    die_with_parent()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the one who waits for them is told
    for number in (signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, signal.SIG_DFL)


def _do(item: Any) -> Any:
    assert _work is not None
    return _work(item)
