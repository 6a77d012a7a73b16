"""Changes with which a run fits: the cheapest come first, none is idle, and they are typed as they stand."""

import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from alignment.cli.compose import composing, resolve, single
from alignment.config.distributed import Device
from alignment.config.errors import ConfigError
from alignment.config.model import Quantization
from alignment.config.optimizer import OptimizerName
from alignment.plan import search
from alignment.plan.changes import Change, changed, combinations, words
from alignment.plan.estimate import Plan, on_host, plan_of, planned
from alignment.plan.hardware import Hardware
from alignment.plan.page import fewest_of, ways_of
from alignment.plan.roles import Counts
from alignment.plan.search import Way, fewest, ways_to_fit
from alignment.tasks.max_tokens import SHARE, roles_of

INIT = "model.init={model_type: llama, hidden_size: 256, intermediate_size: 512, num_hidden_layers: 4}"
WORDS = [INIT, "batch.max_tokens=4096", "batch.size=64"]
COUNTS = Counts()


@pytest.fixture(scope="module")
def config() -> Any:
    with composing([], "tiny_dpo"):
        return planned(resolve(single("tiny_dpo", WORDS)))


def gpus(count: int, memory: float) -> Hardware:
    return Hardware(count, "GPU", int(memory), is_gpu=True, flops=None, local=count)


def plan(config: Any, hardware: Hardware, **keys: Any) -> Plan:
    return plan_of(changed(config, keys), hardware, COUNTS)


def test_what_fits_needs_no_change(config: Any) -> None:
    (way,) = ways_to_fit(config, gpus(1, 1e12), COUNTS)
    assert way.changes == () and way.plan.fits


def test_the_cheapest_change_comes_first(config: Any) -> None:
    """Half the tokens, where that is enough; checkpointing, where it takes more."""
    whole, half = (plan(config, gpus(1, 1e12), **{"batch.max_tokens": number}).total for number in (4096, 2048))
    ways = ways_to_fit(config, gpus(1, (half + 0.1 * (whole - half)) / SHARE), COUNTS)
    assert list(words(ways[0].changes)) == ["batch.max_tokens=2048"]
    least = plan(config, gpus(1, 1e12), **{"batch.max_tokens": 1024}).total
    kept = plan(config, gpus(1, 1e12), **{"batch.max_tokens": 1024, "model.gradient_checkpointing": True}).total
    assert kept < least
    ways = ways_to_fit(config, gpus(1, (kept + 0.1 * (least - kept)) / SHARE), COUNTS)
    assert "model.gradient_checkpointing=true" in words(ways[0].changes)
    assert all(way.plan.fits for way in ways)


def test_what_layers_keep_goes_to_the_cpu_where_computing_it_again_is_not_enough(config: Any) -> None:
    kept: dict[str, Any] = {"model.gradient_checkpointing": True}
    moved = kept | {"model.activation_offloading": True, "distributed.device": Device.cuda}
    here, there = (plan(config, gpus(1, 1e12), **keys) for keys in (kept, moved))
    layers, of_last_norm = config.model.init["num_hidden_layers"], 3  # hidden states in float32, one for each
    tokens = max(there.max_tokens, there.roles[0].counted.row)
    assert on_host(here) == 0
    hidden = 4 * config.model.init["hidden_size"] * tokens
    assert on_host(there) == pytest.approx((layers + of_last_norm) * hidden, rel=0.01)
    assert there.total < here.total
    ways, beside_none = (
        [list(words(changes)) for changes in combinations(config, hardware)]
        for hardware in (gpus(1, 1e9), replace(gpus(1, 1e9), is_gpu=False))
    )
    assert changes_of(moved) in ways and changes_of(moved) not in beside_none


def changes_of(keys: dict[str, Any]) -> list[str]:
    return list(words((Change(keys, "", 0.0),)))


