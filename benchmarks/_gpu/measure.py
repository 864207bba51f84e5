"""What is measured: each function yields the name and the figures of one thing after another, the most wanted first."""

import functools
import itertools
import json
import time
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any, NamedTuple

import torch

import evaluate.run
import train.main
from benchmarks._gpu.learners import (
    LearnerVariant,
    learner_of,
    precision_flags,
    resident_images,
    trainer_step,
    trainer_switches,
)
from benchmarks._gpu.sections import Items, attempt_section
from benchmarks._gpu.timing import profile_step, time_steps, wait_for
from relic.codec.ms_ssim import ms_ssim
from relic.codec.pixels import to_float
from relic.distributed import World
from relic.loader.device_feed import feed_device
from relic.loader.loader import ShardLoader
from relic.loader.order import epoch_order, train_batches
from relic.options import LossType, Parts
from relic.shards.shard_set import open_shard_set
from train.learner import Learner

KINDS: dict[str, tuple[Parts, LossType]] = {"encoder recon": ("encoder", "recon"), "both rd": ("all", "rd")}
"""Name of a kind of training -> the parts that are swapped, and the loss."""
_FINE_TUNING = (
    "--replace_parts all --loss_type rd --distortion mse --lambda_bpp 0.0023 "
    "--lr 2e-3 --sched onecycle --precondition --recon_every 0 --overwrite"
)


class Sizes(NamedTuple):
    """How much is measured."""

    channels: dict[str, str]
    """Name of a codec -> its channels N,M."""
    batches: tuple[int, ...]
    warm_up: int
    rounds: int
    product_side: int
    copied_bytes: int
    compile: bool
    """Whether compiled steps are measured: each takes half a minute to compile."""
    loop_steps: int
    threads: tuple[int, ...]
    precisions: tuple[str, ...]
    """Of the fine-tuning."""
    tuned: str
    """The codec that is fine-tuned, as flags of the trainer."""
    seeds: int
    epochs: int

    @property
    def few_batches(self) -> tuple[int, ...]:
        """A small and a large one."""
        return tuple(dict.fromkeys((self.batches[0], self.batches[-2 if len(self.batches) > 1 else 0])))


class Bench(NamedTuple):
    """What the measurements share."""

    world: World
    sizes: Sizes
    shards: Path
    """Folder with the sets `raw` and `jpg`."""

    @property
    def raw(self) -> Path:
        return self.shards / "raw"


