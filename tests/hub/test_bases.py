"""The base of an adapter that names it on the hub: whoever goes on with a run reads the one that it began with."""

from collections.abc import Callable
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from alignment.config.folders import find_model
from alignment.config.hub import located, read_at, reading_at
from alignment.hub.fetch import fetch_base
from alignment.training import supervised
from tests.cli.conftest import Ended
from tests.hub.adapters import make_adapter, other_weights
from tests.hub.stand_in import StandIn

DPO = (
    *("run", "tiny_dpo", "model=pretrained", "data=native", "data.train.path=org/pairs:train_prefs"),
    *("batch.size=4", "train.max_steps=2", "checkpoint.every=1", "output_dir=out"),
)


@pytest.mark.parametrize("where", ["a folder", "the hub"])
def test_a_run_that_goes_on_reads_the_base_that_it_began_with(
    where: str,
    hub: StandIn,
    alignment: Callable[..., Ended],
    again: Callable[..., None],
    machine: Callable[[str], None],
    model_folder: Path,
    pairs_repo: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    base = hub.commit("org/tiny", model_folder)
    adapter = make_adapter(model_folder, tmp_path / "adapter")
    path = str(adapter) if where == "a folder" else f"org/lora@{hub.commit('org/lora', adapter)}"
    train_step, taken = supervised.train_step, list[int]()

    def interrupted(*arguments: object) -> object:
        taken.append(1)
        if len(taken) == 2:
            raise KeyboardInterrupt
        return train_step(*arguments)

    monkeypatch.setattr(supervised, "train_step", interrupted)
    assert alignment(*DPO, f"model.path={path}").code == 130
    assert OmegaConf.load("out/config.yaml").commits == {"org/tiny": base}
    hub.commit("org/tiny", other_weights(model_folder, tmp_path / "other"))
    machine("b")
    goes_on = alignment(*DPO, f"model.path={path}")
    assert (goes_on.code, goes_on.err) == (0, [])
    assert f"the base of model.path: org/tiny is at {base[:12]}, as out/config.yaml has it" in goes_on.out
    machine("c")
    assert alignment("export", "out").code == 0
    assert find_model(path, "model.path").path == located(f"org/tiny@{base}")
    machine("d")
    newest = alignment(*DPO[:-1], f"model.path={path}", "output_dir=next", "train.max_steps=1")
    assert newest.code == 0
    assert OmegaConf.load("next/config.yaml").commits == {"org/tiny": hub.repo("org/tiny").refs["main"]}
    again()
    assert "finished already" in alignment("run", "out/config.yaml").out  # though the newer base was read here


@pytest.mark.parametrize("where", ["a folder", "the hub"])
def test_an_adapter_that_is_trained_on_stays_on_the_base_that_it_named(
    where: str, hub: StandIn, alignment: Callable[..., Ended], model_folder: Path, pairs_repo: str, tmp_path: Path
) -> None:
    """Which is `model.path` where that is null."""
    base = hub.commit("org/tiny", model_folder)
    adapter = make_adapter(model_folder, tmp_path / "adapter")
    path = str(adapter) if where == "a folder" else f"org/lora@{hub.commit('org/lora', adapter)}"
    words = (*DPO, "train.schedule=constant", "train.warmup_steps=0", f"model.adapter={path}")
    assert alignment(*words, "train.max_steps=1").code == 0
    written = OmegaConf.load("out/config.yaml")
    assert written.commits == {"org/tiny": base}
    assert (written.model.path, written.model.adapter, written.model.lora.rank) == (f"org/tiny@{base}", path, 2)
    hub.commit("org/tiny", other_weights(model_folder, tmp_path / "other"))
    goes_on = alignment(*words)
    assert (goes_on.code, goes_on.err) == (0, []) and "going on from" in goes_on.out
    assert alignment("export", "out").code == 0
    own = alignment(*words, f"model.path={model_folder}", "output_dir=own")  # the hub's base is not read
    assert own.code == 0 and OmegaConf.load("own/config.yaml").commits == {}


def test_another_base_is_asked_for_by_its_commit(
    hub: StandIn, alignment: Callable[..., Ended], model_folder: Path, pairs_repo: str, tmp_path: Path
) -> None:
    first = hub.commit("org/tiny", model_folder)
    hub.commit("org/tiny", other_weights(model_folder, tmp_path / "other"))
    adapter = make_adapter(model_folder, tmp_path / "adapter")
    words = (*DPO, f"model.path={adapter}", "train.max_steps=1")
    assert alignment(*words, f"commits={{org/tiny: '{first}'}}").code == 0
    assert OmegaConf.load("out/config.yaml").commits == {"org/tiny": first}
    refused = alignment(*words, f"commits={{org/tiny: '{hub.repo('org/tiny').refs['main']}'}}")
    assert refused.code == 2 and "the contents of the base of model.path changed" in refused.err[0]
    unread = alignment(*words[:-2], "model.path=org/tiny", f"commits={{org/tyny: '{first}'}}")
    assert unread.code == 2 and "commits.org/tyny is of a name that nothing reads; leave it out" in unread.err[0]


def test_what_one_run_reads_another_on_the_machine_does_not_change(
    hub: StandIn, again: Callable[..., None], model_folder: Path, tmp_path: Path
) -> None:
    first = hub.commit("org/tiny", model_folder)
    adapter = make_adapter(model_folder, tmp_path / "adapter")
    assert fetch_base(adapter, "model.path") == first
    with reading_at({"org/tiny": first}):
        newer = hub.commit("org/tiny", {"generation_config.json": "{}"})
        again()
        assert fetch_base(adapter, "model.path") == newer  # as another process does, which notes it
        assert find_model(str(adapter), "model.path").path == located(f"org/tiny@{first}")
    read_at({})
    assert find_model(str(adapter), "model.path").path == located(f"org/tiny@{newer}")
