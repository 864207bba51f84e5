"""Steps do not wait for the device: between logging intervals, no value is read that is not on the host."""

import functools
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.autograd.profiler_util import FunctionEvent
from torch.overrides import TorchFunctionMode
from torch.profiler import ProfilerActivity, profile
from torch.utils._python_dispatch import TorchDispatchMode

import train.build
import train.guard
from relic.cli import parse
from relic.distributed import World
from relic.loader.device_feed import DeviceBatch
from relic.loader.loader import LoaderTimes
from tests.train.runs import Killed, Run, stop_after, tiny
from train.build import build_learner, build_optimizer
from train.config import TrainConfig
from train.learner import Learner
from train.plan import make_plan
from train.records import Progress, StatusLine
from train.start import load_start

ENCODER_RECON = ("--replace_parts", "encoder", "--loss_type", "recon")
BOTH_RD = ("--train_scope", "all")
GDN_RD = ("--replace_parts", "none", "--train_scope", "all")
FP16 = ("--amp", "true", "--amp_dtype", "fp16")


class Reads:
    """Names of what made the host wait for a value. Sees only the time between `with` and its end.

    The profiler sees operators. It is no dispatch mode: under one, autograd takes other branches, for example in the
    backward pass of `torch.prod`, which reads a value only outside. `tolist` and `numpy` read a CPU tensor's memory
    without an operator, so a mode of functions notes them.
    """

    def __init__(self) -> None:
        self.names: list[str] = []
        self._profile = profile(activities=[ProfilerActivity.CPU])
        self._direct = _DirectReads(self)
        self.on_host: list[Tensor] = []
        """Tensors that lie on the host on CUDA too."""

    def note(self, name: str, tensor: Tensor) -> None:
        if not any(tensor is known for known in self.on_host):
            self.names.append(name)

    def __enter__(self) -> "Reads":
        self._profile.__enter__()
        self._direct.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        self._direct.__exit__(*error)
        self._profile.__exit__(*error)
        names = {"aten::_local_scalar_dense", "aten::nonzero"}
        self.names += [e.name for e in self._profile.events() if e.name in names and not _by_a_kernel(e)]


def _by_a_kernel(event: FunctionEvent) -> bool:
    """Whether a fused kernel of the CPU read it. Those of CUDA do it on the device."""
    parent = event.cpu_parent
    return parent is not None and (parent.name in ("aten::_fused_adam_", "aten::_fused_adamw_") or _by_a_kernel(parent))


class _DirectReads(TorchFunctionMode):
    def __init__(self, reads: Reads) -> None:
        super().__init__()
        self._reads = reads

    def __torch_function__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        if func in (Tensor.tolist, Tensor.numpy):
            self._reads.note(func.__name__, args[0])
        return func(*args, **(kwargs or {}))


class Operators(TorchDispatchMode):
    """Counts the operators that are more than a view or fresh memory: on CUDA each starts at least one kernel."""

    _FREE = ("aten::empty", "aten::new_empty", "aten::detach", "aten::alias", "aten::_unsafe_view", "profiler::")

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None) -> Any:
        returns = func._schema.returns
        is_view = bool(returns) and all(each.alias_info and not each.alias_info.is_write for each in returns)
        self.count += not is_view and not func.name().startswith(self._FREE)
        return func(*args, **(kwargs or {}))


def as_on_cuda(config: TrainConfig, monkeypatch: pytest.MonkeyPatch) -> Learner:
    """The learner of `config`, on the CPU, with the optimizer of CUDA."""
    on_cuda = functools.partial(_optimizer_of_cuda, build_optimizer)
    monkeypatch.setattr(train.build, "build_optimizer", on_cuda)
    torch.manual_seed(0)
    plan, world = make_plan(config), World(0, 1, torch.device("cpu"))
    learner = build_learner(plan, world, load_start(plan, world, None))
    learner.model.train()
    return learner


def _optimizer_of_cuda(build: Any, *arguments: Any) -> torch.optim.Optimizer:
    result: torch.optim.Optimizer = build(*arguments[:-1], World(0, 1, torch.device("cuda")))
    return result


def a_batch() -> DeviceBatch:
    return DeviceBatch(torch.rand(4, 3, 176, 176).to(memory_format=torch.channels_last), list("abcd"))


def reads_of_steps(config: TrainConfig, steps: int, monkeypatch: pytest.MonkeyPatch) -> tuple[list[str], list[str]]:
    """What `steps` steps read, and what the logging after them reads."""
    learner, batch = as_on_cuda(config, monkeypatch), a_batch()
    progress = Progress()
    status = StatusLine(progress, 0, LoaderTimes(), World(0, 1, torch.device("cpu")))
    between, logging = Reads(), Reads()
    copy = train.guard._copy_to_host

    def copied(flags: Tensor) -> Any:
        # What is read of a step is the copy that was made during the next step.
        result = copy(flags)
        between.on_host.append(result[0])
        return result

    monkeypatch.setattr(train.guard, "_copy_to_host", copied)
    learner.step(batch, 0)
    with between:
        for step in range(1, steps + 1):
            progress.step += 1
            status.add(learner.step(batch, step), 4)
    with logging:
        status.read()
    return between.names, logging.names


