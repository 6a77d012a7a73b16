"""The room as a whole: light to import, complete in what it exports."""

import subprocess
import sys

import alignment.losses


def test_importing_the_losses_imports_torch_and_nothing_else_heavy():
    heavy = "accelerate datasets deepspeed hydra matplotlib omegaconf pandas peft pyarrow rich transformers trl"
    check = f"import sys, alignment.losses; print([name for name in {heavy.split()} if name in sys.modules])"
    result = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


def test_every_exported_name_exists_once():
    names = alignment.losses.__all__
    assert len(names) == len(set(names))
    assert all(name in vars(alignment.losses) for name in names)
