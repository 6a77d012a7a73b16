"""A pipeline pins the names that its stages read once, when it begins, and whoever runs it again reads the same."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from alignment.config.run import RunConfig
from alignment.tasks import pipeline
from tests.cli.conftest import Ended
from tests.hub.stand_in import StandIn

STAGE = """# A stage of its own
defaults: [tiny_dpo, override model: pretrained, override data: native, _self_]
model: {path: org/tiny}
data: {train: {path: "org/pairs:train_prefs"}, eval: {path: "org/pairs:test_prefs"}}
batch: {size: 4}
train: {max_steps: 1}
"""
PIPE = """# Two stages that read the same names
defaults: [{task: pipeline}, _self_]
output_dir: out
stages:
  - {name: first, recipe: stage.yaml}
  - {name: second, recipe: stage.yaml, set: {loss.beta: 0.2}}
"""
NEWER = {"generation_config.json": '{"eos_token_id": 2}'}


@pytest.fixture
def recipe(own: Callable[[str, str], str]) -> str:
    own("stage", STAGE)
    return own("pipe", PIPE)


def commits_of_stages(key: str = "model.path") -> list[str]:
    paths = [OmegaConf.select(OmegaConf.load(f"out/{stage}/config.yaml"), key) for stage in ("first", "second")]
    return [path.partition("@")[2] for path in paths]


def test_all_stages_have_the_commit_of_the_beginning_and_so_has_who_goes_on(
    hub: StandIn,
    alignment: Callable[..., Ended],
    again: Callable[..., None],
    recipe: str,
    model_folder: Path,
    pairs_repo: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    first = hub.commit("org/tiny", model_folder)
    execute, executed = pipeline.execute, list[RunConfig]()

    def then_the_hub_moves_on(config: RunConfig) -> None:
        if executed:
            raise KeyboardInterrupt
        executed.append(config)
        execute(config)
        hub.commit("org/tiny", NEWER)
        hub.commit("org/pairs", {"data/train-3.jsonl": '{"prompt": "a", "chosen": "b", "rejected": "c"}\n'}, "datasets")

    with monkeypatch.context() as broken:
        broken.setattr(pipeline, "execute", then_the_hub_moves_on)
        assert alignment("run", recipe).code == 130
    written = OmegaConf.load("out/config.yaml")
    assert written.commits == {"org/tiny": first, "datasets/org/pairs": pairs_repo}
    assert hub.times_asked("GET /api/models/org/tiny") == 2  # the commit, and its files: no stage has asked again
    again()
    hub.asked.clear()
    goes_on = alignment("run", recipe)
    assert (goes_on.code, goes_on.err) == (0, [])
    assert goes_on.out.count("unchanged, skipped") == 1 and hub.asked == []
    assert commits_of_stages() == [first, first]
    assert commits_of_stages("data.eval.path") == [pairs_repo, pairs_repo]
    again()
    assert alignment("run", "out/config.yaml").out.count("unchanged, skipped") == 2


def test_every_name_is_asked_for_before_a_stage_fetches(
    hub: StandIn, alignment: Callable[..., Ended], own: Callable[[str, str], str], model_folder: Path, pairs_repo: str
) -> None:
    hub.commit("org/tiny", model_folder)
    own("stage", STAGE)
    recipe = own("pipe", PIPE.replace("loss.beta: 0.2", "model.path: org/gone"))
    ended = alignment("run", recipe)
    line = "alignment: pipe: stage second: model.path: no such file or folder, got 'org/gone', and there is no model"
    assert ended.code == 2 and len(ended.err) == 1 and ended.err[0].startswith(line)
    assert hub.times_asked("GET /org/tiny/resolve") == 0 and not Path("out").exists()


def test_what_is_left_out_keeps_its_commits(
    hub: StandIn,
    alignment: Callable[..., Ended],
    again: Callable[..., None],
    own: Callable[[str, str], str],
    model_folder: Path,
    pairs_repo: str,
) -> None:
    own("stage", STAGE)
    recipe = own("pipe", PIPE.replace("loss.beta: 0.2", "model.path: org/other"))
    tiny, other = (hub.commit(name, model_folder) for name in ("org/tiny", "org/other"))
    assert alignment("run", recipe).code == 0
    again()
    hub.commit("org/other", NEWER)
    assert alignment("run", recipe, "only=[first]").code == 0
    again()
    assert alignment("run", recipe).out.count("unchanged, skipped") == 2
    assert commits_of_stages() == [tiny, other]


@pytest.mark.parametrize(
    ("commits", "line"),
    {
        "unread": ("{org/tyny: 'COMMIT'}", "commits.org/tyny is of a name that no stage reads; leave it out"),
        "a branch": ("{org/tiny: main}", "commits.org/tiny must be a commit's 40 hexadecimal digits, got 'main'"),
        "a path": ("{a/b/c: 'COMMIT'}", "commits must be of names on the hub, org/name, org/name@revision or "),
    }.values(),
)
def test_a_commit_that_would_do_nothing_is_refused(
    hub: StandIn,
    alignment: Callable[..., Ended],
    recipe: str,
    model_folder: Path,
    pairs_repo: str,
    commits: str,
    line: str,
) -> None:
    commit = hub.commit("org/tiny", model_folder)
    ended = alignment("run", recipe, f"commits={commits.replace('COMMIT', commit)}")
    assert ended.code == 2 and len(ended.err) == 1 and ended.err[0].startswith(f"alignment: pipe: {line}")
    assert not Path("out").exists()


def test_a_commit_that_is_given_is_read(
    hub: StandIn, alignment: Callable[..., Any], recipe: str, model_folder: Path, pairs_repo: str
) -> None:
    first = hub.commit("org/tiny", model_folder)
    hub.commit("org/tiny", NEWER)
    assert alignment("run", recipe, f"commits={{org/tiny: '{first}'}}").code == 0
    assert commits_of_stages() == [first, first]
