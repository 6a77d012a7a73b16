"""Weights for a server's GPU from many processes: whole in each, or sharded among them."""

from collections.abc import Callable
from pathlib import Path


def test_the_main_process_sends_all_of_them(run_ranks: Callable[..., None]) -> None:
    run_ranks(Path(__file__).with_name("transfer_ranks.py"), [], processes=2)
