"""Ranks find each other, and not those of an attempt that was killed."""

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
import torch.distributed as dist

from relic.distributed import agree_on_attempt, join_world
from relic.errors import InputError
from tests.conftest import set_ranks


def attempt(store: dist.Store, size: int) -> list[dist.Store]:
    """All ranks at once, the last first."""
    with ThreadPoolExecutor(size) as pool:
        ranks = [pool.submit(agree_on_attempt, store, rank, size, 20) for rank in reversed(range(size))]
        return [rank.result(30) for rank in ranks]


def test_each_attempt_has_a_store_of_its_own_that_all_its_ranks_share() -> None:
    kept = dist.HashStore()
    first = attempt(kept, 3)
    first[0].set("address", "of a rank that will be killed")
    assert all(store.get("address") == b"of a rank that will be killed" for store in first)
    second = attempt(kept, 3)
    assert not any(store.check(["address"]) for store in second)
    second[1].set("address", "new")
    assert [store.get("address") for store in second] == [b"new"] * 3


def test_a_rank_killed_before_it_was_answered_leads_nobody_astray() -> None:
    kept = dist.HashStore()
    kept.set("relic/request/1", "of the dead")
    stores = attempt(kept, 2)
    stores[0].set("here", "")
    assert stores[1].check(["here"])


def test_ranks_that_do_not_come_are_named() -> None:
    with pytest.raises(RuntimeError, match=r"ranks \[1, 2\] did not come"):
        agree_on_attempt(dist.HashStore(), 0, 3, wait_seconds=0.1)
    with pytest.raises(RuntimeError, match="rank 0 did not come"):
        agree_on_attempt(dist.HashStore(), 1, 3, wait_seconds=0.1)


def test_more_processes_than_devices_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    set_ranks(monkeypatch, 3, 4)
    with (
        pytest.raises(InputError, match="4 processes on this machine, but torch sees 2 CUDA devices"),
        join_world("auto"),
    ):
        pass
