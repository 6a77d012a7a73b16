import os
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist

from alignment.config.batch import BatchConfig, Layout
from alignment.config.distributed import Device, DistributedConfig
from alignment.config.errors import UserError
from alignment.config.model import LoraConfig
from alignment.config.reference import ReferenceConfig
from alignment.config.train import OnNonFinite
from alignment.data.batches import Batches, Packer
from alignment.data.records import Source
from alignment.data.tokenize import Example
from alignment.distributed.engine import TorchEngine
from alignment.distributed.placement import WHOLE
from alignment.models.adapters import lora_layers
from alignment.models.heads import LanguageModel
from alignment.models.lora import add_adapter
from alignment.training import reference
from alignment.training.reference import (
    ReferenceCache,
    cache_folder,
    fingerprint,
    reference_logprobs,
    require_reference,
    weights_digest,
)


def pair(seed: int) -> Example:
    rng = np.random.default_rng(seed)
    prompt, chosen, rejected = (rng.integers(3, 30, size).astype(np.int32) for size in (4, 3 + seed, 5))
    return Example(prompt, (chosen, rejected), None, Source("made", seed), (True, True))


@pytest.fixture
def batches() -> Batches:
    return Batches(
        [pair(seed) for seed in range(6)], Packer(BatchConfig(size=2, max_tokens=40, layout=Layout.shared), 0), 0
    )


@pytest.fixture
def engine() -> TorchEngine:
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    size = {"vocab_size": 32, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1}
    model = LanguageModel(LlamaForCausalLM(LlamaConfig(num_attention_heads=2, num_key_value_heads=2, **size)), WHOLE)
    optimizer = torch.optim.SGD(model.parameters())
    scheduler = torch.optim.lr_scheduler.ConstantLR(optimizer)
    return TorchEngine(model, optimizer, scheduler, config=DistributedConfig(device=Device.cpu), max_grad_norm=1.0)


@pytest.fixture
def cache(engine, tmp_path) -> ReferenceCache:
    return ReferenceCache(tmp_path / "kept", weights_digest(engine.model, "float32"))


def test_the_cache_gives_what_was_computed_and_is_filled_row_by_row(engine, batches, cache):
    some = reference_logprobs(engine, batches, [1, 4], cache=cache)
    assert some.isnan().any(1).tolist() == [True, False, True, True, False, True]
    whole = reference_logprobs(engine, batches, range(6), cache=cache)
    assert torch.equal(whole[[1, 4]], some[[1, 4]])
    fresh = reference_logprobs(engine, batches, range(6))
    torch.testing.assert_close(whole, fresh, rtol=1e-5, atol=1e-5)
    with torch.no_grad():
        engine.model.hf.lm_head.weight.zero_()
    assert torch.equal(reference_logprobs(engine, batches, range(6), cache=cache), whole), "nothing is computed again"


@pytest.mark.parametrize("damage", ["cut", "flipped", "foreign"])
def test_a_damaged_cache_is_computed_again_and_said_once(engine, batches, cache, capsys, damage):
    whole = reference_logprobs(engine, batches, range(6), cache=cache)
    [file] = cache.folder.iterdir()
    data = bytearray(file.read_bytes())
    data[-3] ^= 64
    written = {"cut": bytes(data[:60]), "flipped": bytes(data), "foreign": b"{}"}[damage]
    file.write_bytes(written)
    assert torch.equal(reference_logprobs(engine, batches, range(6), cache=cache), whole)
    assert capsys.readouterr().out.replace("\n", " ").count("the reference cache is damaged") == 1
    reference_logprobs(engine, batches, range(6), cache=cache)
    assert "damaged" not in capsys.readouterr().out


class Stopped(Exception):
    """What a kill is to those that are not killed by it."""


