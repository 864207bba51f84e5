"""One process or many: this process's rank, and what the ranks exchange."""

import os
import sys
import time
import traceback
import uuid
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, NamedTuple, NoReturn, TypeVar

import torch
import torch.distributed as dist
from torch.distributed.rendezvous import rendezvous

from relic.errors import RefusedError, before_work, report
from relic.launch import is_launched, read_ranks

T = TypeVar("T")
_JOIN_SECONDS = 300
"""How long ranks wait for each other at the start, before they fetch shards."""
_COLLECTIVE_TIMEOUT = timedelta(hours=1)
"""How long a rank waits in a collective. Meanwhile another may fetch shards, calibrate or save to a slow disk alone."""
_POLL_SECONDS = 0.02
_LOST = ("Connection closed by peer", "Connection reset by peer", "remote process exited")
"""In the errors of gloo and NCCL on a rank whose peer has ended."""


class World(NamedTuple):
    """This process's rank and device, and the number of processes."""

    rank: int
    size: int
    device: torch.device

    @property
    def is_main(self) -> bool:
        """Whether this is rank 0, the only one that writes and prints."""
        return self.rank == 0


@contextmanager
def join_world(device: str, prog: str) -> Iterator[World]:
    """Join the processes that `torchrun` started (NCCL on CUDA, gloo on a CPU); leave them at the end of the block.

    Without torchrun the world is this process.

    Error: an error may be of this rank alone, while the others wait for it in a collective. NCCL leaves a group only
    when all ranks do. So with torchrun, an error in the block is printed as `command(prog)` prints it, and the process
    ends there with its exit code. Nothing outside the block is closed. torchrun then ends the other ranks.
    """
    with before_work():
        local_rank = read_ranks().local_rank
    if device == "cuda" and not torch.cuda.is_available():
        raise RefusedError("--device cuda: torch sees no CUDA device here; use --device cpu")
    on_cuda = torch.cuda.is_available() if device == "auto" else device == "cuda"
    chosen = torch.device("cuda", local_rank) if on_cuda else torch.device("cpu")
    if on_cuda:
        _check_device(local_rank, torch.cuda.device_count())
        torch.cuda.set_device(chosen)
    if not is_launched():
        yield World(0, 1, chosen)
        return
    store, rank, size = next(rendezvous("env://"))
    attempt = agree_on_attempt(store, rank, size)
    dist.init_process_group(
        "nccl" if on_cuda else "gloo",
        store=attempt,
        rank=rank,
        world_size=size,
        timeout=_COLLECTIVE_TIMEOUT,
        device_id=chosen if on_cuda else None,
    )
    try:
        yield World(dist.get_rank(), dist.get_world_size(), chosen)
    except (Exception, KeyboardInterrupt) as error:
        _end_process(prog, error)
    dist.destroy_process_group()


def _end_process(prog: str, error: BaseException) -> NoReturn:
    """Print `error` and end the process. Python's own way out would wait for the group."""
    code = report(prog, error)
    if code is None:
        if isinstance(error, RuntimeError) and any(sign in str(error) for sign in _LOST):
            # Not `print_error`: torchrun's report is to quote the process that ended first.
            sys.stderr.write(f"{prog}: rank {dist.get_rank()} ends: another process has ended, or is out of reach\n")
        else:
            traceback.print_exception(error)
        code = 1
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    os._exit(code)


def _check_device(local_rank: int, devices: int) -> None:
    """Launchers may show each process one device of its own. Then every local rank is 0."""
    if local_rank >= devices:
        raise RefusedError(
            f"process {local_rank} of this machine (LOCAL_RANK, from 0), but torch sees {devices} CUDA devices: "
            f"start torchrun with --nproc_per_node {devices}, or with --virtual-local-rank, or use --device cpu"
        )


def agree_on_attempt(store: dist.Store, rank: int, size: int, wait_seconds: float = _JOIN_SECONDS) -> dist.Store:
    """The part of `store` that belongs to this attempt of torchrun to run the ranks.

    torchrun keeps one store for all its attempts (checked in torch 2.14.1). A restarted rank that reads an address of
    an earlier attempt waits for a process that has ended. torchrun's restart count does not tell attempts apart, since
    each machine counts its own. So rank 0 counts the attempts. Every other rank sends a request with a random id. Rank
    0 answers each id with the number of the attempt, until every rank has acknowledged that number. It also answers
    requests of ended ranks; nobody reads those answers.

    Raises RuntimeError when a rank does not come within `wait_seconds`.
    """
    deadline = time.monotonic() + wait_seconds
    if rank:
        request = uuid.uuid4().hex
        store.set(f"relic/request/{rank}", request)
        _await(store, f"relic/attempt/{request}", deadline, "rank 0")
        attempt = store.get(f"relic/attempt/{request}").decode()
        store.set(f"relic/acknowledged/{attempt}/{rank}", "")
        return dist.PrefixStore(f"relic/{attempt}", store)
    attempt = str(store.add("relic/attempts", 1))
    missing = set(range(1, size))
    while missing:
        for other in sorted(missing):
            if store.check([f"relic/request/{other}"]):
                store.set(f"relic/attempt/{store.get(f'relic/request/{other}').decode()}", attempt)
        missing = {other for other in missing if not store.check([f"relic/acknowledged/{attempt}/{other}"])}
        _pause(deadline, f"ranks {sorted(missing)}")
    return dist.PrefixStore(f"relic/{attempt}", store)


def _await(store: dist.Store, key: str, deadline: float, missing: str) -> None:
    while not store.check([key]):
        _pause(deadline, missing)


def _pause(deadline: float, missing: str) -> None:
    if time.monotonic() > deadline:
        raise RuntimeError(f"{missing} did not come to the start of this run")
    time.sleep(_POLL_SECONDS)


def gather_to_all(value: T, world: World) -> list[T]:
    """Every rank's `value`, in rank order, on every rank."""
    if world.size == 1:
        return [value]
    values: list[Any] = [None] * world.size
    dist.all_gather_object(values, value)
    return values


def wait_for_all(world: World) -> None:
    """Return when every rank has made this call."""
    if world.size > 1:
        dist.barrier()


def copy_from_main(tensors: Iterable[torch.Tensor], world: World) -> None:
    """Write rank 0's values into every rank's tensors, which lie on the world's device."""
    if world.size > 1:
        for tensor in tensors:
            dist.broadcast(tensor, src=0)


def max_over_ranks(tensor: torch.Tensor, world: World) -> torch.Tensor:
    """Elementwise maximum of a small tensor over all ranks, in place."""
    if world.size > 1:
        dist.all_reduce(tensor, op=dist.ReduceOp.MAX)
    return tensor


def mean_over_ranks(tensor: torch.Tensor, world: World) -> torch.Tensor:
    """Elementwise mean of a small tensor over all ranks, in place."""
    if world.size > 1:
        dist.all_reduce(tensor)
        tensor /= world.size
    return tensor
