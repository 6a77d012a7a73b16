"""Inputs are known by what they hold: copied anew they are the same, edited they are others, whatever their times."""

import json
import os
import shutil
from pathlib import Path

import pytest

from alignment.config.data import DataConfig, TrainSource
from alignment.config.errors import ConfigError
from alignment.config.model import ModelConfig
from alignment.config.supervised import SFTConfig
from alignment.config.train import TrainConfig
from alignment.runs import contents
from alignment.runs.contents import digest, run_digest
from alignment.runs.fingerprint import Fingerprint, fingerprint, shown

OLD = (10**9, 10**9)


@pytest.fixture
def config(tmp_path: Path) -> SFTConfig:
    (tmp_path / "rows.jsonl").write_text("one\ntwo\n")
    (tmp_path / "base").mkdir()
    (tmp_path / "base" / "model.safetensors").write_bytes(b"weights")
    data = DataConfig(train=TrainSource(str(tmp_path / "rows.jsonl")))
    return SFTConfig(model=ModelConfig(str(tmp_path / "base")), data=data, train=TrainConfig(max_steps=2))


def test_the_same_bytes_elsewhere_and_at_another_time_are_the_same_inputs(config: SFTConfig, tmp_path: Path) -> None:
    before = fingerprint(config)
    shutil.copytree(tmp_path / "base", tmp_path / "copy")
    shutil.copy(tmp_path / "rows.jsonl", tmp_path / "other.jsonl")
    os.utime(tmp_path / "other.jsonl", OLD)
    (tmp_path / "copy" / ".cache").mkdir()
    (tmp_path / "copy" / ".cache" / "download.metadata").write_text("today")
    config.model.path, config.data.train.path = str(tmp_path / "copy"), str(tmp_path / "other.jsonl")
    assert fingerprint(config) == before


def test_other_bytes_of_the_same_size_and_time_are_other_inputs(config: SFTConfig, tmp_path: Path) -> None:
    os.utime(tmp_path / "rows.jsonl", OLD)
    before = fingerprint(config)
    (tmp_path / "rows.jsonl").write_text("one\nTWO\n")
    os.utime(tmp_path / "rows.jsonl", OLD)
    assert shown(fingerprint(config).changes(before)) == "the contents of data.train.path changed"


def test_a_renamed_or_further_file_of_a_model_is_another_model(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "one").write_text("x")
    before = digest(tmp_path / "a")
    (tmp_path / "a" / "one").rename(tmp_path / "a" / "two")
    renamed = digest(tmp_path / "a")
    (tmp_path / "a" / "three").write_text("")
    assert len({before, renamed, digest(tmp_path / "a")}) == 3


