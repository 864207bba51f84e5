"""Ranks find each other, and not those of an attempt that was killed."""

import os
import socket
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from relic.distributed import agree_on_attempt, join_world
from relic.errors import RefusedError
from tests.conftest import set_ranks

ROOT = Path(__file__).resolve().parents[1]


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


@pytest.mark.parametrize(
    ("local_rank", "devices", "used"),
    [(3, 2, None), (2, 2, None), (1, 2, 1), (0, 1, 0)],
    ids=["too many processes", "one too many", "a device per process", "each process sees one device"],
)
def test_a_process_needs_a_device_of_its_own(
    monkeypatch: pytest.MonkeyPatch, local_rank: int, devices: int, used: int | None
) -> None:
    """The last is torchrun's --virtual-local-rank: eight processes here, and each sees only its own device."""
    chosen: list[torch.device] = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: devices)
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    monkeypatch.setattr("relic.distributed.is_launched", lambda: False)
    set_ranks(monkeypatch, local_rank, 8)
    if used is None:
        with pytest.raises(RefusedError, match=f"torch sees {devices} CUDA devices"), join_world("auto", "train"):
            pass
        assert chosen == []
        return
    with join_world("auto", "train") as world:
        assert world == (0, 1, torch.device("cuda", used))
    assert chosen == [torch.device("cuda", used)]


LEAVING = """
import sys, torch.distributed as dist
from relic.distributed import join_world
from relic.errors import InputError, RefusedError
leave = dist.destroy_process_group
dist.destroy_process_group = lambda: (print("left the group"), leave())
error = {"none": None, "input": InputError("a fault"), "refused": RefusedError("no"), "bug": RuntimeError("a bug")}
with join_world("cpu", "tool.py"):
    if error[sys.argv[1]]:
        raise error[sys.argv[1]]
print("after the block")
"""


@pytest.mark.commands
@pytest.mark.parametrize(
    ("what", "code", "said", "printed"),
    [
        ("none", 0, "", "left the group\nafter the block\n"),
        ("input", 1, "tool.py: error: a fault\n", ""),
        ("refused", 2, "tool.py: error: no\n", ""),
        ("bug", 1, "RuntimeError: a bug\n", ""),
    ],
)
def test_only_a_block_without_an_error_leaves_the_group(what: str, code: int, said: str, printed: str) -> None:
    """To leave it is a collective of NCCL: a rank with an error of its own would wait there for the others."""
    with socket.create_server(("localhost", 0)) as server:
        port = server.getsockname()[1]
    group = {"RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "localhost", "MASTER_PORT": str(port)}
    command = [sys.executable, "-c", LEAVING, what]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env={**os.environ, **group}, timeout=100)
    assert (done.returncode, done.stdout) == (code, printed)
    assert done.stderr.endswith(said)
