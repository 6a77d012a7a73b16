"""Runs on names of the hub, by the command: what is written down, what goes on, and what is refused."""

from collections.abc import Callable
from pathlib import Path

import pytest
from huggingface_hub import constants
from omegaconf import OmegaConf

from tests.cli.conftest import Ended
from tests.hub.stand_in import StandIn

DPO = (
    *("run", "tiny_dpo", "model=pretrained", "model.path=org/tiny", "data=native"),
    *("data.train.path=org/pairs:train_prefs", "data.eval.path=org/pairs:test_prefs"),
    *("batch.size=4", "train.max_steps=2", "output_dir=out"),
)


def lines(ended: Ended) -> list[str]:
    return [line for line in ended.out.splitlines() if "WARNING" not in line]


def test_a_run_on_names_is_written_down_with_their_commits(
    hub: StandIn, alignment: Callable[..., Ended], again: Callable[..., None], model_folder: Path, pairs_repo: str
) -> None:
    commit = hub.commit("org/tiny", model_folder)
    begun = alignment(*DPO)
    assert (begun.code, begun.err) == (0, [])
    assert lines(begun)[:3] == [
        f"model.path: org/tiny is at {commit[:12]}",
        f"data.train.path: org/pairs is at {pairs_repo[:12]}",
        f"data.eval.path: org/pairs is at {pairs_repo[:12]}",
    ]
    written = OmegaConf.load("out/config.yaml")
    assert written.model.path == f"org/tiny@{commit}"
    assert written.data.train.path == f"org/pairs:train_prefs@{pairs_repo}"
    assert written.data.eval.path == f"org/pairs:test_prefs@{pairs_repo}"

    done = "out: finished already, nothing to do (another output_dir runs it again)"
    again()
    assert done in lines(alignment(*DPO))
    again(offline=True)
    offline = lines(alignment(*DPO))
    assert offline[0].startswith("model.path: offline, as HF_HUB_OFFLINE says: org/tiny is read from the cache")
    assert done in offline
    again()
    hub.asked.clear()
    assert done in lines(alignment("run", "out/config.yaml"))
    assert hub.asked == []  # on commits that are here, nobody is asked

    hub.commit("org/tiny", {"README.md": "what no run reads"})
    again()
    assert done in lines(alignment(*DPO))
    newer = hub.commit("org/tiny", {"generation_config.json": '{"eos_token_id": 2}'})
    again()
    refused = alignment(*DPO)
    rule = f"tiny_dpo: output_dir holds a run that began with model.path=org/tiny@{commit}, and org/tiny is at {newer} "
    way = f"now: model.path=org/tiny@{commit} goes on with it, another output_dir takes the newer one, got 'out'"
    assert (refused.code, refused.err) == (2, [f"alignment: {rule}{way}"])
    assert done in lines(alignment(*DPO, f"model.path=org/tiny@{commit}"))


def test_rows_are_known_by_their_split(hub: StandIn, alignment: Callable[..., Ended], model_folder: Path) -> None:
    hub.commit("org/tiny", model_folder)
    hub.commit(
        "org/bad", {"train.jsonl": '{"prompt": "a", "chosen": "b", "rejected": "c"}\n{"prompt": "a"}\n'}, "datasets"
    )
    ended = alignment(*DPO[:5], "data.train.path=org/bad:train", "train.max_steps=1", "output_dir=out")
    assert ended.code == 2 and ended.err[0].startswith("alignment: tiny_dpo: org/bad:train:2: ")


def test_a_sweep_asks_once_for_a_name(
    hub: StandIn, alignment: Callable[..., Ended], model_folder: Path, pairs_repo: str
) -> None:
    commit = hub.commit("org/tiny", model_folder)
    ended = alignment(*DPO[:-2], "train.max_steps=1", "output_dir=out", "-m", "loss.beta=0.1,0.2")
    assert (ended.code, ended.err) == (0, [])
    assert [OmegaConf.load(f"out/{job}/config.yaml").model.path for job in "01"] == [f"org/tiny@{commit}"] * 2
    assert hub.asked.count("GET /api/models/org/tiny") == hub.asked.count("GET /api/datasets/org/pairs") == 1


