"""The table of keys that may change as a run goes on: each key of each task has its group."""

from dataclasses import asdict, replace
from typing import Any

import pytest

from alignment.config.data import DataConfig
from alignment.config.model import ModelConfig
from alignment.config.sources import TrainSource
from alignment.config.supervised import DPOConfig
from alignment.config.tasks import TASKS
from alignment.config.train import TrainConfig
from alignment.runs.fingerprint import Fingerprint, defaults, fingerprint, flat, shown
from alignment.runs.steering import GROUPS, Group, covers, group_of, named_in_table

# What a run is of: with another one of these a checkpoint is of no use to it, or its steps could not be compared.
REFUSED = ("seed", "model.path", "model.lora.rank", "data.train.path", "data.format", "data.max_length", "batch.size")


@pytest.mark.parametrize("task", TASKS)
def test_every_key_is_in_the_table(task: str) -> None:
    """One that is not would be refused without anybody's having thought of it: add it to runs/steering.py."""
    keys = [key for key, _ in defaults(TASKS[task], "")]
    assert len(keys) > 5
    assert [key for key in keys if named_in_table(key) is None] == []


def test_no_name_is_in_two_groups() -> None:
    names = [name for names in GROUPS.values() for name in names]
    assert len(names) == len(set(names))


@pytest.mark.parametrize(
    ("key", "group", "with_best"),
    [
        *((key, Group.fixed, Group.fixed) for key in (*REFUSED, "loss.variant", "reward.path", "mine.own")),
        *(
            (key, Group.accepted, Group.accepted)
            for key in ("train.learning_rate", "loss.beta", "kl.weight", "version")
        ),
        *(
            (key, Group.free, Group.free)
            for key in ("log.every", "checkpoint.keep", "batch.max_tokens", "alarm.max_kl")
        ),
        ("train.epochs", Group.length, Group.length),
        ("train.eval_every", Group.free, Group.accepted),
        ("data.eval.path", Group.accepted, Group.fixed),
        ("data.eval.fraction", Group.fixed, Group.fixed),  # another one leaves other rows to learn from
    ],
)
def test_the_longest_name_decides(key: str, group: Group, with_best: Group) -> None:
    assert (group_of(key), group_of(key, has_best=True)) == (group, with_best)
    assert covers(key, key) and covers(key.partition(".")[0], key) and not covers(key, f"{key}_too")


@pytest.fixture
def config() -> DPOConfig:
    data = DataConfig(train=TrainSource("rows.jsonl"))
    return DPOConfig(model=ModelConfig(init={"model_type": "llama"}), data=data, train=TrainConfig(max_steps=2))


@pytest.fixture(autouse=True)
def _rows(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "rows.jsonl").write_text("one\n")


def test_keys_that_an_earlier_version_did_not_have_count_as_their_defaults(config: DPOConfig) -> None:
    now = fingerprint(config)
    earlier = Fingerprint(tuple((key, value) for key, value in now.entries if key not in ("loss.beta", "train.betas")))
    assert now.changes(earlier) == [] and now.is_same(earlier)
    other = fingerprint(replace(config, loss=replace(config.loss, beta=0.2)))
    assert shown(other.changes(earlier)) == "loss.beta was 0.1 and is 0.2"
    free = Fingerprint((*now.entries, ("alarm.window", "7"), ("log.every", "3")))  # which were noted once
    assert now.is_same(free)


def test_keys_of_former_names_count_as_what_they_are_called_now() -> None:
    now = Fingerprint((("num_samples", "4"), ("reward.missing_eos_penalty", "1.0")))
    assert now.is_same(Fingerprint((("missing_eos_penalty", "1.0"), ("ppo.replies", "4"))))
    assert (
        shown(now.changes(Fingerprint((("missing_eos_penalty", "1.0"), ("samples", "5")))))
        == "num_samples was 5 and is 4"
    )


def test_the_defaults_of_a_config_are_its_own(config: DPOConfig) -> None:
    """What nobody has set is, in a config that is made, what it is said to be."""
    made = dict(flat(asdict(config), ""))
    said = dict(defaults(DPOConfig, ""))
    asked = ("model.init", "data.train.path", "train.max_steps")
    assert {key: value for key, value in made.items() if not key.startswith(asked)} == {
        key: value for key, value in said.items() if not key.startswith(asked)
    }
