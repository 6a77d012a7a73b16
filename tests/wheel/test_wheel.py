"""The wheel, installed where no checkout is, finds its recipes and runs one."""

import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]
SMALL = ["train.max_steps=2", "data.train.limit=64", "data.eval.limit=8"]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("dist")
    words = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--quiet", "--wheel-dir", str(folder), str(REPOSITORY)]
    built = subprocess.run(words, capture_output=True, text=True)
    if built.returncode and "hatchling" in built.stderr:
        pytest.skip("hatchling cannot be fetched")
    assert built.returncode == 0, built.stderr
    (path,) = folder.glob("*.whl")
    return path


@pytest.fixture(scope="module")
def site(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that holds the installed wheel and nothing else."""
    folder = tmp_path_factory.mktemp("site")
    words = [sys.executable, "-m", "pip", "install", "--no-deps", "--no-index", "--quiet", "--target", str(folder)]
    subprocess.run([*words, str(wheel)], check=True)
    return folder


def run(site: Path, *words: str, folder: Path = Path("/")) -> subprocess.CompletedProcess[str]:
    """In that folder, with the wheel's package before an editable install's."""
    env = {**os.environ, "PYTHONPATH": str(site), "XDG_CACHE_HOME": str(site / "cache")}
    return subprocess.run([sys.executable, *words], cwd=folder, env=env, capture_output=True, text=True)


def test_wheel_holds_the_package_its_presets_and_its_recipes(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    for folder, inside in (("alignment", "alignment"), ("conf", "alignment/_conf"), ("recipes", "alignment/_recipes")):
        for path in (REPOSITORY / folder).rglob("*"):
            if path.is_file() and "__pycache__" not in path.parts:
                assert f"{inside}/{path.relative_to(REPOSITORY / folder).as_posix()}" in names
    assert not [name for name in names if name.startswith(("tests/", "conf/", "recipes/", "scripts/"))]


def test_wheel_is_what_is_imported(site: Path) -> None:
    code = "import alignment.cli.recipes as r; print(r.__file__, r.shipped('conf'), r.shipped('recipes'))"
    for place in run(site, "-c", code).stdout.split():
        assert Path(place).is_relative_to(site)


def test_command_is_declared_and_lists_the_recipes(site: Path) -> None:
    ended = run(site, str(site / "bin" / "alignment"), "recipes")
    assert ended.returncode == 0, ended.stderr
    names = {line.split()[0] for line in ended.stdout.splitlines()}
    assert names == {path.stem for path in (REPOSITORY / "recipes").glob("*.yaml")}


def test_wheel_runs_a_recipe(site: Path, tmp_path: Path) -> None:
    ended = run(site, "-m", "alignment", "run", "tiny_dpo", *SMALL, f"output_dir={tmp_path / 'out'}")
    assert ended.returncode == 0, ended.stderr
    rows = [json.loads(line) for line in (tmp_path / "out" / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [1, 2]
    assert (tmp_path / "out" / "model" / "model.safetensors").is_file()
    assert (tmp_path / "out" / "finished.json").is_file()


CARDS = {"24gb": "1x24GB", "8x80gb": "8x80GB"}
FOR_CARDS = [(method, card) for card in CARDS for method in ("sft", "reward", "dpo", "ppo", "grpo")]


@pytest.mark.parametrize(
    ("method", "card"),
    [pytest.param(*each, marks=() if each == ("dpo", "24gb") else pytest.mark.slow) for each in FOR_CARDS],
)
def test_wheel_plans_a_recipe_for_a_machine(site: Path, method: str, card: str, tmp_path: Path) -> None:
    """In an empty folder, of a model whose shape is in the package."""
    words = ["plan", f"{method}_{card}", "model=llama-3-8b", "--for", CARDS[card]]
    ended = run(site, str(site / "bin" / "alignment"), *words, folder=tmp_path)
    assert (ended.returncode, ended.stderr) == (0, "") and "\nfits: " in ended.stdout
    assert list(tmp_path.iterdir()) == []