@pytest.fixture
def stopping(engine, monkeypatch):
    """Parts of two examples; `stopping(n)` lets n forwards through and ends the next one, `stopping.done` counts."""
    monkeypatch.setattr(reference, "PART", 2)

    def stop(after: int) -> None:
        stop.done, stop.after = 0, after

    def count(*_: object) -> None:
        if stop.done == stop.after:
            raise Stopped
        stop.done += 1

    engine.model.hf.model.register_forward_pre_hook(count)
    stop(10**6)
    return stop


@pytest.mark.parametrize("whole_parts", [0, 1, 2])
def test_a_table_stopped_in_the_middle_is_computed_from_there_on(engine, batches, cache, stopping, whole_parts):
    """To the last bit what it is in one go."""
    unbroken = reference_logprobs(engine, batches, range(6))
    of_a_part, rest = divmod(stopping.done, 3)
    assert rest == 0 and of_a_part > 0
    stopping(whole_parts * of_a_part)
    with pytest.raises(Stopped):
        reference_logprobs(engine, batches, range(6), cache=cache)
    assert len(list(cache.folder.glob("*"))) == whole_parts
    stopping(10**6)
    again = reference_logprobs(engine, batches, range(6), cache=cache)
    assert stopping.done == (3 - whole_parts) * of_a_part
    assert torch.equal(again, unbroken)
    assert sorted(cache.folder.iterdir()) == sorted(cache.file(batches.examples[at : at + 2]) for at in (0, 2, 4))
    stopping(0)
    assert torch.equal(reference_logprobs(engine, batches, range(6), cache=cache), unbroken)


def test_rows_that_are_added_cost_no_more_than_their_part(engine, batches, cache, stopping):
    reference_logprobs(engine, batches, range(6), cache=cache)
    of_a_part = stopping.done // 3
    stopping(of_a_part)
    more = replace(batches, examples=[*batches.examples, pair(6), pair(7)])
    assert reference_logprobs(engine, more, range(8), cache=cache).isfinite().all()


def test_a_folder_that_cannot_be_written_is_said_once(engine, batches, cache, stopping, capsys):
    cache.folder.write_text("a file")
    table = reference_logprobs(engine, batches, range(6), cache=cache)
    assert torch.equal(table, reference_logprobs(engine, batches, range(6)))
    assert capsys.readouterr().out.count("the reference cache cannot be written") == 1


def test_two_processes_compute_the_rest_of_a_table(batches, engine, tmp_path):
    """One of them is killed in the middle; those that come after compute the parts that are missing, each as many
    forwards, and have the bits of two processes that nobody stopped."""
    runs: list[tuple[str, int | None]] = [("torn", 2), ("torn", None), ("whole", None)]
    torn_off, *ended = (in_two_processes(tmp_path, engine, batches, *each) for each in runs)
    assert all(torn_off) and ended == [[0, 0], [0, 0]]
    torn, whole = ([torch.load(tmp_path / f"{name}-{rank}.pt") for rank in range(2)] for name in ("torn", "whole"))
    assert all(torch.equal(each["table"], whole[0]["table"]) for each in (*torn, *whole))
    assert whole[0]["table"].isfinite().all()
    done = [[each["done"] for each in ran] for ran in (torn, whole)]
    assert done[0][0] == done[0][1] and done[1][0] == done[1][1] and 2 * done[1][0] == 3 * done[0][0]


