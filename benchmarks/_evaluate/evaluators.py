"""Measure relic's and CompressAI's evaluators on the same files, and the entropy coder on several cores."""

import contextlib
import multiprocessing
import re
import statistics
import time
from concurrent.futures import Executor, ThreadPoolExecutor
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from compressai.models import FactorizedPrior
from numpy.typing import NDArray
from PIL import Image

from benchmarks._shared.crops import prepare_crops
from evaluate.codecs import TorchCodec
from evaluate.evaluator import evaluate
from evaluate.plan import ImageFolder
from evaluate.round_trip import coders
from evaluate.sources import FolderSource, ShardSource
from evaluate.summary import summarise
from relic.bitstream.coder import load_coder
from relic.bitstream.tables import Tables, quantize
from relic.codec.entropy import refresh_tables
from relic.codec.model import Architecture, build_model
from relic.codec.pretrained import codec_path, finished_model, read_codec
from relic.distributed import World
from relic.errors import InputError
from relic.machine import keep_freed_memory
from relic.pictures.listing import list_images

_CPU = torch.device("cpu")
_CODINGS = 400


class Turn(NamedTuple):
    """One evaluation of all crops."""

    seconds: float
    psnr_db: float
    bpp: float


class Speeds(NamedTuple):
    """Images per second and the measured quality and rate. Both evaluators use the same weights."""

    num_images: int
    relic: float
    compressai: float
    relic_psnr_db: float
    compressai_psnr_db: float
    relic_bpp: float
    compressai_bpp: float


class CoderSpeedups(NamedTuple):
    """How many times faster several threads or processes code a crop's symbols than one does."""

    threads: float
    processes: float


def loose_crops(folder: Path, images: Path | None, crops: int, cores: int) -> Path:
    """Make a folder of 224x224 PNGs."""
    packed = ShardSource(prepare_crops(folder / "packed", images, crops, cores).raw)
    loose = folder / "crops"
    loose.mkdir()
    for crop in packed.read(range(crops)):
        Image.fromarray(crop.pixels_BHWC[0].numpy()).save(loose / f"{crop.number:05d}.png")
    return loose


def measure_evaluators(codec: str, crops: Path, rounds: int, workers: int) -> Speeds:
    """Run both evaluators in turns, each in its own process. The first turn of each is a warm-up."""
    context = multiprocessing.get_context("spawn")
    turns: dict[str, list[Turn]] = {"relic": [], "compressai": []}
    pipes, processes = {}, []
    for name, serve in (("relic", _serve_relic), ("compressai", _serve_compressai)):
        pipes[name], theirs = context.Pipe()
        processes.append(context.Process(target=serve, args=(theirs, codec, crops, rounds, workers)))
        processes[-1].start()
        theirs.close()
    try:
        for _ in range(rounds):
            for name, pipe in pipes.items():
                pipe.send("start")
                turns[name].append(pipe.recv())
        for process in processes:
            process.join()
    except EOFError:
        raise InputError(f"{name}: its process ended; the lines above say why") from None
    finally:
        for process in processes:
            process.terminate()
            process.join()
    num_images = len(list(crops.iterdir()))
    speeds = {name: num_images / statistics.median(turn.seconds for turn in found[1:]) for name, found in turns.items()}
    ours, theirs_last = turns["relic"][-1], turns["compressai"][-1]
    return Speeds(
        num_images,
        **speeds,
        relic_psnr_db=ours.psnr_db,
        compressai_psnr_db=theirs_last.psnr_db,
        relic_bpp=ours.bpp,
        compressai_bpp=theirs_last.bpp,
    )


def _serve_relic(pipe: Connection, codec: str, crops: Path, rounds: int, workers: int) -> None:
    keep_freed_memory()
    ours = open_ours(codec)
    source = FolderSource(ImageFolder(crops, tuple(list_images(crops))))
    for _ in range(rounds):
        pipe.recv()
        began = time.perf_counter()
        found = evaluate(ours, source, World(0, 1, _CPU), bitstream=True, recon_count=0, workers=workers)
        seconds = time.perf_counter() - began
        summary = summarise(found.results)
        assert summary.psnr_db is not None and summary.bpp_real is not None
        pipe.send(Turn(seconds, summary.psnr_db, summary.bpp_real))


def _serve_compressai(pipe: Connection, codec: str, crops: Path, rounds: int, workers: int) -> None:
    # The import sets torch to one thread, as in every run of this tool.
    from compressai.utils.eval_model.__main__ import collect_images, eval_model

    # CompressAI keeps models in contiguous memory.
    model = _open(codec)[1].to(memory_format=torch.contiguous_format)
    options = {"entropy_estimation": False, "half": False, "per_image": False, "architecture": "bmshj2018-factorized"}
    for _ in range(rounds):
        pipe.recv()
        began = time.perf_counter()
        found = eval_model(model, "", crops, collect_images(str(crops)), **options)
        pipe.send(Turn(time.perf_counter() - began, found["psnr-rgb"], found["bpp"]))


def open_ours(codec: str) -> TorchCodec:
    """Open a codec named on the command line for relic's evaluator."""
    return TorchCodec(codec, codec, *_open(codec), _CPU)


def _open(codec: str) -> tuple[Architecture, FactorizedPrior]:
    """Open `embedded`, a file, or N,M for random weights, whose rate is several bits per pixel."""
    channels = re.fullmatch(r"(\d+),(\d+)", codec)
    if channels is None:
        opened = read_codec(codec_path(codec), flag="--codec")
        if opened.architecture.replaced != "none":
            raise InputError(f"--codec {codec}: CompressAI's tool has no model with ReLU; use a codec without ReLU")
        return opened.architecture, finished_model(opened, f"--codec {codec}")
    architecture = Architecture((int(channels[1]), int(channels[2])), "none")
    torch.manual_seed(0)
    model = build_model(architecture).eval()
    refresh_tables(model, solve=False)
    return architecture, model


def coder_speedups(codec: TorchCodec, crops: Path, cores: int) -> CoderSpeedups:
    """Encode and decode one crop's symbols repeatedly: one at a time, in threads, and in processes."""
    pixels = np.array(Image.open(sorted(crops.iterdir())[0]))
    x_BCHW = torch.from_numpy(pixels).permute(2, 0, 1)[None].float() / 255
    with torch.inference_mode():
        symbols = quantize(codec.analyse(x_BCHW)[0].numpy(), codec.tables)
    alone = _seconds(None, symbols, codec.tables, processes=1)
    with ThreadPoolExecutor(cores) as pool:
        threads = _seconds(pool, symbols, codec.tables, processes=1)
        processes = _seconds(pool, symbols, codec.tables, processes=cores)
    return CoderSpeedups(alone / threads, alone / processes)


def _seconds(pool: Executor | None, symbols: NDArray[Any], tables: Tables, processes: int) -> float:
    load_coder()
    with contextlib.ExitStack() as stack:
        code = stack.enter_context(coders(tables, processes))
        run = pool.map if pool else map
        list(run(lambda _: code(symbols, 224, 224), range(20)))
        began = time.perf_counter()
        list(run(lambda _: code(symbols, 224, 224), range(_CODINGS)))
        return time.perf_counter() - began
