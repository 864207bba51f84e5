"""One process or many: this process's rank, and what the ranks exchange."""

import time
import uuid
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple, TypeVar

import torch
import torch.distributed as dist
from torch.distributed.rendezvous import rendezvous

from relic.errors import RefusedError
from relic.launch import is_launched, read_ranks

T = TypeVar("T")
_JOIN_SECONDS = 300
"""How long ranks wait for each other at the start."""
_POLL_SECONDS = 0.02


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
def join_world(device: str) -> Iterator[World]:
    """Join the processes that `torchrun` started (NCCL on CUDA, gloo on a CPU); leave them at the end of the block.

    Without torchrun the world is this process.
    """
    if device == "cuda" and not torch.cuda.is_available():
        raise RefusedError("--device cuda: torch sees no CUDA device here; use --device cpu")
    on_cuda = torch.cuda.is_available() if device == "auto" else device == "cuda"
    chosen = torch.device("cuda", read_ranks().local_rank) if on_cuda else torch.device("cpu")
    if on_cuda:
        _check_device_count(torch.cuda.device_count())
        torch.cuda.set_device(chosen)
    if not is_launched():
        yield World(0, 1, chosen)
        return
    store, rank, size = next(rendezvous("env://"))
    attempt = agree_on_attempt(store, rank, size)
    dist.init_process_group("nccl" if on_cuda else "gloo", store=attempt, rank=rank, world_size=size)
    try:
        yield World(dist.get_rank(), dist.get_world_size(), chosen)
    finally:
        dist.destroy_process_group()


def _check_device_count(devices: int) -> None:
    processes = read_ranks().local_size
    if processes > devices:
        raise RefusedError(
            f"{processes} processes on this machine, but torch sees {devices} CUDA devices: "
            f"start torchrun with --nproc_per_node {devices}, or train with --device cpu"
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