def ceilings(bench: Bench) -> Items:
    """The device's own limits: a large product, and a copy from its memory to its memory."""
    device, sizes = bench.world.device, bench.sizes
    side = sizes.product_side
    a, b = (torch.randn(side, side, device=device, dtype=torch.bfloat16) for _ in range(2))
    timed = time_steps(lambda: a @ b, device, warm_up=3, rounds=sizes.rounds)
    yield "bf16 TFLOP/s", 2 * side**3 / timed["step_ms"] / 1e9
    source = torch.empty(sizes.copied_bytes, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    timed = time_steps(lambda: target.copy_(source), device, warm_up=3, rounds=sizes.rounds)
    yield "copy TB/s", 2 * sizes.copied_bytes / timed["step_ms"] / 1e9


def step_sweep(bench: Bench) -> Items:
    """The trainer's step, without a loader."""
    sizes = bench.sizes
    few = sizes.few_batches
    every = [
        *itertools.product(["bf16"], [False], sizes.batches, KINDS, sizes.channels),
        *itertools.product(["fp16", "tf32"], [False], few, KINDS, sizes.channels),
        *itertools.product(["bf16"], [True] if sizes.compile else [], few[-1:], KINDS, sizes.channels),
    ]
    for precision, compiled, batch_size, kind, codec in every:
        variant = LearnerVariant(sizes.channels[codec], *KINDS[kind], precision, compiled)
        name = f"{codec} {kind}, {precision}{' compiled' if compiled else ''}, batch {batch_size}"
        yield name, attempt_section(functools.partial(_timed_variant, bench, variant, batch_size))


def _timed_variant(bench: Bench, variant: LearnerVariant, batch_size: int) -> dict[str, float]:
    device = bench.world.device
    with learner_of(variant, bench.raw, batch_size, bench.world) as learner:
        step = trainer_step(learner, batch_size, device)
        timed = time_steps(step, device, warm_up=bench.sizes.warm_up, rounds=bench.sizes.rounds)
        return {"images_per_second": 1000 * batch_size / timed["step_ms"], **timed, **profile_step(step, device)}


def ms_ssim_layouts(bench: Bench) -> Items:
    """MS-SSIM alone, forward and backward, for images in both memory formats."""
    device = bench.world.device
    for batch_size in bench.sizes.few_batches:
        images = resident_images(batch_size, device)
        for layout, name in ((torch.channels_last, "NHWC"), (torch.contiguous_format, "NCHW")):
            x = images.contiguous(memory_format=layout)
            y = (0.9 * x + 0.05).requires_grad_()

            def step(x: torch.Tensor = x, y: torch.Tensor = y) -> None:
                torch.autograd.grad(ms_ssim(y, x, floor=1e-6).mean(), y)

            timed = functools.partial(time_steps, step, device, warm_up=3, rounds=bench.sizes.rounds)
            yield f"{name}, batch {batch_size}", attempt_section(timed)


def loop(bench: Bench) -> Items:
    """The real loader and feed around the step, against a batch that stays on the device."""
    sizes, device = bench.sizes, bench.world.device
    codec = next(iter(sizes.channels))
    for batch_size in reversed(sizes.few_batches):
        variant = LearnerVariant(sizes.channels[codec], *KINDS["both rd"])
        with learner_of(variant, bench.raw, batch_size, bench.world) as learner:
            step = trainer_step(learner, batch_size, device)
            timed = time_steps(step, device, warm_up=sizes.warm_up, rounds=sizes.rounds)
            resident = 1000 * batch_size / timed["step_ms"]
            yield f"batch {batch_size}, on the device", {"images_per_second": resident}
            for encoding, threads in itertools.product(("raw", "jpg"), reversed(sizes.threads)):
                found = attempt_section(functools.partial(_loop, bench, learner, encoding, batch_size, threads))
                if "images_per_second" in found:
                    found["to_resident"] = found["images_per_second"] / resident
                yield f"batch {batch_size}, {encoding}, {threads} threads", found


def _loop(bench: Bench, learner: Learner, encoding: str, batch_size: int, threads: int) -> dict[str, float]:
    shards, device = open_shard_set(bench.shards / encoding, "train"), bench.world.device
    plan = itertools.chain.from_iterable(
        train_batches(epoch_order(shards.samples, 0, epoch), batch_size, 0, 1) for epoch in itertools.count()
    )
    steps, warm_up = bench.sizes.loop_steps, bench.sizes.warm_up
    pinned = device.type == "cuda"
    with ShardLoader(shards, batch_size=batch_size, threads=threads, pin_memory=pinned) as loader:
        began, waited = time.perf_counter(), 0.0
        batches = loader.batches(itertools.islice(plan, warm_up + steps))
        for number, batch in enumerate(feed_device(batches, device, to_float)):
            if number == warm_up:
                wait_for(device)
                began, waited = time.perf_counter(), loader.times.wait
            learner.step(batch, 0)
        wait_for(device)
        seconds = time.perf_counter() - began
        return {
            "images_per_second": steps * batch_size / seconds,
            "wait_share": (loader.times.wait - waited) / seconds,
        }


def fine_tuning(bench: Bench) -> Items:
    """Validation PSNR of a codec, swapped and fine-tuned, in each precision."""
    sizes = bench.sizes
    for seed, precision in itertools.product(range(sizes.seeds), sizes.precisions):
        yield f"{precision}, seed {seed}", attempt_section(functools.partial(_fine_tuned, bench, precision, seed))


def _fine_tuned(bench: Bench, precision: str, seed: int) -> dict[str, float]:
    sizes, folder = bench.sizes, bench.shards / "tuned"
    given = {"shards": bench.raw, "save_dir": folder, "epochs": sizes.epochs, "seed": seed}
    given |= {"device": bench.world.device.type, **precision_flags(precision)}
    flags = [text for name, value in given.items() for text in (f"--{name}", str(value))]
    began = time.perf_counter()
    with trainer_switches(precision), redirect_stdout(StringIO()):
        code = train.main.main([*flags, *sizes.tuned.split(), *_FINE_TUNING.split()])
    if code:
        raise RuntimeError(f"train/main.py ended with exit code {code}")
    lines = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    psnrs_db = [line["psnr_db"] for line in lines if line["event"] == "validate"]
    return {"start_db": psnrs_db[0], "end_db": psnrs_db[-1], "seconds": time.perf_counter() - began}


def evaluation(bench: Bench) -> Items:
    """Real bitstreams of the val crops. The seconds are those of the whole command."""
    here = bench.world.device.type
    for device, workers in ((here, 0), (here, 2), ("cpu", 0)) if here != "cpu" else (("cpu", 0),):
        found = attempt_section(functools.partial(_evaluated, bench, device, workers))
        yield f"{device}, {f'{workers} workers' if workers else 'as many workers as cores'}", found


def _evaluated(bench: Bench, device: str, workers: int) -> dict[str, float]:
    out = bench.shards / "evaluated"
    flags = f"--checkpoint embedded --references false --recon_count 0 --device {device} --workers {workers}"
    began = time.perf_counter()
    with redirect_stdout(StringIO()):
        code = evaluate.run.main(["--shards", str(bench.raw), "--out", str(out), *flags.split()])
    seconds = time.perf_counter() - began
    if code:
        raise RuntimeError(f"evaluate/run.py ended with exit code {code}")
    summary: dict[str, Any] = json.loads((out / "metrics.json").read_text())["summary"][0]
    images = open_shard_set(bench.raw, "val").num_samples
    return {"images_per_second": images / seconds, "psnr_db": summary["psnr_db"], "bpp_real": summary["bpp_real"]}


def traces(bench: Bench, folder: Path) -> Items:
    """Chrome traces of one step of the largest codec."""
    sizes, device = bench.sizes, bench.world.device
    codec = list(sizes.channels)[-1]
    for batch_size in sizes.few_batches:
        variant = LearnerVariant(sizes.channels[codec], *KINDS["encoder recon"])
        with learner_of(variant, bench.raw, batch_size, bench.world) as learner:
            step = trainer_step(learner, batch_size, device)
            time_steps(step, device, warm_up=sizes.warm_up, rounds=1)
            file = folder / f"{codec}-{batch_size}.trace.json.gz"
            yield f"batch {batch_size}", {**profile_step(step, device, file), "trace": file.name}
