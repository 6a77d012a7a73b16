"""A scoring function of the user's that fails, in several processes: all of them end alike, and say it once."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path


def test_all_processes_are_told_the_same(tmp_path: Path, run_ranks: Callable[..., None]) -> None:
    """The main one alone asks the function; after an error the next question is all the others' too."""
    run_ranks(Path(__file__).with_name("function_ranks.py"), [str(tmp_path)], processes=2)
    first, second = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in (0, 1))
    assert first == second
    assert first.pop("good") == [[1.0, 3.0]]
    assert first.pop("raises").startswith("ConfigError: gold raised KeyError: 'no such reply' (")
    assert first == {
        "None": "ConfigError: gold must return a list of 2 numbers, one a reply, got NoneType",
        "nan": "ConfigError: gold must give finite scores, got nan for reply 2 of 2",
        "length": "ConfigError: gold must give 2 replies a score each, got 1",
    }


def test_a_run_of_two_processes_ends_in_one_line(tmp_path: Path, environment: Callable[..., dict[str, str]]) -> None:
    """In the second iteration, with what the first has left."""
    (tmp_path / "my_rules.py").write_text(
        "asked = []\n\ndef rule(prompts, replies):\n    asked.append(1)\n"
        "    return None if len(asked) == 2 else [float(len(reply)) for reply in replies]\n"
    )
    words = ["tiny_ppo", "model.init.hidden_size=32", "model.init.intermediate_size=48", "data.train.limit=16"]
    words += ["data.eval.limit=null", "batch.size=4", "train.max_steps=3", "generation.max_new_tokens=4", "gold=null"]
    words += ["reward.function=my_rules.rule", "launch.processes=2", "distributed=zero1", "output_dir=out"]
    command = [sys.executable, "-m", "alignment", "run", *words, "distributed.device=cpu"]
    env = environment(XDG_CACHE_HOME=str(tmp_path), PYTHONPATH=str(tmp_path))
    ended = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=300, check=False)
    (line,) = ended.stderr.splitlines()
    assert ended.returncode == 2
    assert line.startswith(
        "alignment: tiny_ppo: step 2: reward.function must return a list of 8 numbers, one a reply, "
    )
    assert len((tmp_path / "out" / "metrics.jsonl").read_text().splitlines()) == 1
