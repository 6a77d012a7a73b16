"""Every preset and every recipe: it composes, says what it is, and states differences only."""

from collections.abc import Callable, Iterator
from dataclasses import asdict, is_dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, get_args, get_type_hints

import pytest
import yaml
from accelerate.tracking import LOGGER_TYPE_TO_CLASS
from omegaconf import OmegaConf

from alignment.cli.compose import composing, current_hydra, resolve, single
from alignment.cli.overrides import written
from alignment.cli.sources import schema
from alignment.config.cluster import ClusterConfig
from alignment.config.data import DataConfig
from alignment.config.distributed import DistributedConfig
from alignment.config.log import Tracker
from alignment.config.model import ModelConfig
from alignment.config.run import RunConfig
from alignment.config.tasks import TASKS
from alignment.runs.folder import RunFolder
from alignment.runs.lifecycle import write_config

REPOSITORY = Path(__file__).parents[2]
RECIPES = {path.stem: path for path in sorted((REPOSITORY / "recipes").glob("*.yaml"))}
PRESETS = {f"{path.parent.name}={path.stem}": path for path in sorted((REPOSITORY / "conf").glob("*/*.yaml"))}
ON_CARDS = ("_24gb", "_8x80gb")  # recipes of a method for a machine
GROUPS = {"model": ModelConfig, "data": DataConfig, "distributed": DistributedConfig, "cluster": ClusterConfig}
OWN = ["model.path=somewhere", "data.train.path=somewhere"]
REQUIRED = {  # what only the user knows
    "tiny_evaluate": ["runs={a: somewhere}", "baseline=a"],
    "evaluate": ["runs={a: somewhere}", "baseline=a", "data.eval.path=somewhere", "reward=somewhere"],
    "iterative_dpo": ["inputs={model: somewhere, reward: somewhere, prompts: somewhere}"],
    **{
        name: [*OWN]
        for name in ("sft", "reward", "reward_regression", "reward_process", "dpo", "orpo", "simpo", "cpo", "kto")
    },
    **{
        name: [*OWN, "reward.path=somewhere"]
        for name in ("ppo", "grpo", "rloo", "reinforce_pp", "online_dpo", "rejection")
    },
}
REQUIRED |= {f"{name}{card}": needs for name, needs in REQUIRED.items() for card in ON_CARDS}
PRESET_NEEDS = {
    "model": ["model.path=somewhere"],
    "data": ["data.train.path=somewhere"],
    "distributed": [],
    "cluster": [],
}
PIPELINES = [
    name for name, path in RECIPES.items() if {"task": "pipeline"} in yaml.safe_load(path.read_text())["defaults"]
]
NO_PATH = ["data=toy", "data=toy_graded", "model=tiny"]
NO_PATH += [name for name in PRESETS if name.startswith("model=") and "\npath: ???" not in PRESETS[name].read_text()]


def composed(recipe: str, *overrides: str, own: list[Path] | None = None) -> RunConfig:
    with composing(own or []):
        return resolve(single(recipe, [*REQUIRED.get(recipe, []), *overrides]))


