"""One process or many: who we are, and the few things ranks must agree on."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple, TypeVar

import torch
import torch.distributed as dist

from relic.errors import InputError

T = TypeVar("T")


class World(NamedTuple):
    """This process among all."""

    rank: int
    size: int
    device: torch.device

    @property
    def is_main(self) -> bool:
        """Rank 0, which alone writes and prints."""
        return self.rank == 0


@contextmanager
def join_world(device: str) -> Iterator[World]:
    """Join the processes `torchrun` started (NCCL on CUDA, gloo on a CPU), or be alone; leave at the block's end."""
    if device == "cuda" and not torch.cuda.is_available():
        raise InputError("--device cuda: torch sees no CUDA device here; use --device cpu")
    on_cuda = torch.cuda.is_available() if device == "auto" else device == "cuda"
    chosen = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0"))) if on_cuda else torch.device("cpu")
    if on_cuda:
        torch.cuda.set_device(chosen)
    if "WORLD_SIZE" not in os.environ:
        yield World(0, 1, chosen)
        return
    dist.init_process_group("nccl" if on_cuda else "gloo")
    try:
        yield World(dist.get_rank(), dist.get_world_size(), chosen)
    finally:
        dist.destroy_process_group()


def gather_to_all(value: T, world: World) -> list[T]:
    """Every rank's `value`, in rank order, on every rank."""
    if world.size == 1:
        return [value]
    values: list[Any] = [None] * world.size
    dist.all_gather_object(values, value)
    return values


def wait_for_all(world: World) -> None:
    """Return when every rank has come here."""
    if world.size > 1:
        dist.barrier()


def copy_from_main(model: torch.nn.Module, world: World) -> None:
    """Give every rank's model, on the world's device, the parameters and buffers of rank 0's."""
    if world.size > 1:
        for tensor in model.state_dict().values():
            dist.broadcast(tensor, src=0)


def max_over_ranks(tensor: torch.Tensor, world: World) -> torch.Tensor:
    """Elementwise maximum of a small tensor over all ranks, in place."""
    if world.size > 1:
        dist.all_reduce(tensor, op=dist.ReduceOp.MAX)
    return tensor