def test_stages_of_a_pipeline_read_names_and_its_inputs_may_be_some(
    hub: StandIn,
    alignment: Callable[..., Ended],
    again: Callable[..., None],
    own: Callable[[str, str], str],
    model_folder: Path,
    pairs_repo: str,
) -> None:
    commit = hub.commit("org/tiny", model_folder)
    recipe = own(
        "pipe",
        "defaults: [{task: pipeline}, _self_]\noutput_dir: out\n"
        "inputs: {base: org/tiny, pairs: 'org/pairs:train_prefs'}\n"
        "stages:\n"
        "- name: first\n  recipe: tiny_dpo\n"
        "  set: {model: pretrained, model.path: '@base', data: native, data.train.path: '@pairs', train.max_steps: 1,"
        " batch.size: 4}\n"
        "- name: second\n  recipe: tiny_dpo\n"
        "  set: {model: pretrained, model.path: '@first/model', data: native, data.train.path: '@pairs',"
        " train.max_steps: 1, batch.size: 4}\n",
    )
    ended = alignment("run", recipe)
    assert (ended.code, ended.err) == (0, [])
    first = OmegaConf.load("out/first/config.yaml")
    assert first.model.path == f"org/tiny@{commit}"
    assert first.data.train.path == f"org/pairs:train_prefs@{pairs_repo}"
    assert OmegaConf.load("out/second/config.yaml").model.path == "out/first/model"
    again()
    assert alignment("run", recipe).out.count("unchanged, skipped") == 2
    again()
    newer = hub.commit("org/tiny", {"generation_config.json": '{"eos_token_id": 2}'})
    hub.asked.clear()
    stays = alignment("run", recipe)
    assert stays.out.count("unchanged, skipped") == 2 and hub.asked == []
    assert f"model.path: org/tiny is at {commit[:12]}, as out/config.yaml has it" in lines(stays)
    again()
    moved = alignment("run", recipe, f"commits={{org/tiny: '{newer}'}}")
    line = f"model.path: org/tiny is at {newer}, where this stage began with {commit}"
    assert moved.code == 0 and line in moved.out and "the old one is kept in out/first.old-1" in moved.out
    assert OmegaConf.load("out/config.yaml").commits == {"org/tiny": newer, "datasets/org/pairs": pairs_repo}


def test_an_evaluation_and_a_reward_model_are_names_too(
    hub: StandIn, alignment: Callable[..., Ended], model_folder: Path
) -> None:
    hub.commit("org/tiny", model_folder)
    ended = alignment(
        *("run", "tiny_evaluate", "runs={a: org/tiny, b: org/tiny@main}", "baseline=a", "data.eval.limit=4"),
        *("generation.max_new_tokens=4", "output_dir=out"),
    )
    assert (ended.code, ended.err) == (0, [])
    assert set(OmegaConf.load("out/config.yaml").runs.values()) == {f"org/tiny@{hub.repo('org/tiny').refs['main']}"}
    assert ended.out.count("org/tiny is at") == 2


def test_what_a_run_saves_names_where_it_is_from(
    hub: StandIn, alignment: Callable[..., Ended], model_folder: Path, pairs_repo: str
) -> None:
    from peft import PeftConfig

    commit = hub.commit("org/tiny", model_folder)
    assert alignment(*DPO, "model.lora.rank=2", "train.learning_rate=1e-4").code == 0
    saved = PeftConfig.from_pretrained("out/model/adapter")
    assert (saved.base_model_name_or_path, saved.revision) == ("org/tiny", commit)
    for blob in Path(constants.HF_HUB_CACHE).rglob("blobs/*"):
        blob.unlink()  # as on another machine
    assert alignment("export", "out").code == 0
    adapter = hub.commit("org/lora", Path("out/model/adapter"))
    ended = alignment(*DPO[:-1], "output_dir=next", "model.path=org/lora")
    assert (ended.code, ended.err) == (0, [])
    assert OmegaConf.load("next/config.yaml").model.path == f"org/lora@{adapter}"
    assert "is merged into its base" in ended.out


@pytest.mark.parametrize(
    ("words", "line"),
    {
        "gated": (["model.path=org/gated"], "tiny_dpo: model.path: org/gated is gated: ask for access at http"),
        "nowhere": (
            ["model.path=big/thing"],
            "tiny_dpo: model.path: no such file or folder, got 'big/thing', and there is",
        ),
        "split": (
            ["data.train.path=org/pairs:train"],
            "tiny_dpo: data.train.path: the split of org/pairs must be one of",
        ),
        "form": (
            ["model.path=hf://a/b/c"],
            "tiny_dpo: model.path: a name behind hf:// must be org/name or org/name@rev",
        ),
        "a folder": (["model.path=here/sfx"], "tiny_dpo: model.path: no such file or folder, got 'here/sfx'"),
    }.values(),
)
def test_mistakes_are_one_line(
    hub: StandIn,
    alignment: Callable[..., Ended],
    model_folder: Path,
    pairs_repo: str,
    words: list[str],
    line: str,
) -> None:
    Path("here/sft").mkdir(parents=True)
    hub.commit("org/tiny", model_folder)
    hub.commit("org/gated", model_folder)
    hub.repo("org/gated").is_gated = True
    ended = alignment(*DPO, *words)
    assert ended.code == 2 and len(ended.err) == 1 and ended.err[0].startswith(f"alignment: {line}")
    assert not Path("out").exists()
