"""The replies that a run shows: `samples.jsonl`, one JSON object a reply."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from alignment.distributed.collectives import is_main
from alignment.runs.disk import naming
from alignment.runs.folder import RunFolder
from alignment.training.log import keep_rows_until


class SamplesLog:
    """Written by the main process alone, to be read as a table (`pandas.read_json(path, lines=True)`)."""

    def __init__(self, folder: Path, *, done: int) -> None:
        """`done` steps are in the log already; rows after them are forgotten, for a resumed run writes them again."""
        self.path = RunFolder(folder).samples
        if is_main():
            keep_rows_until(self.path, done)

    def write(self, step: int, split: str, rows: Iterable[dict[str, Any]]) -> None:
        """`split`: train or eval."""
        if not is_main():
            return
        if step == 0:  # as in the log of metrics
            self.path.unlink(missing_ok=True)
        lines = [json.dumps({"step": step, "split": split, **row}, ensure_ascii=False) + "\n" for row in rows]
        if lines:
            with naming(self.path), self.path.open("a") as file:
                file.writelines(lines)
