"""Write the tables "planned against measured" of recipes/memory.md: python scripts/write_measured.py

On a CPU: each run is planned, and run with all its tensors counted.
"""

import json
import os
import re
from pathlib import Path
from tempfile import TemporaryDirectory

from measured_runs import FULL, IN_TWO, RUNS, STAGES, checkpointing, measured, save_base, write_rows

from alignment.distributed.launch import launch
from alignment.plan.roles import Counts

PAGE = Path(__file__).parents[1] / "recipes" / "memory.md"
HEAD = "| run | without checkpointing | with it |"
HEAD_OF_TWO = f"| two processes | {' | '.join(f'ZeRO {stage}' for stage in STAGES)} |"


def cell(found: dict[str, float]) -> str:
    planned, alive = found["planned"], found["alive"]
    return f"{planned / 1e6:.1f} planned, {alive / 1e6:.1f} alive: {planned / alive:.2f}"


def in_two_processes(words: list[str], number: int) -> dict[str, float]:
    out = Path(f"two{number}.json")
    own = [*words, "launch.processes=2"]
    launch([str(Path(__file__).with_name("measured_runs.py")), str(out), *own], 2)
    found: dict[str, float] = json.loads(out.read_text())
    return found


def table(head: str, runs: dict[str, list[str]]) -> str:
    counts, lines = Counts(), [head, "|---|---|---|"]
    for name, words in runs.items():
        folders = [f"{head[2:5]}{len(lines)}_{number}" for number in (0, 1)]
        both = [checkpointing(words, is_on=is_on) for is_on in (False, True)]
        cells = [cell(measured(*each, counts)) for each in zip(both, folders, strict=True)]
        lines.append(f"| {name} | {' | '.join(cells)} |")
        print(lines[-1], flush=True)
    return "\n".join(lines)


def table_of_two() -> str:
    lines = [HEAD_OF_TWO, f"|---{'|---' * len(STAGES)}|"]
    for name, words in IN_TWO.items():
        runs = [[*words, f"distributed.zero={stage}"] for stage in STAGES]
        cells = [cell(in_two_processes(own, 10 * len(lines) + stage)) for stage, own in zip(STAGES, runs, strict=True)]
        lines.append(f"| {name} | {' | '.join(cells)} |")
        print(lines[-1], flush=True)
    return "\n".join(lines)


def put(path: Path, tables: list[str]) -> None:
    page = path.read_text()
    for each in tables:
        before = re.search(rf"^{re.escape(each.splitlines()[0])}\n(\|.*\n)+", page, re.MULTILINE)
        assert before is not None
        page = page.replace(before[0], f"{each}\n")
    path.write_text(page)


def main() -> None:
    with TemporaryDirectory() as folder:
        os.chdir(folder)
        write_rows(Path())
        save_base(Path("base"))
        measured(FULL["reward model"], "reward", Counts())
        put(PAGE, [table(HEAD, RUNS), table_of_two()])


if __name__ == "__main__":
    main()
