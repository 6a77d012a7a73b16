"""Preference alignment that people trust: reward models with margins, PPO, DPO and its kin, and what surrounds them.

    import alignment

    run = alignment.run("dpo", model="my_sft_model", data=rows, train={"max_steps": 100})
    model, tokenizer = run.load()

`help(alignment.run)` has all of it; recipes/library.md shows the parts for a loop of one's own.
"""

from typing import TYPE_CHECKING

from alignment.lazy import exports

if TYPE_CHECKING:
    from alignment import config, data, losses, models
    from alignment.api.result import Run
    from alignment.api.run import run
    from alignment.config.errors import ConfigError, UserError
    from alignment.preempt import Preempted

__all__, __getattr__ = exports(
    __name__,
    {
        "ConfigError": "alignment.config.errors",
        "Preempted": "alignment.preempt",
        "Run": "alignment.api.result",
        "UserError": "alignment.config.errors",
        "config": "alignment.config",
        "data": "alignment.data",
        "losses": "alignment.losses",
        "models": "alignment.models",
        "run": "alignment.api.run",
    },
)
