"""A run from Python that somebody interrupts."""

import signal
from collections.abc import Callable, Iterator
from typing import Any

import pytest

import alignment
from alignment.training import loop


@pytest.fixture
def interruptible() -> Iterator[None]:
    """Ctrl-C is heard, which it is not of a program that was started in the background."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture
def interrupted(interruptible: None, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """`alignment.run`, ended by Ctrl-C in its first step."""

    def run(recipe: str, **given: Any) -> None:
        due = loop.is_due

        def is_due(step: int, every: int, num_steps: int) -> bool:
            signal.raise_signal(signal.SIGINT)
            return due(step, every, num_steps)

        with monkeypatch.context() as patched:
            patched.setattr(loop, "is_due", is_due)
            with pytest.raises(KeyboardInterrupt):
                alignment.run(recipe, **given)

    return run