def in_two_processes(
    folder: Path, engine: TorchEngine, batches: Batches, name: str, parts: int | None
) -> list[int | None]:
    """Their exit codes. parts: how many parts are computed before both are gone, at the next one's first forward."""
    (folder / "meet").unlink(missing_ok=True)
    given = (folder, engine, batches, name, parts)
    processes = [get_context("fork").Process(target=one_of_two, args=(rank, *given)) for rank in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
        process.kill()
    return [process.exitcode for process in processes]


def one_of_two(rank: int, folder: Path, engine: TorchEngine, batches: Batches, name: str, parts: int | None) -> None:
    reference.PART, done = 2, 0
    compute = reference.forwards

    def counted(*arguments: Any, **named: Any) -> Any:
        nonlocal done, parts
        if parts == 1:
            dist.barrier()  # the main one has written what is whole
            os._exit(9)
        parts = None if parts is None else parts - 1
        for each in compute(*arguments, **named):
            done += 1
            yield each

    reference.forwards = counted
    dist.init_process_group("gloo", init_method=f"file://{folder / 'meet'}", rank=rank, world_size=2)
    cache = ReferenceCache(folder / name, weights_digest(engine.model, "float32"))
    here = replace(batches, packer=replace(batches.packer, rank=rank, num_ranks=2))
    table = reference_logprobs(engine, here, range(6), cache=cache)
    torch.save({"table": table, "done": done}, folder / f"{name}-{rank}.pt")
    dist.destroy_process_group()


def test_another_input_is_another_name(engine, batches):
    examples = batches.examples
    name = fingerprint(engine.model, examples, "float32")
    assert fingerprint(engine.model, examples, "float32") == name
    assert fingerprint(engine.model, examples, "bfloat16") != name
    assert fingerprint(engine.model, examples[::-1], "float32") != name
    longer = replace(examples[0], prompt_ids=np.append(examples[0].prompt_ids, np.int32(7)))
    assert fingerprint(engine.model, [longer, *examples[1:]], "float32") != name
    engine.model.hf.config.rope_theta = 5.0
    other = fingerprint(engine.model, examples, "float32")
    assert other != name, "the same weights read with other settings"
    name = other
    with torch.no_grad():
        engine.model.hf.model.norm.weight[0] += 1e-3
    assert fingerprint(engine.model, examples, "float32") != name


def test_another_scale_of_an_adapter_is_another_name(engine):
    """It is in no weight of it."""
    add_adapter(engine.model.hf, LoraConfig(rank=2, alpha=8))
    engine.model.begins_adapted = True
    first = fingerprint(engine.model, [pair(0)], "float32")
    assert fingerprint(engine.model, [pair(0)], "float32") == first
    for layer in lora_layers(engine.model.hf)[-1:]:
        layer.scaling["default"] *= 4
    assert fingerprint(engine.model, [pair(0)], "float32") != first
    engine.model.begins_adapted = False  # a fresh one, without which the reference is read
    name = fingerprint(engine.model, [pair(0)], "float32")
    lora_layers(engine.model.hf)[0].scaling["default"] *= 4
    assert fingerprint(engine.model, [pair(0)], "float32") == name


def test_a_token_cannot_move_over_a_border_unseen(engine):
    one, other = pair(0), pair(0)
    moved = replace(
        other,
        prompt_ids=np.append(other.prompt_ids, other.completion_ids[0][:1]),
        completion_ids=(other.completion_ids[0][1:], other.completion_ids[1]),
    )
    assert fingerprint(engine.model, [one], "float32") != fingerprint(engine.model, [moved], "float32")


def test_the_cache_lies_beside_the_data(tmp_path):
    assert cache_folder(ReferenceConfig(), str(tmp_path / "pairs.jsonl")) == tmp_path / ".reference"
    assert cache_folder(ReferenceConfig(folder="here"), str(tmp_path / "pairs.jsonl")) == Path("here")
    assert cache_folder(ReferenceConfig(), None).parts[-2:] == ("alignment", "reference")


def test_pairs_without_a_reference_are_named_before_the_first_step(engine, batches, capsys):
    table = reference_logprobs(engine, batches, range(6))
    require_reference(table, batches, range(6), OnNonFinite.stop)
    table[4, 1] = torch.inf
    table[0] = torch.nan  # which no step of the run touches
    told = r"^the reference's log-probs are no finite numbers for 1 rows, first made:4: .* \(train\.on_nonfinite=skip"
    with pytest.raises(UserError, match=told):
        require_reference(table, batches, range(1, 6), OnNonFinite.stop)
    require_reference(table, batches, range(1, 6), OnNonFinite.skip)
    assert "first made:4: " in capsys.readouterr().out