def test_what_is_read_of_a_run_is_its_model_and_its_metrics(tmp_path: Path) -> None:
    for name in ("model/weights", "metrics.jsonl", "config.yaml", "checkpoints/step-1/rank"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(name)
    before = run_digest(tmp_path)
    shutil.rmtree(tmp_path / "checkpoints")
    assert run_digest(tmp_path) == before
    (tmp_path / "model" / "weights").write_text("others")
    assert run_digest(tmp_path) != before


def test_the_base_of_an_adapter_is_an_input_too(config: SFTConfig, tmp_path: Path) -> None:
    """Also of an adapter on an adapter; a base that is not here is not read, whoever needs it says so."""
    for name, base in (("adapter", str(tmp_path / "base")), ("upper", "../adapter")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": base}))
    weights = tmp_path / "base" / "model.safetensors"
    for name, said in (("adapter", "the base of model.path"), ("upper", "the base of the base of model.path")):
        config.model.path = str(tmp_path / name)
        weights.write_bytes(b"weights")
        before = fingerprint(config)
        assert fingerprint(config) == before
        weights.write_bytes(b"others!")
        assert shown(fingerprint(config).changes(before)) == f"the contents of {said} changed"
    shutil.rmtree(tmp_path / "base")
    config.model.tokenizer, config.model.path = str(tmp_path / "adapter"), str(tmp_path / "rows.jsonl")
    assert "the base of" not in str(fingerprint(config))
    (tmp_path / "adapter" / "adapter_config.json").write_text("{")
    with pytest.raises(ConfigError, match=r"^model\.tokenizer: .*adapter_config\.json' is no JSON"):
        fingerprint(config)


def test_a_large_file_is_read_once_and_again_when_it_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read, hashed = [], contents.hashed

    def counted(file: Path) -> str:
        read.append(file.name)
        return hashed(file)

    monkeypatch.setattr(contents, "hashed", counted)
    monkeypatch.setattr(contents, "KEPT_FROM", 4)
    monkeypatch.setattr(contents, "SETTLED_NS", -1)
    large, small = tmp_path / "large", tmp_path / "small"
    large.write_bytes(b"12345678")
    small.write_bytes(b"123")
    first = digest(tmp_path)
    assert digest(tmp_path) == first and sorted(read) == ["large", "small", "small"]
    known = large.stat()
    large.write_bytes(b"12345679")
    os.utime(large, ns=(known.st_atime_ns, known.st_mtime_ns))  # as a copy that keeps times does
    assert digest(tmp_path) != first and read.count("large") == 2


def test_a_file_that_was_just_written_is_not_trusted_to_its_time(tmp_path: Path) -> None:
    large = tmp_path / "large"
    large.write_bytes(bytes(contents.KEPT_FROM))
    digest(large)
    assert not contents.noted_at(large).exists()


def test_a_cache_that_cannot_be_written_is_said_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "no").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "no"))
    monkeypatch.setattr(contents, "SETTLED_NS", -1)
    for name in "ab":
        (tmp_path / "model").mkdir(exist_ok=True)
        (tmp_path / "model" / name).write_bytes(bytes(contents.KEPT_FROM))
    digest(tmp_path / "model")
    assert capsys.readouterr().out.count("the next run reads its inputs again") == 1


def test_an_input_that_cannot_be_read_is_named_by_its_key(config: SFTConfig, tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").unlink()
    with pytest.raises(ConfigError, match=r"^data\.train\.path cannot be read \(No such file"):
        fingerprint(config)


def test_differences_are_named_and_the_length_is_none() -> None:
    def of(**entries: str) -> Fingerprint:
        return Fingerprint(tuple(sorted(entries.items())))

    one = of(seed="0", **{"train.max_steps": "2", "train.epochs": "null"})
    assert shown(of(seed="0", **{"train.max_steps": "4", "train.epochs": "null"}).changes(one)) == ""
    assert one.length() == {"train.max_steps": 2}
    assert shown(of(seed="1", a="1", b="2", c="3").changes(one)) == "a was absent and is 1, b was absent and is 2, " + (
        "c was absent and is 3, 1 more"
    )
    with_rows, without = of(**{"the contents of data.eval.path": '"1f"'}), of(**{"data.eval.path": "null"})
    assert shown(with_rows.changes(without)) == "data.eval.path was not set"
    assert shown(without.changes(with_rows)) == "data.eval.path was set"
    scored, unscored = of(gold='"mine.f"', **{"the code of gold": '"1f"'}), of(gold="null")
    assert shown(scored.changes(unscored)) == 'gold was null and is "mine.f"'


def test_a_shape_of_adapters_counts_where_there_are_some() -> None:
    """Its default may have been another when the run began."""

    def of(part: str, rank: int, alpha: int) -> Fingerprint:
        return Fingerprint(((f"{part}.lora.alpha", str(alpha)), (f"{part}.lora.rank", str(rank))))

    for part in ("model", "critic"):
        assert of(part, 0, 8).changes(of(part, 0, 16)) == []
        assert shown(of(part, 4, 8).changes(of(part, 4, 16))) == f"{part}.lora.alpha was 16 and is 8"
        both = f"{part}.lora.alpha was 16 and is 8, {part}.lora.rank was {{}}"
        assert shown(of(part, 4, 8).changes(of(part, 0, 16))) == both.format("0 and is 4")
        assert shown(of(part, 0, 8).changes(of(part, 4, 16))) == both.format("4 and is 0")
