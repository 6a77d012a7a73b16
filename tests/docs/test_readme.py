"""What README.md tells people to type: each command composes, each block of Python runs."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
OWN = ("FILE.", "PROMPTS.")  # of one's own: test_own_data.py runs them
COMMANDS = [
    line.split("#")[0].strip()
    for line in README.splitlines()
    if line.startswith("    alignment run ") and not any(word in line for word in OWN)
]
PYTHON = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)


def test_there_is_something_to_test():
    assert len(COMMANDS) >= 6
    assert len(PYTHON) >= 1


@pytest.mark.parametrize("command", [c for c in COMMANDS if "my_recipes" not in c and "--help" not in c])
def test_command_composes(command):
    words = [word for word in shlex.split(command)[1:] if word not in ("-m", "--cfg", "job")]
    words = [word.replace("0.1,0.2", "0.1") for word in words]
    printed = subprocess.run(
        [sys.executable, "-m", "alignment", *words, "--cfg", "job"],
        capture_output=True,
        text=True,
        cwd=ROOT,
        check=False,
    )
    assert printed.returncode == 0, printed.stderr
    assert "output_dir:" in printed.stdout


@pytest.mark.parametrize("block", PYTHON)
def test_python_runs(block):
    exec(compile(block, "README.md", "exec"), {})


def test_scripts_are_there():
    for script in re.findall(r"bash (scripts/\w+\.sh)", README):
        assert (ROOT / script).is_file()