def leaves(tree: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in tree.items():
        if isinstance(value, dict) and value:
            yield from leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def plain(config: object) -> dict[str, Any]:
    """The values of a config, as YAML would have them."""
    return dict(leaves(yaml.safe_load(OmegaConf.to_yaml(OmegaConf.structured(config)))))


def task_of(recipe: str) -> str:
    """What its defaults name, or those of the recipe that it builds on."""
    defaults = yaml.safe_load(RECIPES[recipe].read_text())["defaults"]
    named = [entry["task"] for entry in defaults if isinstance(entry, dict) and "task" in entry]
    return named[0] if named else task_of(defaults[0])


@pytest.mark.parametrize("recipe", RECIPES)
def test_recipe_composes(recipe: str) -> None:
    assert type(composed(recipe)) is TASKS[task_of(recipe)]


@pytest.mark.parametrize("preset", PRESETS)
def test_preset_composes(preset: str) -> None:
    group = preset.partition("=")[0]
    needs = [] if preset in NO_PATH else PRESET_NEEDS[group]
    config = composed("tiny_reward", preset, *needs)  # whose rows may have margins
    stated = yaml.safe_load(PRESETS[preset].read_text()) or {}
    values = plain(config)
    for key, value in leaves({key: value for key, value in stated.items() if key != "defaults"}):
        if value != "???":
            assert values[f"{group}.{key}"] == value


FILES = RECIPES | PRESETS | {path.name: path for path in sorted((REPOSITORY / "conf").glob("*.yaml"))}


@pytest.mark.parametrize("path", FILES.values(), ids=FILES)
def test_file_says_what_it_is_and_names_no_python(path: Path) -> None:
    text = path.read_text()
    assert text.startswith("# ") and len(text.splitlines()[0]) > 10
    assert "_target_" not in text
    assert "@package" not in text


def test_every_group_has_a_dataclass() -> None:
    assert {preset.partition("=")[0] for preset in PRESETS} == set(GROUPS)


@pytest.mark.parametrize("task", TASKS)
def test_every_task_is_the_module_of_its_name(task: str) -> None:
    assert callable(import_module(f"alignment.tasks.{task}").run)


@pytest.mark.parametrize("preset", PRESETS)
def test_preset_states_real_keys_and_differences_only(preset: str) -> None:
    stated = yaml.safe_load(PRESETS[preset].read_text()) or {}
    root = GROUPS[preset.partition("=")[0]]
    tree = OmegaConf.structured(root)
    same = []
    for key, value in leaves({key: value for key, value in stated.items() if key != "defaults"}):
        owner = root
        for name in key.split("."):
            hints = get_type_hints(owner) if is_dataclass(owner) else {name: Any}
            assert name in hints, f"{key} is no key of {root.__name__}"
            owner = next((part for part in (hints[name], *get_args(hints[name])) if is_dataclass(part)), dict)
        default = OmegaConf.to_container(tree, enum_to_str=True)
        for name in key.split("."):
            default = default.get(name) if isinstance(default, dict) else None
        if default == value:
            same.append(f"{key}: {value}")
    assert same == []


@pytest.mark.parametrize("recipe", RECIPES)
def test_recipe_states_differences_only(recipe: str, tmp_path: Path) -> None:
    """Against the same recipe without its own values: its task's defaults and its presets."""
    stated = yaml.safe_load(RECIPES[recipe].read_text())
    (tmp_path / "bare.yaml").write_text(yaml.safe_dump({"defaults": stated.pop("defaults")}))
    with composing([tmp_path]):
        bare = dict(leaves(OmegaConf.to_container(single("bare", []), resolve=False, enum_to_str=True)))
    same = [f"{key}: {value}" for key, value in leaves(stated) if key in bare and bare[key] == value]
    assert same == []


@pytest.mark.parametrize("recipe", [name for name in RECIPES if name not in PIPELINES])
def test_config_of_a_run_composes_back(recipe: str, tmp_path: Path) -> None:
    config = composed(recipe, "seed=7", f"output_dir={tmp_path}", "log.trackers=[tensorboard]")
    write_config(RunFolder(tmp_path), config)
    assert composed("config", own=[tmp_path]) == config


@pytest.mark.parametrize("recipe", PIPELINES)
def test_config_of_a_pipeline_composes_back(recipe: str, tmp_path: Path) -> None:
    config = composed(recipe)
    text = OmegaConf.to_yaml(OmegaConf.structured(config))
    (tmp_path / "again.yaml").write_text(f"defaults:\n  - task: pipeline\n  - _self_\n{text}")
    assert composed("again", own=[tmp_path]) == config


@pytest.mark.parametrize("task", TASKS)
def test_schema_is_closed_but_for_the_users_own_names(task: str) -> None:
    tree = schema(TASKS[task])
    OmegaConf.set_struct(tree, True)
    with pytest.raises(Exception, match="not in"):
        OmegaConf.update(tree, "anything", 1)
    if "model" in tree:
        OmegaConf.update(tree, "model.init.anything", 1)
        with pytest.raises(Exception, match="not in"):
            OmegaConf.update(tree, "model.anything", 1)


@pytest.mark.parametrize("task", TASKS)
def test_a_schema_is_the_caller_s_own(task: str) -> None:
    """It is made once, and what is done to one is not in the next."""
    mine = schema(TASKS[task])
    mine.output_dir = "mine"
    theirs = schema(TASKS[task])
    assert OmegaConf.is_interpolation(theirs, "output_dir") and not OmegaConf.is_interpolation(mine, "output_dir")
    theirs.output_dir = "theirs"
    assert mine.output_dir == "mine"
    assert OmegaConf.get_type(theirs) is TASKS[task]


PLAIN = ["plain", "a/b.c-d@e", "two words", "naïve ✓", "a#b", "~", "", " ", "tab\tbed"]
SIGNS = ["it's", 'say "no"', "a,b", "k=v", "[x]", "{x: y}", "a: b", "(x)", "back\\slash", 'odd\\"end\\', "C:\\new"]
LOOKALIKES = ["null", "true", "12", "1e3", "inf"]
VALUES = [None, True, False, 3, -1, 0.1, 1e-8, float("inf"), [], {}, [1, "a b", None], {"a": {"b": [1.5, "x,y"]}}]


@pytest.mark.parametrize("value", [*PLAIN, *SIGNS, *LOOKALIKES, *VALUES], ids=repr)
def test_written_value_is_read_back_by_hydra(value: object) -> None:
    with composing([]):
        tree = current_hydra().compose_config("tiny_sft", [f"+model.init.probe={written(value)}"], run_mode=None)
    assert OmegaConf.to_container(tree.model.init)["probe"] == value


def test_trackers_are_those_of_accelerate() -> None:
    assert {tracker.value for tracker in Tracker} == set(LOGGER_TYPE_TO_CLASS)


def test_two_composed_configs_share_nothing(tmp_path: Path) -> None:
    one, other = composed("tiny_sft"), composed("tiny_sft")
    one.model.init["hidden_size"] = 1  # type: ignore[attr-defined]
    assert asdict(other) != asdict(one)


@pytest.fixture(autouse=True)
def _in_an_empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], None] | None:
    monkeypatch.chdir(tmp_path)
    return None