@pytest.mark.parametrize(
    "flags",
    [
        *(ENCODER_RECON, BOTH_RD, ("--sched", "onecycle"), ("--distortion", "mse"), ("--precondition",)),
        *(GDN_RD, FP16, (*FP16, "--precondition")),
    ],
    ids=" ".join,
)
def test_nothing_is_read_between_logging_intervals(
    crops: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, flags: tuple[str, ...]
) -> None:
    config = parse(TrainConfig, tiny(crops, tmp_path, *flags), prog="train")
    between, logging = reads_of_steps(config, 5, monkeypatch)
    assert between == []
    assert logging == ["tolist"]  # one read, of all values at once


def test_the_counter_sees_every_kind_of_read() -> None:
    value = torch.ones(3)
    terms = (torch.ones(2, 3) * 2).requires_grad_()
    with Reads() as reads:
        value[0].item()
        float(value[1])
        bool(value[2] > 0)
        value.nonzero()
        value.to(torch.float64)
        torch.prod(terms, dim=0).sum().backward()
    assert sorted(reads.names) == ["aten::_local_scalar_dense"] * 4 + ["aten::nonzero"]
    with Reads() as reads:
        value.tolist()
        value.numpy()
    assert reads.names == ["tolist", "numpy"]


@pytest.mark.parametrize(
    ("flags", "most"),
    [(ENCODER_RECON, 335), (BOTH_RD, 345), ((*BOTH_RD, "--precondition"), 430), (GDN_RD, 540)],
    ids=["recon", "rd", "precondition", "GDN"],
)
def test_a_step_takes_few_operators(
    crops: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, flags: tuple[str, ...], most: int
) -> None:
    """On CUDA every operator costs the host 6 to 10 microseconds, whatever the batch."""
    config = parse(TrainConfig, tiny(crops, tmp_path, *flags), prog="train")
    learner, batch = as_on_cuda(config, monkeypatch), a_batch()
    learner.step(batch, 0)
    with Operators() as operators:
        learner.step(batch, 1)
    assert operators.count <= most


def test_the_optimizer_of_cuda_makes_the_steps_of_the_cpu_s(
    crops: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = parse(TrainConfig, tiny(crops, tmp_path, *BOTH_RD), prog="train")
    models = []
    for fused in (True, None):
        with monkeypatch.context() as patch:
            learner = as_on_cuda(config, patch)
        learner.optimizer.param_groups[0]["fused"] = fused
        torch.manual_seed(1)
        batch = a_batch()
        for step in range(5):
            learner.step(batch, step)
        models.append(learner.model)
    for ours, plain in zip(*(model.parameters() for model in models), strict=True):
        assert torch.allclose(ours, plain, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("flags", [(), ("--precondition",)])
def test_gradients_and_moments_have_the_layout_of_their_parameters(
    crops: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, flags: tuple[str, ...]
) -> None:
    """Otherwise the fused optimizer refuses them on CUDA. Also after a checkpoint with another layout."""
    config = parse(TrainConfig, tiny(crops, tmp_path, *BOTH_RD, *flags), prog="train")
    learner = as_on_cuda(config, monkeypatch)
    strides: list[tuple[Any, Any]] = []
    step = learner.optimizer.step

    def watched() -> None:
        parameters = learner.optimizer.param_groups[0]["params"]
        strides.extend((each.stride(), each.grad.stride()) for each in parameters)
        step()

    monkeypatch.setattr(learner.optimizer, "step", watched)
    learner.step(a_batch(), 0)
    assert len(strides) == len(learner.optimizer.param_groups[0]["params"]) > 8
    assert all(one == other for one, other in strides)

    state = learner.state_dict()
    for values in state["optimizer"]["state"].values():
        values["exp_avg"] = values["exp_avg"].contiguous()
    learner.load_state_dict(state)
    for parameter, values in learner.optimizer.state.items():
        assert values["exp_avg"].stride() == values["exp_avg_sq"].stride() == parameter.stride()


def test_a_run_goes_on_with_the_optimizer_of_its_device(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From a CPU to CUDA and back."""
    found = []
    step = Learner.step

    def watched(self: Learner, *arguments: Any) -> Any:
        found.append(self.optimizer.param_groups[0]["fused"])
        return step(self, *arguments)

    monkeypatch.setattr(Learner, "step", watched)
    flags = ("--save_every_steps", "1", "--resume", "auto")
    for cuda in (False, True, False):
        with monkeypatch.context() as patch:
            if cuda:
                patch.setattr(train.build, "build_optimizer", functools.partial(_optimizer_of_cuda, build_optimizer))
            stop_after(patch, 1 + len(found))
            with pytest.raises(Killed):
                run(*flags, "--epochs", "3")
    assert found == [None, True, None]
