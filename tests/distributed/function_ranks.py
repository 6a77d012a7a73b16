"""What one process of two is told by scoring functions that fail, one after the other, and by a good one at the end.

python function_ranks.py OUT with RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT set; writes OUT/RANK.json.
"""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from alignment.config.distributed import Device, DistributedConfig
from alignment.config.errors import UserError
from alignment.data.records import Record, Source
from alignment.data.tokenize import Example
from alignment.distributed import collectives
from alignment.generation.function import FunctionScorer
from alignment.generation.generate import Reply
from alignment.generation.samples import Samples


def failing(prompts: list[Any], replies: list[str]) -> list[float]:
    raise KeyError("no such reply")


FUNCTIONS: dict[str, Callable[[list[Any], list[str]], Any]] = {
    "raises": failing,
    "None": lambda prompts, replies: None,
    "nan": lambda prompts, replies: [0.0, float("nan")],
    "length": lambda prompts, replies: [0.0],
    "good": lambda prompts, replies: [float(len(reply)) for reply in replies],
}


def samples() -> Samples:
    ids = np.array([5, 6], dtype=np.int32)
    record = Record([{"role": "user", "content": "q"}], (), None, Source("rows.jsonl", 1))
    example = Example(ids, (ids, ids), None, Source("rows.jsonl", 1), (True, True))
    return Samples([record], [example], [[Reply(ids, True, "a"), Reply(ids, True, "bbb")]])


def main() -> None:
    collectives.init(DistributedConfig(device=Device.cpu, zero=1))
    told: dict[str, Any] = {}
    for name, function in FUNCTIONS.items():
        asked: list[str] = []

        def counted(prompts: list[Any], replies: list[str], function: Any = function, asked: Any = asked) -> Any:
            asked.extend(replies)
            return function(prompts, replies)

        try:
            told[name] = FunctionScorer(counted, "gold").score(samples()).tolist()
        except UserError as error:
            told[name] = f"{type(error).__name__}: {error}"
        assert asked == (["a", "bbb"] if collectives.is_main() else [])
    (Path(sys.argv[1]) / f"{collectives.rank()}.json").write_text(json.dumps(told))


main()
