"""What only a GPU can tell, in one go: the machine, the tests marked `gpu`, and the benchmark beside TRL.

    bash scripts/gpu.sh --data PAIRS.jsonl.gz --out gpu

--data: pairs in the form of HH-RLHF. --out gets gpu.json and gpu.md, and what each part said. A part that fails ends
the others no more than the tests do: it is in the table, and the exit code is 1. `--device cpu` tries the script, and
those tests that ask for no kernel of CUDA's, where there is no GPU; its figures say nothing.
"""

import argparse
import json
import os
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import torch
from benchmark import load
from benchmark_gpu import COLUMNS, SETTING, SIZE, cells
from benchmark_setting import make_tokenizer

from alignment.config.data import ExampleKind
from alignment.config.errors import UserError

HERE = Path(__file__).parent
PACKAGES = ("torch", "transformers", "trl", "peft", "deepspeed")
RAN = (0, 1)  # pytest's own codes of tests that passed, or failed
QUICK = ("--steps", "2", "--warmup", "1", "--ppo-steps", "1", "--methods", "dpo", "sft")
"""Of the trial on a CPU: TRL 1.12, for PPO, would have to be installed."""


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="pairs in the form of HH-RLHF")
    parser.add_argument("--out", type=Path, default=Path("gpu"))
    parser.add_argument("--device", choices=SETTING, default="cuda")
    parser.add_argument("--tests", nargs="+", default=["tests/gpu"], help="which of the tests marked `gpu`")
    asked = parser.parse_args()
    if asked.device == "cuda" and not torch.cuda.is_available():
        parser.error("there is no GPU here; --device cpu tries the script without one")
    if not asked.data.is_file():
        parser.error(f"--data must be a file of pairs, got {str(asked.data)!r} in {Path.cwd()}")
    asked.data, asked.out = asked.data.resolve(), asked.out.resolve()  # what follows runs elsewhere
    try:
        load(asked.data, make_tokenizer(asked.data), ExampleKind.pairs, SIZE)  # the benchmark comes behind the tests
    except (UserError, KeyError, TypeError) as error:  # of a row that has no text `chosen`, the latter two
        parser.error(f"--data must be pairs in the form of HH-RLHF: {type(error).__name__}: {error}")
    try:
        asked.out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        parser.error(f"--out must be a folder that can be written, got {str(asked.out)!r} ({error.strerror})")
    result = {"machine": machine(asked.device), "tests": tests(asked), "benchmark": benchmark(asked)}
    (asked.out / "gpu.json").write_text(json.dumps(result, indent=2))
    (asked.out / "gpu.md").write_text(page(result))
    print((asked.out / "gpu.md").read_text())
    return 0 if result["tests"]["exit"] == result["benchmark"]["exit"] == 0 else 1


def machine(device: str) -> dict[str, Any]:
    """The GPUs as torch sees them, and the packages."""
    gpus = range(torch.cuda.device_count() if device == "cuda" else 0)
    seen = [torch.cuda.get_device_properties(index) for index in gpus]
    return {
        "gpus": [f"{gpu.name}, {gpu.total_memory / 1e9:.0f} GB, sm_{gpu.major}{gpu.minor}" for gpu in seen],
        "cuda": torch.version.cuda,
        "cpus": os.cpu_count(),
        "packages": {name: version(name) for name in PACKAGES},
    }


def tests(asked: argparse.Namespace) -> dict[str, Any]:
    """How many of the tests marked `gpu` passed, and the names of those that did not."""
    report = asked.out / "tests.xml"
    report.unlink(missing_ok=True)
    command = [sys.executable, "-m", "pytest", "-m", "gpu", *asked.tests, f"--junitxml={report}", "-o", "addopts=-q"]
    stand_in = {"GPU_STAND_IN": "1"} if asked.device == "cpu" else {}
    exit_code = said(command, asked.out / "tests.log", stand_in)
    if not report.exists() or exit_code not in RAN:
        return {"exit": exit_code, "passed": 0, "skipped": [], "failed": ["pytest itself"]}
    cases = list(ElementTree.parse(report).iter("testcase"))
    names = {case: f"{case.get('classname')}::{case.get('name')}" for case in cases}
    failed = [names[case] for case in cases if case.find("failure") is not None or case.find("error") is not None]
    skipped = [names[case] for case in cases if case.find("skipped") is not None]
    passed = len(cases) - len(failed) - len(skipped)
    return {"exit": exit_code, "passed": passed, "skipped": skipped, "failed": failed}


def benchmark(asked: argparse.Namespace) -> dict[str, Any]:
    """The rows of benchmark_gpu.py; those that were measured where it failed in the middle."""
    out = asked.out / "benchmark.json"
    out.unlink(missing_ok=True)
    command = [sys.executable, str(HERE / "benchmark_gpu.py"), "--data", str(asked.data), "--out", str(out)]
    command += ["--device", asked.device, *(QUICK if asked.device == "cpu" else ())]
    exit_code = said(command, asked.out / "benchmark.log", {})
    return {"exit": exit_code, "rows": json.loads(out.read_text())["rows"] if out.exists() else []}


def said(command: list[str], log: Path, more: dict[str, str]) -> int:
    """The exit code of a command, which says what it has to say into a file and on the terminal."""
    environment = {**os.environ, **more}
    with log.open("w") as kept:
        running = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment, cwd=HERE.parent
        )
        assert running.stdout is not None
        for line in running.stdout:
            kept.write(line)
            print(line, end="", flush=True)
    return running.wait()


def page(result: dict[str, Any]) -> str:
    """The outcome as Markdown."""
    machine, tests, rows = result["machine"], result["tests"], result["benchmark"]["rows"]
    packages = ", ".join(f"{name} {number}" for name, number in machine["packages"].items())
    gpus = "; ".join(machine["gpus"]) or "no GPU: a trial of the script, whose figures say nothing"
    lines = [f"{gpus}. CUDA {machine['cuda']}, {packages}.", ""]
    lines += [f"Tests: {tests['passed']} passed, {len(tests['skipped'])} skipped, {len(tests['failed'])} failed."]
    lines += [f"- failed: {name}" for name in tests["failed"]] + [""]
    lines += [f"| {' | '.join(COLUMNS)} |", f"|{'---|' * len(COLUMNS)}"]
    lines += [f"| {' | '.join(cells(row))} |" for row in rows]
    if result["benchmark"]["exit"]:
        lines += ["", f"The benchmark ended with exit code {result['benchmark']['exit']}: see benchmark.log."]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.exit(main())
