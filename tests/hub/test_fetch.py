"""Names are resolved and fetched by the hub's own client, against a hub on this machine."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
from huggingface_hub import constants

from alignment.config.errors import ConfigError
from alignment.config.folders import find_model
from alignment.config.hub import HubName, Kind, hub_name, located
from alignment.data.read import read_each, read_rows
from alignment.data.records import DataError
from alignment.hub.commits import Commits
from alignment.hub.fetch import fetch, fetch_base, fetch_bases
from alignment.hub.files import model_files
from tests.hub.stand_in import StandIn

MODEL = {"config.json": '{"model_type": "llama"}', "tokenizer.json": "{}", "model.safetensors": b"weights"}
OTHERS = {
    "pytorch_model.bin": b"the same",
    "model.fp16.safetensors": b"the same",
    "consolidated.safetensors": b"the same",
    "original/model.safetensors": b"the same",
    "onnx/model.onnx": b"the same",
    "model-Q4.gguf": b"the same",
    "README.md": "read",
    "optimizer.pt": b"moments",
}


def fetched(text: str, kind: Kind = Kind.model, key: str = "model.path") -> str:
    name = hub_name(text, kind)
    assert name is not None
    return str(fetch(name, key, text))


def names_in(folder: Path) -> list[str]:
    return sorted(file.relative_to(folder).as_posix() for file in folder.rglob("*") if file.is_file())


def told(text: str, kind: Kind = Kind.model) -> str:
    with pytest.raises(ConfigError) as error:
        fetched(text, kind, "data.train.path" if kind is Kind.data else "model.path")
    return str(error.value)


def test_a_name_stands_for_the_newest_commit_and_its_folder_has_what_transformers_reads(hub: StandIn) -> None:
    hub.commit("org/name", {"config.json": "{}"})
    commit = hub.commit("org/name", {**MODEL, **OTHERS})
    assert fetched("org/name") == f"org/name@{commit}"
    folder = located(f"org/name@{commit}")
    assert names_in(folder) == sorted(MODEL)
    assert (folder / "model.safetensors").read_bytes() == b"weights"
    assert not any("README" in request or "bin" in request for request in hub.asked)


def test_no_name_of_a_file_leads_out_of_its_folder() -> None:
    outside = ["../evil.json", "/etc/evil.json", "additional_chat_templates/../../evil.json", "a/b.json"]
    assert model_files(["config.json", "additional_chat_templates/tools.jinja", *outside]) == [
        "additional_chat_templates/tools.jinja",
        "config.json",
    ]


def test_a_folder_that_another_process_has_made_meanwhile_stays(hub: StandIn, monkeypatch: pytest.MonkeyPatch) -> None:
    commit = hub.commit("org/name", MODEL)
    folder, download, made = located(f"org/name@{commit}"), huggingface_hub.snapshot_download, list[int]()

    def with_another(*names: str, **how: Any) -> str:
        monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
        fetched("org/name")
        made.append(folder.stat().st_ino)
        return download(*names, **how)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", with_another)
    fetched("org/name")
    assert [folder.stat().st_ino] == made and names_in(folder) == sorted(MODEL)
    assert [each.name for each in folder.parent.iterdir()] == [folder.name]


def test_weights_in_several_files_and_pickled_ones_where_there_are_no_others(hub: StandIn) -> None:
    shards = {"model-00001-of-00002.safetensors": b"a", "model-00002-of-00002.safetensors": b"b"}
    index = {"model.safetensors.index.json": "{}", "pytorch_model.bin.index.json": "{}"}
    one = hub.commit("org/shards", {"config.json": "{}", **shards, **index, "pytorch_model-00001-of-00001.bin": b"c"})
    two = hub.commit("org/pickled", {"config.json": "{}", "pytorch_model.bin": b"a", "training_args.bin": b"b"})
    fetched("org/shards")
    fetched("org/pickled")
    assert names_in(located(f"org/shards@{one}")) == ["config.json", *shards, "model.safetensors.index.json"]
    assert names_in(located(f"org/pickled@{two}")) == ["config.json", "pytorch_model.bin"]


def test_a_tokenizer_comes_without_weights(hub: StandIn) -> None:
    commit = hub.commit("org/name", {**MODEL, **OTHERS, "vocab.txt": "a", "additional_chat_templates/x.jinja": "b"})
    assert fetched("org/name", Kind.tokenizer) == f"org/name@{commit}"
    found = names_in(located(f"org/name@{commit}", Kind.tokenizer))
    assert found == ["additional_chat_templates/x.jinja", "config.json", "tokenizer.json", "vocab.txt"]


def test_revisions_are_branches_tags_and_commits(hub: StandIn) -> None:
    first = hub.commit("org/name", MODEL)
    hub.repo("org/name").refs["v1"] = first
    side = hub.commit("org/name", {"config.json": "[]"}, branch="refs/pr/1")
    main = hub.commit("org/name", {"config.json": "[1]"})
    for revision, commit in {"v1": first, first: first, "refs/pr/1": side, "main": main}.items():
        assert fetched(f"org/name@{revision}") == f"org/name@{commit}"
    assert (located(f"org/name@{side}") / "config.json").read_text() == "[]"


def test_what_is_pinned_and_here_costs_no_call_and_a_name_one(hub: StandIn, again: Callable[..., None]) -> None:
    hub.commit("org/name", MODEL)
    pinned = fetched("org/name")
    again()
    hub.asked.clear()
    assert fetched(pinned) == pinned and hub.asked == []
    assert [fetched("org/name") for _ in range(3)] == [pinned] * 3
    assert hub.asked == ["GET /api/models/org/name"]


def test_what_was_cleared_from_the_cache_is_fetched_again(hub: StandIn, again: Callable[..., None]) -> None:
    hub.commit("org/name", MODEL)
    pinned = fetched("org/name")
    for blob in Path(constants.HF_HUB_CACHE).rglob("blobs/*"):
        blob.unlink()
    again()
    assert fetched(pinned) == pinned
    assert (located(pinned) / "model.safetensors").read_bytes() == b"weights"


def test_a_download_that_breaks_off_goes_on_where_it_was(hub: StandIn, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 1000)
    weights = bytes(range(256)) * 100
    hub.commit("org/name", {**MODEL, "model.safetensors": weights})
    hub.cuts["model.safetensors"] = 11_000
    folder = located(fetched("org/name"))
    assert (folder / "model.safetensors").read_bytes() == weights
    ranges = [request.rpartition(" from ")[2] for request in hub.asked if " from " in request]
    assert len(ranges) == 1 and 0 < int(ranges[0]) <= 11_000


def test_a_hub_that_goes_down_in_a_download_leaves_what_is_there(
    hub: StandIn, again: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    hub.commit("org/name", MODEL)
    hub.failing = {"model.safetensors": 503}
    line = told("org/name")
    assert line.startswith("model.path: org/name cannot be fetched whole: ")
    assert line.endswith("the same command goes on with the files that are here, got 'org/name'")
    hub.failing = {}
    again()
    hub.asked.clear()
    fetched("org/name")
    got = [request for request in hub.asked if request.startswith("GET /org")]
    assert len(got) == 1 and got[0].endswith("model.safetensors")


def test_offline_a_name_is_read_from_the_cache(
    hub: StandIn, again: Callable[..., None], capsys: pytest.CaptureFixture[str]
) -> None:
    hub.commit("org/name", {**MODEL, **OTHERS})
    pinned = fetched("org/name")
    hub.commit("org/name", {"config.json": "[]"})
    again(offline=True)
    capsys.readouterr()
    hub.asked.clear()
    assert fetched("org/name") == pinned and fetched(pinned) == pinned
    short = pinned.partition("@")[2][:12]
    said = f"model.path: offline, as HF_HUB_OFFLINE says: org/name is read from the cache, as it was at {short}\n"
    assert capsys.readouterr().out == said
    again()
    hub.status = 503
    assert fetched("org/name") == pinned
    assert f"model.path: {hub.url} answers HTTP 503: org/name is read from the cache" in capsys.readouterr().out


def test_offline_what_another_program_has_downloaded_serves(hub: StandIn, again: Callable[..., None]) -> None:
    from huggingface_hub import snapshot_download

    commit = hub.commit("org/name", {**MODEL, **OTHERS})
    snapshot_download("org/name")
    again(offline=True)
    assert fetched("org/name") == f"org/name@{commit}"
    assert names_in(located(f"org/name@{commit}")) == sorted(MODEL)


def test_offline_half_a_download_does_not_serve(hub: StandIn, again: Callable[..., None]) -> None:
    from huggingface_hub import snapshot_download

    commit = hub.commit("org/name", MODEL)
    snapshot_download("org/name", allow_patterns=["config.json"])
    again(offline=True)
    lacking = "model.path: org/name cannot be fetched whole: not all of its files are in the cache"
    way = "given where there is a network, fetches it into that cache"
    assert told("org/name") == f"{lacking}; `hf download org/name --revision {commit}`, {way}, got 'org/name'"


def test_nowhere_gated_private_offline_and_misspelt_are_told_apart(hub: StandIn, again: Callable[..., None]) -> None:
    hub.commit("org/mine", MODEL)
    fetched("org/mine")
    hub.commit("org/gated", MODEL)
    hub.repo("org/gated").is_gated = True
    hub.commit("org/private", MODEL)
    hub.repo("org/private").is_private = True
    login = "or a private one (`hf auth login` shows it)"
    nowhere = (
        f"model.path: no such file or folder, got 'big/thing', and there is no model big/thing on {hub.url}, {login}"
    )
    assert told("big/thing") == nowhere
    assert told("hf://big/thing").startswith(
        f"model.path: there is no model big/thing on {hub.url}, {login}, got 'hf://"
    )
    assert told("org/private") == nowhere.replace("big/thing", "org/private")
    assert told("org/mime").endswith(f"there is no model org/mime on {hub.url} (did you mean 'org/mine'?)")
    gated = (
        f"model.path: org/gated is gated: ask for access at {hub.url}/org/gated; once it is granted, `hf auth login` "
    )
    assert told("org/gated") == f"{gated}(or HF_TOKEN) says who you are, got 'org/gated'"
    assert told("org/mine@v7").startswith("model.path: org/mine has no branch, tag or commit 'v7'; ")
    again(offline=True)
    cache = constants.HF_HUB_CACHE
    offline = f"offline, as HF_HUB_OFFLINE says, and big/thing is not in the cache '{cache}'"
    way = "given where there is a network, fetches it into that cache"
    gone = f"{offline}; `hf download big/thing`, {way}"
    assert told("big/thing") == f"model.path: no such file or folder, got 'big/thing', and {gone}"
    line = told("big/thing@v1")
    assert line.startswith("model.path: offline, as HF_HUB_OFFLINE says, and big/thing at v1 is not in the cache")
    assert line.endswith(f"`hf download big/thing --revision v1`, {way}, got 'big/thing@v1'")
    rows = told("org/rows:train", Kind.data)
    assert rows.endswith(f"; `hf download org/rows --repo-type dataset`, {way}, got 'org/rows:train'")
    assert " (did you mean 'org/mine'?); `hf download org/mime`" in told("org/mime")


def test_a_folder_like_it_is_named(hub: StandIn, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("models/sft_big").mkdir(parents=True)
    assert told("model/sft_big").endswith("(did you mean 'models/sft_big'?)")


def test_who_was_granted_access_reads(hub: StandIn, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.commit("org/gated", MODEL)
    hub.repo("org/gated").is_gated, hub.repo("org/gated").readers = True, {"hf_granted"}
    hub.tokens = {"hf_granted", "hf_other"}
    monkeypatch.setenv("HF_TOKEN", "hf_other")
    assert "org/gated is gated" in told("org/gated")
    monkeypatch.setenv("HF_TOKEN", "hf_unknown")
    assert "may not be read with your token (HTTP 401)" in told("org/gated@main")
    monkeypatch.setenv("HF_TOKEN", "hf_granted")
    fetched("org/gated")


def test_a_repository_without_a_model_is_told(hub: StandIn) -> None:
    hub.commit("org/forms", {"model-Q4.gguf": b"weights", "README.md": "read"})
    line = told("org/forms")
    assert line.endswith("org/forms holds no model that transformers reads (its files: README.md, model-Q4.gguf)")


def test_the_rows_of_a_split_and_their_places(hub: StandIn, pairs_repo: str) -> None:
    pinned = fetched("org/pairs:train_prefs", Kind.data)
    assert pinned == f"org/pairs:train_prefs@{pairs_repo}"
    found = [(str(at), row["prompt"]) for at, row in read_rows(pinned)]
    assert found[0] == ("org/pairs:train_prefs:1", "first 0")
    assert found[5:7] == [("org/pairs:train_prefs:6", "first 5"), ("org/pairs:train_prefs:7", "later 0")]
    assert len(found) == 8
    assert not any("test.jsonl" in request or "other" in request for request in hub.asked)


def test_a_split_that_is_not_there_is_told_with_those_that_are(hub: StandIn, pairs_repo: str) -> None:
    rule = "data.train.path: the split of org/pairs must be one of train_prefs, test_prefs, as in org/pairs:train_prefs"
    assert told("org/pairs:train", Kind.data) == f"{rule}, got 'org/pairs:train'"
    assert told("org/pairs", Kind.data) == f"{rule}, got 'org/pairs'"


def test_the_one_split_of_a_set_need_not_be_named(hub: StandIn) -> None:
    commit = hub.commit("org/one", {"rows.jsonl": '{"prompt": "a"}\nno row\n'}, "datasets")
    pinned = fetched("org/one", Kind.data)
    assert pinned == f"org/one:train@{commit}"
    (_, first), (at, second) = read_each(pinned)
    assert first == {"prompt": "a"} and str(at) == "org/one:train:2"
    assert isinstance(second, DataError) and str(second).startswith("org/one:train:2: malformed JSON")


def test_a_configuration_is_named_behind_the_set(hub: StandIn) -> None:
    configs = "".join(f"- config_name: {name}\n  data_files: {name}.jsonl\n" for name in ("easy", "hard"))
    files = {"README.md": f"---\nconfigs:\n{configs}---\n", "easy.jsonl": '{"a": 1}\n', "hard.jsonl": '{"a": 2}\n'}
    commit = hub.commit("org/sets", files, "datasets")
    pinned = fetched("org/sets/hard:train", Kind.data)
    assert pinned == f"org/sets/hard:train@{commit}"
    assert [(str(at), row) for at, row in read_rows(pinned)] == [("org/sets/hard:train:1", {"a": 2})]
    rule = (
        "the data set org/sets has configurations (easy, hard), one of which must be named, as in org/name/easy:train"
    )
    assert told("org/sets:train", Kind.data) == f"data.train.path: {rule}, got 'org/sets:train'"
    assert told("org/sets/harder:train", Kind.data) == f"data.train.path: {rule}, got 'org/sets/harder:train'"


def test_offline_a_split_is_read_from_the_cache(hub: StandIn, pairs_repo: str, again: Callable[..., None]) -> None:
    pinned = fetched("org/pairs:test_prefs", Kind.data)
    again(offline=True)
    assert fetched("org/pairs:test_prefs", Kind.data) == pinned
    assert len(list(read_rows(pinned))) == 4
    assert "cannot be fetched whole: not all of its files are in the cache" in told("org/pairs:train_prefs", Kind.data)


def test_an_adapter_brings_its_base_at_a_commit(hub: StandIn, again: Callable[..., None]) -> None:
    base = hub.commit("org/base", MODEL)
    adapter = {"adapter_config.json": json.dumps({"base_model_name_or_path": "org/base"}), "adapter_model.bin": b"a"}
    pinned = fetched(f"org/adapter@{hub.commit('org/adapter', adapter)}")
    newer = hub.commit("org/base", {"config.json": "[]"})
    again()
    found = find_model(fetched(pinned), "model.path")
    assert (found.path, found.adapters) == (located(f"org/base@{base}"), (located(pinned),))
    assert fetch_bases(located(pinned), "model.path", Commits({"org/base": base})) == {"org/base": base}
    assert fetch_bases(located(pinned), "model.path", Commits()) == {"org/base": newer}


def test_an_adapter_in_a_folder_brings_its_base_too(hub: StandIn, tmp_path: Path) -> None:
    hub.commit("org/base", MODEL)
    old = hub.commit("org/base", {"config.json": "[]"}, branch="old")
    for name, revision in {"newest": None, "branch": "old", "commit": old}.items():
        folder = tmp_path / name
        folder.mkdir()
        settings = {"base_model_name_or_path": "org/base", "revision": revision}
        (folder / "adapter_config.json").write_text(json.dumps(settings))
        commit = fetch_base(folder, "model.path")
        assert find_model(str(folder), "model.path").path == located(f"org/base@{commit}")
        assert (commit == old) is (revision is not None)
    (folder / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "org/gone"}))
    with pytest.raises(ConfigError, match=r"the base of model\.path: .*there is no model org/gone"):
        fetch_base(folder, "model.path")


def test_a_name_is_that_of_its_key_s_kind(hub: StandIn, pairs_repo: str) -> None:
    assert "there is no model org/pairs on" in told("org/pairs")
    assert hub_name("org/pairs:train_prefs", Kind.model) is None
    assert hub_name("org/pairs:train_prefs", Kind.any) == HubName("org/pairs", Kind.data, None, None, "train_prefs")
