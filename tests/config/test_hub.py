"""Names on the hub are told from paths by how they look and by what lies here; nothing is asked."""

from pathlib import Path

import pytest

from alignment.config.errors import ConfigError
from alignment.config.hub import HubName, Kind, hub_name, located
from alignment.config.inputs import hub_names, input_places, set_names
from alignment.config.sources import SourceConfig

COMMIT = "0123456789abcdef0123456789abcdef01234567"
NAMES = {
    ("org/name", "model"): HubName("org/name", Kind.model),
    ("org/name@v1.0", "model"): HubName("org/name", Kind.model, "v1.0"),
    ("org/name@refs/pr/4", "tokenizer"): HubName("org/name", Kind.tokenizer, "refs/pr/4"),
    ("hf://gpt2", "model"): HubName("gpt2", Kind.model),
    ("hf://gpt2@main", "model"): HubName("gpt2", Kind.model, "main"),
    ("Qwen/Qwen2.5-0.5B-Instruct", "model"): HubName("Qwen/Qwen2.5-0.5B-Instruct", Kind.model),
    ("org/rows", "data"): HubName("org/rows", Kind.data),
    ("org/rows:train_prefs", "data"): HubName("org/rows", Kind.data, None, None, "train_prefs"),
    ("org/rows:train@main", "data"): HubName("org/rows", Kind.data, "main", None, "train"),
    ("org/rows/main:test", "data"): HubName("org/rows", Kind.data, None, "main", "test"),
    ("hf://datasets/org/rows:test", "data"): HubName("org/rows", Kind.data, None, None, "test"),
    ("hf://rows:test", "data"): HubName("rows", Kind.data, None, None, "test"),
}
PATHS = [
    *("model", "./org/name", "../org/name", "/org/name", "~/name", "org/name/", "a/b/c", "org//name", "", "runs"),
    *("here/name", "here/name@main", "there/model", "there/best", f"here/sub@{COMMIT[:-1]}", "org name/x", "é/name"),
]
FILES = ["org/rows.jsonl", "org/rows.json.gz", "org/rows.parquet", "org/rows.csv", "a/b/c", "here/rows:train"]


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("here/sub").mkdir(parents=True)


@pytest.mark.parametrize(("text", "kind"), NAMES)
def test_a_name_has_a_repository_and_what_is_asked_of_it(text: str, kind: str) -> None:
    name = hub_name(text, Kind(kind))
    assert name == NAMES[text, kind]
    assert hub_name(str(name), Kind(kind)) == name


@pytest.mark.parametrize("path", PATHS)
def test_what_looks_like_a_path_or_begins_with_a_folder_that_is_here_is_none(path: str) -> None:
    assert hub_name(path, Kind.model) is None
    assert located(path) == Path(path)


@pytest.mark.parametrize("path", FILES)
def test_what_ends_like_a_file_of_rows_is_none(path: str) -> None:
    assert hub_name(path, Kind.data) is None


def test_a_folder_that_is_here_is_no_name_and_the_prefix_makes_it_one() -> None:
    Path("org/name").mkdir(parents=True)
    assert hub_name("org/name", Kind.model) is None
    assert hub_name("hf://org/name", Kind.model) == HubName("org/name", Kind.model)


@pytest.mark.parametrize(
    "text", ["hf://", "hf://a/b/c", "hf://org/name:split", "hf://./name", "hf://org/name@", "hf://-"]
)
def test_a_name_that_is_none_is_told(text: str) -> None:
    with pytest.raises(ConfigError, match=r"a name behind hf:// must be org/name or org/name@revision, got 'hf://"):
        hub_name(text, Kind.model)


def test_a_pinned_name_lies_where_it_was_fetched_whatever_folders_are_here(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", "/kept")
    model = Path("/kept/alignment/hub/models--here--name", COMMIT)
    assert located(f"here/name@{COMMIT}") == model / "model"
    assert located(f"here/name@{COMMIT}", Kind.tokenizer) == model / "tokenizer"
    assert located(f"org/rows:train@{COMMIT}", Kind.data) == Path(
        "/kept/alignment/hub/datasets--org--rows", COMMIT, "train"
    )
    assert located(f"org/rows/x:train@{COMMIT}", Kind.data).name == "x--train"
    assert located(f"hf://gpt2@{COMMIT}").parts[-3:] == ("models--gpt2", COMMIT, "model")
    assert located(f"org/rows@{COMMIT}", Kind.data) == Path(f"org/rows@{COMMIT}")  # of no split yet


def test_inputs_of_a_config_that_are_names_are_found_and_renamed() -> None:
    config = SourceConfig(path=["here/sub", "org/rows:train"], join={"first": "here/sub", "second": "org/more:test"})
    assert [(key, path, name.split) for key, path, name in hub_names(config)] == [
        ("path.1", "org/rows:train", "train"),
        ("join.second", "org/more:test", "test"),
    ]
    pins = {(Kind.data, name): f"{name}@{COMMIT}" for name in ("org/rows:train", "org/more:test")}
    set_names(config, pins)
    assert config.join == {"first": "here/sub", "second": f"org/more:test@{COMMIT}"}
    assert [place.name for _, _, place in input_places(config)] == ["sub", "train", "sub", "test"]
