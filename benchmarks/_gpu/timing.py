"""Time steps on a device that works behind the host's back: events on the device, and the host's own clock."""

import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

TimedStep = Callable[[], object]


class Clock:
    """Marks in the order of the device's work. Without CUDA, the host's time."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._marks: list[Any] = []

    def mark(self) -> None:
        """Set a mark behind everything that was given to the device so far."""
        if self._device.type != "cuda":
            self._marks.append(time.perf_counter())
            return
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        self._marks.append(event)

    def milliseconds(self) -> list[float]:
        """From each mark to the next. Waits for the device."""
        wait_for(self._device)
        pairs = list(zip(self._marks, self._marks[1:], strict=False))
        if self._device.type == "cuda":
            return [first.elapsed_time(second) for first, second in pairs]
        return [1000 * (second - first) for first, second in pairs]


def wait_for(device: torch.device) -> None:
    """Return when the device has done everything."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def time_steps(step: TimedStep, device: torch.device, *, warm_up: int, rounds: int) -> dict[str, float]:
    """Medians of `rounds` steps: `step_ms` from one to the next on the device, `host_ms` until the call returns.

    If the device is slower than the host, `host_ms` contains the wait for the step before.
    """
    for _ in range(warm_up):
        step()
    wait_for(device)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    clock, host = Clock(device), []
    clock.mark()
    for _ in range(rounds):
        began = time.perf_counter()
        step()
        host.append(1000 * (time.perf_counter() - began))
        clock.mark()
    found = {"step_ms": statistics.median(clock.milliseconds()), "host_ms": statistics.median(host)}
    if device.type == "cuda":
        found["peak_gib"] = torch.cuda.max_memory_allocated(device) / 2**30
    return found


def profile_step(step: TimedStep, device: torch.device, trace: Path | None = None) -> dict[str, float]:
    """Kernels of one step, and the share of the step in which the device computes. `trace`: write a Chrome trace."""
    on_cuda = device.type == "cuda"
    if not on_cuda and trace is None:
        return {}
    wait_for(device)
    with profile(activities=[ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_cuda else [])]) as seen:
        step()
        wait_for(device)
    if trace is not None:
        seen.export_chrome_trace(str(trace))
    if not on_cuda:
        return {}
    spans = sorted(
        (event.time_range.start, event.time_range.end)
        for event in seen.events()
        if event.device_type.name == "CUDA" and event.time_range.end > event.time_range.start
    )
    busy_us, end = 0.0, spans[0][0]
    for first, last in spans:
        busy_us += max(0.0, last - max(first, end))
        end = max(end, last)
    return {"kernels": len(spans), "busy_share": busy_us / (end - spans[0][0])}
