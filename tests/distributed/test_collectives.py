"""The processes of a run, from the inside of one."""

from contextlib import nullcontext

import pytest
import torch

from alignment.config.distributed import Device, DistributedConfig
from alignment.config.errors import ConfigError
from alignment.distributed import collectives


def test_one_process_is_the_main_one_and_waits_for_nobody() -> None:
    value = torch.tensor(3.0)
    assert (collectives.rank(), collectives.size(), collectives.is_main()) == (0, 1, True)
    assert collectives.sum_over_ranks(value) is value
    assert collectives.tensor_from_main(value) is value
    assert collectives.gathered("a") == ["a"] and collectives.from_main("a") == "a"
    collectives.barrier()


def test_several_processes_need_deepspeed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "0")
    with pytest.raises(ConfigError, match=r"^distributed\.zero must be set .*distributed=zero1.* for 2 of them"):
        collectives.init(DistributedConfig(device=Device.cpu))


def test_lost_collective_names_rank_and_step(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(collectives, "rank", lambda: 1)
    monkeypatch.setattr(collectives, "size", lambda: 2)
    with (
        pytest.raises(collectives.LostRankError, match=r"^rank 1 of 2, step 7: .*Timed out waiting 5000ms"),
        collectives.naming_rank(7),
    ):
        raise RuntimeError("Timed out waiting 5000ms for recv operation to complete")


def test_outside_of_the_steps_it_names_the_rank_and_within_them_the_step_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(collectives, "rank", lambda: 1)
    monkeypatch.setattr(collectives, "size", lambda: 2)
    for step, where in ((None, "rank 1 of 2"), (7, "rank 1 of 2, step 7")):
        inside = nullcontext() if step is None else collectives.naming_rank(step)
        with (
            pytest.raises(collectives.LostRankError, match=rf"^{where}: a collective did not finish \(Connection"),
            collectives.naming_rank(),
            inside,
        ):
            raise RuntimeError("Connection closed by peer")


def test_other_errors_pass_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(collectives, "size", lambda: 2)
    with pytest.raises(RuntimeError, match=r"^shapes differ$"), collectives.naming_rank(7):
        raise RuntimeError("shapes differ")
