"""Steps do not wait for the device: between logging intervals, no value is read that is not on the host."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

import train.guard
from relic.cli import parse
from relic.distributed import World
from relic.loader.device_feed import DeviceBatch
from relic.loader.loader import LoaderTimes
from tests.train.runs import tiny
from train.build import build_learner
from train.config import TrainConfig
from train.plan import make_plan
from train.records import Progress, StatusLine
from train.start import load_start

_WAITING = {
    torch.ops.aten._local_scalar_dense.default,
    torch.ops.aten.nonzero.default,
    torch.ops.aten.is_nonzero.default,
    torch.ops.aten.equal.default,
}
_COPIES = {torch.ops.aten._to_copy.default, torch.ops.aten.copy_.default}


class Reads(TorchDispatchMode):
    """Names the operators that wait for a device: values read, sizes that depend on values, copies to the host.

    Tensors of `on_host` may be read: on CUDA, too, they lie in the host's memory.
    """

    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []
        self.on_host: list[Tensor] = []
        self._direct = _DirectReads(self)

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in _WAITING:
            self.note(func.name(), args[0])
        elif func in _COPIES:
            source, target = (args[1], args[0].device) if len(args) > 1 else (args[0], kwargs.get("device"))
            if target is not None and torch.device(target).type == "cpu" and source.device.type not in ("cpu", "meta"):
                self.note(func.name(), source)
        return func(*args, **kwargs)

    def note(self, name: str, tensor: Tensor) -> None:
        if not any(tensor is known or tensor.data_ptr() == known.data_ptr() for known in self.on_host):
            self.names.append(name)

    def __enter__(self) -> "Reads":
        self._direct.__enter__()
        result: Reads = super().__enter__()
        return result

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        self._direct.__exit__(*error)


class _DirectReads(TorchFunctionMode):
    """`tolist` and `numpy` read a CPU tensor's memory without an operator, so a dispatch mode cannot see them."""

    def __init__(self, reads: Reads) -> None:
        super().__init__()
        self._reads = reads

    def __torch_function__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        if func in (Tensor.tolist, Tensor.numpy):
            self._reads.note(func.__name__, args[0])
        return func(*args, **(kwargs or {}))


def steps_watched(config: TrainConfig, steps: int, monkeypatch: pytest.MonkeyPatch) -> tuple[list[str], list[str]]:
    """What `steps` steps read, and what the logging after them reads."""
    world = World(0, 1, torch.device("cpu"))
    torch.manual_seed(0)
    plan = make_plan(config)
    learner = build_learner(plan, world, load_start(plan, world, None))
    learner.model.train()
    progress = Progress()
    status = StatusLine(progress, 0, LoaderTimes(), world)
    batch = DeviceBatch(torch.rand(4, 3, 176, 176).to(memory_format=torch.channels_last), list("abcd"))
    reads = Reads()
    copy = train.guard._copy_to_host

    def copied(flags: Tensor) -> Any:
        # What is read of a step is the copy that was made during the next step.
        result = copy(flags)
        reads.on_host.append(result[0])
        return result

    monkeypatch.setattr(train.guard, "_copy_to_host", copied)
    learner.step(batch, 0, 0)
    reads.on_host += [state["step"] for state in learner.optimizer.state.values()]  # Adam's step count is on the host
    with reads:
        for step in range(1, steps + 1):
            progress.step += 1
            status.add(learner.step(batch, step, 0), 4)
        between = list(reads.names)
        status.read()
    return between, reads.names[len(between) :]


@pytest.mark.parametrize(
    "flags", [(), ("--loss_type", "recon"), ("--sched", "onecycle"), ("--distortion", "mse"), ("--precondition",)]
)
def test_nothing_is_read_between_logging_intervals(
    crops: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, flags: tuple[str, ...]
) -> None:
    config = parse(TrainConfig, tiny(crops, tmp_path, *flags), prog="train")
    between, logging = steps_watched(config, 5, monkeypatch)
    assert between == []
    assert logging == ["tolist"]  # one read, of all values at once


def test_the_scaler_s_own_read_is_the_one_exception(
    crops: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flags = ("--amp", "true", "--amp_dtype", "fp16")
    config = parse(TrainConfig, tiny(crops, tmp_path, *flags), prog="train")
    between, logging = steps_watched(config, 3, monkeypatch)
    # The scaler checks for infinities before each optimizer step.
    assert set(between) <= {"aten::_local_scalar_dense"} and len(between) == 3
    assert logging == ["tolist"]


def test_the_counter_sees_every_kind_of_read() -> None:
    value, meta = torch.ones(3), torch.ones(3, device="meta")
    with Reads() as reads:
        value[0].item()
        float(value[1])
        bool(value[2] > 0)
        value.nonzero()
        value.tolist()
        value.numpy()
        value.to(torch.float64)
        meta.to(torch.float16)
    assert reads.names == ["aten::_local_scalar_dense"] * 3 + ["aten::nonzero", "tolist", "numpy"]
