"""Compile both parts of an export by a toolchain, and compare its simulator with onnxruntime on the same crops.

Shapes: x_N3HW and x_hat_N3HW float32 in [0, 1]; y_NMhw, y_hat_NMhw float32; symbols_NMhw int32.
"""

import logging
import zipfile
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx

from export.crops import evenly_spread, fit_to_size, read_crops
from export.devices.lint import lint
from export.devices.rules import SOURCES, TARGETS
from export.int8.quality import score_symbols
from export.output_folder import staged_output
from export.toolchains.part import compile_part
from export.toolchains.plan import CompilePlan
from export.toolchains.report import REPORT, CompileReport, DeviceComparison, write_compile_report
from export.toolchains.running import CompiledPart
from relic import __version__
from relic.arrays import Floats, Symbols
from relic.bitstream.tables import Tables, dequantize, quantize
from relic.codec.scores import MeanScore, mean_score
from relic.errors import InputError, naming
from relic.onnx.layout import onnx_name
from relic.onnx.sessions import PartName, load_tables, open_decoder, open_encoder, run_each

log = logging.getLogger(__name__)


def compile_all(plan: CompilePlan) -> CompileReport:
    """Compile, run, compare, and write the results. Raises InputError with the vendor's words for a part it refuses."""
    config = plan.config
    tables = load_tables(config.export)
    x_N3HW = _read_crops(plan)
    y_NMhw = run_each(open_encoder(config.export, tables), x_N3HW)
    sent = _symbols(y_NMhw, tables)
    own = run_each(open_decoder(config.export, tables), _latents(sent, tables))
    with staged_output(plan.folder, last=REPORT) as staging:
        encoder, y_device = _compile(plan, "encoder", x_N3HW, staging)
        of_device = _symbols(y_device, tables)
        # Pixels are compared for the symbols of onnxruntime. The quality of the device is that of its own symbols.
        inputs = np.concatenate([_latents(sent, tables), _latents(of_device, tables)])
        decoder, x_hat = _compile(plan, "decoder", inputs, staging)
        levels = np.abs(_pixels(x_hat[: len(sent)]) - _pixels(own))
        comparison = DeviceComparison(
            crops=len(x_N3HW),
            crops_of="val crops of --shards" if plan.shards else "crops of the calibration",
            equal_symbols=float((sent == of_device).mean()),
            largest_symbol_difference=int(np.abs(sent - of_device).max()),
            equal_pixels=float((levels == 0).mean()),
            largest_pixel_difference=int(levels.max()),
            onnxruntime=_quality(x_N3HW, sent, own, tables),
            device=_quality(x_N3HW, of_device, x_hat[len(sent) :], tables),
        )
        report = CompileReport(
            relic_version=__version__,
            toolchain=config.toolchain,
            device=config.target_device,
            precision=plan.manifest.precision,
            upsample=plan.manifest.upsample,
            height=plan.manifest.height,
            width=plan.manifest.width,
            channels=plan.manifest.architecture.channels,
            parts={"encoder": encoder, "decoder": decoder},
            comparison=comparison,
        )
        write_compile_report(staging, report)
    return report


def _compile(plan: CompilePlan, part: PartName, inputs: Floats, out: Path) -> tuple[CompiledPart, Floats]:
    config = plan.config
    _predict(part, onnx.load(config.export / onnx_name(part)), plan)
    try:
        return compile_part(config.toolchain, plan.python, config.target_device, config.export, part, inputs, out)
    except InputError as error:
        raise InputError(f"{error}{_way_out(plan, part)}") from error


def _way_out(plan: CompilePlan, part: PartName) -> str:
    """What to change in the export, if it is known."""
    if plan.manifest.architecture.replaced not in ("all", part):
        return f"; the {part} holds GDN: fine-tune with train/main.py --replace_parts all"
    upsample = TARGETS[plan.config.toolchain].upsample
    return "" if plan.manifest.upsample == upsample else f"; export with --upsample {upsample}"


def _predict(part: PartName, model: onnx.ModelProto, plan: CompilePlan) -> None:
    """Say in the log which nodes the compiler is known to refuse or to leave to the host."""
    findings = lint(part, model, plan.config.toolchain, plan.manifest.parts[part].precision)
    known = {one.operator: one for one in findings if one.status in ("fails", "host")}
    for one in known.values():
        source = SOURCES[one.source]
        log.warning("%s, %s: expected of %s: %s, %s (%s)", part, one.node, one.operator, one.status, one.why, source)


def _read_crops(plan: CompilePlan) -> Floats:
    size = plan.manifest.height, plan.manifest.width
    count = plan.config.crops
    if plan.shards is None:
        return np.concatenate([_read_input(file, size) for file in plan.calibration[:count]])
    samples = evenly_spread(plan.shards, min(count, plan.shards.num_samples))
    return np.stack([fit_to_size(crop, *size) for crop in read_crops(plan.shards, samples)])


def _read_input(file: Path, size: tuple[int, int]) -> Floats:
    """An input of the encoder, (1, 3, H, W), as the exporter wrote it."""
    with naming(file):
        try:
            x_13HW = np.load(file, mmap_mode="r", allow_pickle=False)
        except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
            raise InputError(f"not an array that can be read; export again ({error})") from error
        if not isinstance(x_13HW, np.ndarray) or x_13HW.dtype != np.float32 or x_13HW.shape != (1, 3, *size):
            raise InputError(f"not float32 values of (1, 3, {size[0]}, {size[1]}); export again")
        return np.array(x_13HW)


def _symbols(y_NMhw: Floats, tables: Tables) -> Symbols:
    return np.stack([quantize(y, tables) for y in y_NMhw])


def _latents(symbols: Symbols, tables: Tables) -> Floats:
    return np.stack([dequantize(one, tables) for one in symbols])


def _pixels(x_hat: Floats) -> npt.NDArray[np.int32]:
    levels: npt.NDArray[np.int32] = np.rint(x_hat.clip(0, 1) * np.float32(255)).astype(np.int32)
    return levels


def _quality(x_N3HW: Floats, symbols: Symbols, x_hat_N3HW: Floats, tables: Tables) -> MeanScore:
    """PSNR, MS-SSIM and real rate of 8-bit pixels."""
    coded = zip(x_N3HW, x_hat_N3HW, symbols, strict=True)
    return mean_score([score_symbols(x[None], x_hat[None], one, tables) for x, x_hat, one in coded])
