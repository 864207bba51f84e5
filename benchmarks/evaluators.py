"""relic's evaluator and CompressAI's on the same files, and how far the entropy coder goes on several cores."""

import contextlib
import re
import statistics
import time
from concurrent.futures import Executor, ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from compressai.models import FactorizedPrior
from PIL import Image

from benchmarks.crops import prepare_crops
from evaluate.codecs import TorchCodec, open_labelled
from evaluate.coding import coders
from evaluate.evaluator import evaluate
from evaluate.sources import FolderSource, ShardSource, open_source
from evaluate.summary import summarise
from relic.bitstream.coder import load_coder
from relic.bitstream.tables import Tables, quantize
from relic.codec.model import Architecture, build_model
from relic.codec.pretrained import open_codec
from relic.codec.quantiles import refresh_tables
from relic.distributed import World
from relic.errors import InputError

_CPU = torch.device("cpu")
_CODINGS = 400


class BothCodecs(NamedTuple):
    """The same weights for either evaluator."""

    relic: TorchCodec
    compressai: FactorizedPrior


class Speeds(NamedTuple):
    """Images per second, and what was found: both judge the same weights."""

    num_images: int
    relic: float
    compressai: float
    relic_psnr_db: float
    compressai_psnr_db: float
    relic_bpp: float
    compressai_bpp: float


class CoderSpeedups(NamedTuple):
    """How much faster a crop's symbols are coded by several at a time than by one."""

    threads: float
    processes: float


def loose_crops(folder: Path, images: Path | None, crops: int, cores: int) -> Path:
    """A folder of 224x224 PNGs."""
    packed = ShardSource(prepare_crops(folder / "packed", images, crops, cores).raw)
    loose = folder / "crops"
    loose.mkdir()
    for picture in packed.pictures(range(crops)):
        Image.fromarray(picture.image_BHWC[0].numpy()).save(loose / f"{picture.number:05d}.png")
    return loose


def open_both(name: str) -> BothCodecs:
    """`embedded`, a file, or N,M for random weights (scaled so that their rate is one that is used)."""
    if channels := re.fullmatch(r"(\d+),(\d+)", name):
        architecture = Architecture((int(channels[1]), int(channels[2])), "none")
        models = []
        for _ in range(2):
            torch.manual_seed(0)
            model = build_model(architecture).eval()
            with torch.no_grad():
                model.g_a[6].weight.mul_(0.3)
            refresh_tables(model, solve=False)
            models.append(model)
        return BothCodecs(TorchCodec(name, "random", architecture, models[0], _CPU), models[1])
    ours, theirs = open_labelled(name, "codec", _CPU), open_codec(name, flag="--codec")
    if ours.architecture.replaced != "none":
        raise InputError(f"--codec {name}: has ReLU in {ours.architecture.replaced}, CompressAI's tool takes it not")
    # As CompressAI builds and keeps it: contiguous memory.
    return BothCodecs(ours, theirs.model.to(memory_format=torch.contiguous_format))


def measure_evaluators(both: BothCodecs, crops: Path, rounds: int, workers: int) -> Speeds:
    """Let them take turns; the first turn of each warms up."""
    # It sets torch to one thread when imported, as it does in every run of its own.
    from compressai.utils.eval_model.__main__ import collect_images, eval_model

    source = open_source(None, "val", crops)
    assert isinstance(source, FolderSource)
    world = World(0, 1, _CPU)
    options = {"entropy_estimation": False, "half": False, "per_image": False, "architecture": "bmshj2018-factorized"}
    seconds: dict[str, list[float]] = {"relic": [], "compressai": []}
    for _ in range(rounds):
        began = time.perf_counter()
        evaluation = evaluate(both.relic, source, world, bitstream=True, recon_count=0, workers=workers)
        seconds["relic"].append(time.perf_counter() - began)
        began = time.perf_counter()
        theirs = eval_model(both.compressai, "", crops, collect_images(str(crops)), **options)
        seconds["compressai"].append(time.perf_counter() - began)
    ours = summarise(evaluation.results)
    assert ours.psnr_db is not None and ours.bpp_real is not None
    speed = {name: source.num_images / statistics.median(found[1:]) for name, found in seconds.items()}
    return Speeds(
        source.num_images,
        **speed,
        relic_psnr_db=ours.psnr_db,
        compressai_psnr_db=theirs["psnr-rgb"],
        relic_bpp=ours.bpp_real,
        compressai_bpp=theirs["bpp"],
    )


def coder_speedups(codec: TorchCodec, crops: Path, cores: int) -> CoderSpeedups:
    """Encode and decode one crop's symbols again and again: one at a time, in threads, in processes."""
    pixels = np.array(Image.open(sorted(crops.iterdir())[0]))
    x_BCHW = torch.from_numpy(pixels).permute(2, 0, 1)[None].float() / 255
    with torch.inference_mode():
        symbols = quantize(codec.analyse(x_BCHW)[0].numpy(), codec.tables)
    alone = _seconds(None, symbols, codec.tables, processes=1)
    with ThreadPoolExecutor(cores) as pool:
        threads = _seconds(pool, symbols, codec.tables, processes=1)
        processes = _seconds(pool, symbols, codec.tables, processes=cores)
    return CoderSpeedups(alone / threads, alone / processes)


def _seconds(pool: Executor | None, symbols: np.ndarray, tables: Tables, processes: int) -> float:
    load_coder()
    with contextlib.ExitStack() as stack:
        code = stack.enter_context(coders(tables, processes))
        run = pool.map if pool else map
        list(run(lambda _: code(symbols, 224, 224), range(20)))
        began = time.perf_counter()
        list(run(lambda _: code(symbols, 224, 224), range(_CODINGS)))
        return time.perf_counter() - began
