"""What the trackers are told. Only tensorboard's package is there: the others are built, and not started."""

from pathlib import Path
from typing import Any

import pytest
from accelerate import PartialState
from accelerate.logging import get_logger
from accelerate.tracking import LOGGER_TYPE_TO_CLASS

from alignment.cli.compose import composing, resolve, single
from alignment.config.errors import ConfigError
from alignment.config.log import LogConfig, Tracker
from alignment.training.trackers import started_trackers

TOLD: dict[Tracker, dict[str, Any]] = {  # run and project, where accelerate's class keeps them
    Tracker.wandb: {"run_name": "PROJECT", "init_kwargs": {"name": "RUN"}},
    Tracker.trackio: {"run_name": "PROJECT", "init_kwargs": {"name": "RUN"}},
    Tracker.swanlab: {"run_name": "PROJECT", "init_kwargs": {"experiment_name": "RUN"}},
    Tracker.mlflow: {"experiment_name": "PROJECT", "run_name": "RUN"},
    Tracker.comet_ml: {"run_name": "PROJECT", "init_kwargs": {}},
    Tracker.clearml: {"user_provided_run_name": "RUN", "init_kwargs": {"project_name": "PROJECT"}},
    Tracker.aim: {"run_name": "RUN", "init_kwargs": {"experiment": "PROJECT"}},
    Tracker.tensorboard: {"run_name": "RUN"},
    Tracker.dvclive: {"init_kwargs": {"dir": "FOLDER/dvclive"}},
}


@pytest.mark.parametrize("kind", Tracker)
@pytest.mark.parametrize("project", [None, "mine"])
def test_a_run_is_named_by_its_folder_and_filed_under_its_project(
    kind: Tracker, project: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stored: list[dict[str, Any]] = []
    PartialState._reset_state()
    for tracker_class in LOGGER_TYPE_TO_CLASS.values():
        monkeypatch.setattr(tracker_class, "start", lambda self: get_logger("started").debug("as they all do"))
        monkeypatch.setattr(tracker_class, "store_init_configuration", lambda self, values: stored.append(values))
    with composing([]):
        config: Any = resolve(single("tiny_sft", ["seed=7"]))
    config.log = LogConfig(trackers=[kind, Tracker.wandb] if project else [kind], project=project)
    folder = tmp_path / "the_run"
    tracker, *_ = started_trackers(folder, config)
    words = {"RUN": "the_run", "PROJECT": project or "alignment", "FOLDER/dvclive": f"{folder}/dvclive"}

    def filled(value: Any) -> Any:
        return {key: filled(inner) for key, inner in value.items()} if isinstance(value, dict) else words[value]

    assert {name: vars(tracker)[name] for name in TOLD[kind]} == filled(TOLD[kind])
    assert stored[0]["seed"] == 7 and stored[0]["train.learning_rate"] == config.train.learning_rate


def test_a_project_needs_a_tracker_that_has_one() -> None:
    LogConfig(project="mine", trackers=[Tracker.tensorboard, Tracker.mlflow])
    with pytest.raises(ConfigError, match=r"^log.project needs one of log.trackers that has projects, got 'mine'$"):
        LogConfig(project="mine", trackers=[Tracker.tensorboard])