@pytest.mark.parametrize("recipe", ["tiny_dpo", "tiny_ppo"])
def test_another_method_comes_behind_all_that_do_not_change_it(recipe: str) -> None:
    with composing([], recipe):
        found = combinations(planned(resolve(single(recipe, WORDS))), gpus(8, 8e10))
    trains_adapters = ["model.lora.rank=16" in words(changes) for changes in found]
    assert trains_adapters == sorted(trains_adapters) and True in trains_adapters and False in trains_adapters


def test_what_has_no_room_for_its_weights_is_planned_once(config: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever its passes are: two precisions, three optimizers, with and without adapters, sharded or not."""
    asked = []

    def no_room(config: Any, hardware: Hardware, counts: Counts) -> Any:
        asked.append(config)
        return SimpleNamespace(fits=False, least=2 * hardware.memory)

    monkeypatch.setattr(search, "plan_of", no_room)
    assert ways_to_fit(config, gpus(1, 1e9), COUNTS) == []
    optimizers = {(each.train.optimizer.value, each.model.lora.rank) for each in asked}
    assert optimizers == {(name, rank) for name in ("adamw", "adamw_8bit", "adafactor") for rank in (0, 16)}
    assert len(asked) < len(combinations(config, gpus(1, 1e9))) / 6  # three numbers of tokens, checkpointing or not
    assert {each.batch.max_tokens for each in asked} == {4096}


def test_rejection_sampling_may_draw_fewer_replies_at_a_time() -> None:
    with composing([], "tiny_rejection"):
        config = planned(resolve(single("tiny_rejection", ["model.path=."])))
    keys = {key for way in combinations(config, gpus(1, 1e9)) for change in way for key in change.keys}
    assert {"generation.batch_size", "generation.gather"} <= keys


@pytest.mark.parametrize("words", [["model.lora.init=pissa"], ["model.lora.init=gaussian"]])
def test_an_adapter_that_adds_something_at_first_is_kept_for_the_reference(words: list[str]) -> None:
    with composing([], "tiny_grpo"):
        config = planned(resolve(single("tiny_grpo", ["model.path=.", "model.lora.rank=4", *words])))
    policy, *_ = roles_of(config)
    assert policy.copies == ("pissa" in words[0].partition("=")[2])


def test_no_change_is_idle(config: Any) -> None:
    """Without any one of them it does not fit."""
    held = plan(config, gpus(1, 1e12)).least
    ways = ways_to_fit(config, gpus(8, 0.9 * held / SHARE + 4e9), COUNTS)
    for way in ways:
        for change in way.changes:
            keys = {key: value for each in way.changes if each is not change for key, value in each.keys.items()}
            assert not plan(config, way.plan.hardware, **keys).fits


def test_fewer_devices_are_tried_first(config: Any) -> None:
    way = fewest(config, gpus(64, 1e12), COUNTS)
    assert way is not None and way.plan.hardware.processes == 1
    assert fewest_of(way, "GPU", config).startswith("the fewest that it fits on, as it is: ")
    assert fewest(config, gpus(1, 1e3), COUNTS) is None
    assert "it fits on no number" in fewest_of(None, "GPU", config)


def test_what_is_shown_can_be_typed(config: Any, tmp_path: Path) -> None:
    ways = ways_to_fit(config, gpus(2, 8e9), COUNTS)
    lines = list(ways_of(ways, config)) if ways[0].changes else []
    adapters = Way(tuple(c for c in ways_to_fit(config, gpus(1, 1e9), COUNTS, most=1)[0].changes), ways[0].plan)
    for way in [*ways, adapters]:
        with composing([], "tiny_dpo"):
            resolve(single("tiny_dpo", [*WORDS, *words(way.changes)]))
    assert not lines or lines[0] == "with these it fits, the cheapest first:"


def test_a_base_in_4_bits_is_a_way_to_fit(tmp_path: Path) -> None:
    """Behind all that leave the method as it is, and no way for a base that is packed, or a random model."""
    asked = [f"model.path={tmp_path}", "model.lora.rank=4", "batch.max_tokens=1024"]
    with composing([], "tiny_dpo"):
        whole, drawn = (planned(resolve(single("tiny_dpo", each))) for each in (asked, [INIT, *asked[1:]]))
    ways = [list(words(changes)) for changes in combinations(whole, gpus(1, 1e12))]
    packs = ["model.quantization=nf4" in way for way in ways]
    assert packs == sorted(packs) and True in packs and False in packs
    with composing([], "tiny_dpo"):
        packed = planned(resolve(single("tiny_dpo", [*asked, *ways[packs.index(True)]])))
    assert packed.model.quantization is Quantization.nf4
    for other in (packed, drawn):
        found = [word for changes in combinations(other, gpus(1, 1e12)) for word in words(changes)]
        assert "model.quantization=nf4" not in found


def test_a_base_in_4_bits_is_shared_out_but_for_its_scales(tmp_path: Path) -> None:
    """One of 70B fits on eight GPUs of 24 GB so, and on no number of them where each has all of it."""
    llama = {"model_type": "llama", "architectures": ["LlamaForCausalLM"], "vocab_size": 128256}
    llama |= {"hidden_size": 8192, "intermediate_size": 28672, "num_hidden_layers": 80}
    llama |= {"num_attention_heads": 64, "num_key_value_heads": 8}
    (tmp_path / "config.json").write_text(json.dumps(llama))
    asked = [f"model.path={tmp_path}", "model.lora.rank=16", "batch.max_tokens=1024"]
    asked += ["model.gradient_checkpointing=true", "distributed.precision=bfloat16", "model.quantization=nf4"]
    with composing([], "tiny_dpo"):
        config = planned(resolve(single("tiny_dpo", asked)))
    second, third = (plan(config, gpus(8, 24e9), **{"distributed.zero": stage}) for stage in (2, 3))
    assert third.fits and second.least > 24e9
    held, of_all = third.roles[0].held, second.roles[0].held
    assert held.weights == pytest.approx(of_all.weights / 8) and held.scales == of_all.scales
    weights = 80 * (2 * 8192**2 + 2 * 8192 * 1024 + 3 * 8192 * 28672)
    assert held.scales == pytest.approx(weights / 64 + 4 * weights / 64 / 256 + 80 * 7 * (64 + 1028))
    with pytest.raises(ConfigError, match=r"^distributed\.zero must be null, 0, 1 or 2 with model\.quantization=int8"):
        changed(config, {"distributed.zero": 3, "model.quantization": Quantization.int8})


def test_long_rows_are_shared_by_processes_of_a_machine(config: Any) -> None:
    """A half, a quarter of the row for each, where no smaller pass helps; not of replies that are drawn."""
    long = changed(config, {"data.max_length": 8192, "distributed.zero": 3})
    asked = "distributed.sequence_parallel"
    found = [
        {word for changes in combinations(each, gpus(8, 1e9)) for word in words(changes)} for each in (config, long)
    ]
    assert [{word for word in each if word.startswith(asked)} for each in found] == [
        set(),
        {f"{asked}={number}" for number in (2, 4, 8)},
    ]
    alone, shared = (plan(long, gpus(8, 1e12), **{asked: number}) for number in (1, 4))
    assert shared.total < alone.total / 2
    ways = ways_to_fit(long, gpus(8, (shared.total + 0.1 * (alone.total - shared.total)) / SHARE), COUNTS)
    assert any(word.startswith(asked) for way in ways for word in words(way.changes))


def test_embeddings_in_a_group_of_their_own_have_whole_gradients_under_zero_2(config: Any) -> None:
    """DeepSpeed cuts each of the optimizer's groups into shares, and keeps a gradient whole that is in several of them;
    adamw_8bit has embeddings apart."""
    keys = {"distributed.zero": 2}
    apart, among = (
        plan(config, gpus(4, 1e12), **keys, **{"train.optimizer": name}).roles[0]
        for name in (OptimizerName.adamw_8bit, OptimizerName.adamw)
    )
    assert among.held.gradients == among.counted.trained / 4
    embeddings = 4 * among.counted.num_pieces * config.model.init["hidden_size"]
    assert apart.held.gradients == pytest.approx((among.counted.trained - embeddings) / 4 + embeddings)
