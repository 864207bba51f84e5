"""Changes of the training step, each measured alone."""

import functools
import itertools
from collections.abc import Callable

import torch
from torch import nn

from benchmarks._gpu.learners import LearnerVariant, learner_of, resident_images, trainer_step
from benchmarks._gpu.measure import KINDS, Bench
from benchmarks._gpu.sections import Items, attempt_section
from benchmarks._gpu.timing import TimedStep, time_steps
from relic.codec.loss import compute_loss
from train.learner import Learner


def levers(bench: Bench) -> Items:
    """Changes of the step, each alone. A change that gains under 2 % is not worth its code."""
    sizes = bench.sizes
    codecs = list(sizes.channels)
    cases = ((codecs[-1], "encoder recon"), (codecs[0], "both rd"))
    changes: dict[str, tuple[bool, Callable[[Bench, Learner, int], TimedStep]]] = {
        "as it is": (False, _as_it_is),
        "bare": (False, _bare),
        "foreach Adam": (False, functools.partial(_with_adam, fused=False)),
        "fused Adam": (False, functools.partial(_with_adam, fused=True)),
        "no cudnn.benchmark": (False, _without_benchmark),
        "bare, contiguous": (False, _contiguous),
        "compiled": (True, _as_it_is),
        "bare, CUDA graph": (False, _graphed),
    }
    for change, (compiled, make) in changes.items():
        if compiled and not sizes.compile:
            continue
        for (codec, kind), batch_size in itertools.product(cases[: len(codecs)], sizes.few_batches):
            variant = LearnerVariant(sizes.channels[codec], *KINDS[kind], compile=compiled)
            name = f"{change}: {codec} {kind}, batch {batch_size}"
            yield name, attempt_section(functools.partial(_timed_change, bench, variant, batch_size, make))


def _timed_change(
    bench: Bench, variant: LearnerVariant, batch_size: int, make: Callable[[Bench, Learner, int], TimedStep]
) -> dict[str, float]:
    with learner_of(variant, bench.raw, batch_size, bench.world) as learner:
        step = make(bench, learner, batch_size)
        return time_steps(step, bench.world.device, warm_up=bench.sizes.warm_up, rounds=bench.sizes.rounds)


def _as_it_is(bench: Bench, learner: Learner, batch_size: int) -> TimedStep:
    return trainer_step(learner, batch_size, bench.world.device)


def _bare(
    bench: Bench, learner: Learner, batch_size: int, layout: torch.memory_format = torch.channels_last
) -> TimedStep:
    """Forward, loss, backward, clip, optimizer: no guard, no schedule."""
    images = resident_images(batch_size, bench.world.device).contiguous(memory_format=layout)
    parameters = [parameter for group in learner.optimizer.param_groups for parameter in group["params"]]

    def step() -> None:
        with learner.autocast():
            output = learner.forward(images)
        loss = compute_loss(images, output["x_hat"], output["likelihoods"]["y"], learner.loss_config)
        learner.optimizer.zero_grad(set_to_none=True)
        loss.total.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        learner.optimizer.step()

    return step


def _with_adam(bench: Bench, learner: Learner, batch_size: int, *, fused: bool) -> TimedStep:
    for group in learner.optimizer.param_groups:
        group["fused"], group["foreach"] = fused, not fused
    return _as_it_is(bench, learner, batch_size)


def _without_benchmark(bench: Bench, learner: Learner, batch_size: int) -> TimedStep:
    torch.backends.cudnn.benchmark = False
    return _as_it_is(bench, learner, batch_size)


def _contiguous(bench: Bench, learner: Learner, batch_size: int) -> TimedStep:
    learner.model.to(memory_format=torch.contiguous_format)
    return _bare(bench, learner, batch_size, torch.contiguous_format)


def _graphed(bench: Bench, learner: Learner, batch_size: int) -> TimedStep:
    """The bare step, recorded once as a CUDA graph and replayed."""
    if bench.world.device.type != "cuda":
        raise RuntimeError("needs CUDA")
    for group in learner.optimizer.param_groups:
        group["capturable"] = True
        group["lr"] = torch.tensor(float(group["lr"]), device=bench.world.device)
    step = _bare(bench, learner, batch_size)
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            step()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()
    return graph.replay
