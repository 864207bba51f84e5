"""Image to bitstream and back without torch: `python export/codec.py encode IN.png OUT.relic --export D`.

Needs numpy, Pillow and onnxruntime. Of the export folder it reads tables.npz and the one part that it runs.
"""

import argparse
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NoReturn, get_args

if not __package__:  # run as a file: same import root as `python -m export.codec`
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import numpy as np
from PIL import Image

from relic import __version__
from relic.arrays import Floats, Pixels
from relic.bitstream.container import Stream, latent_shape, pack, read_stream, write_stream
from relic.bitstream.rdoq import MoveSymbols, RdoqSettings, mover_of
from relic.bitstream.tables import Tables, dequantize, quantize
from relic.errors import InputError, before_work, command, naming, print_error
from relic.files import atomic_write
from relic.onnx.layout import DECODER, ENCODER, TABLES, check_export
from relic.onnx.sessions import OnnxPart, check_input_size, load_tables, open_decoder, open_encoder, run_part
from relic.options import Rdoq
from relic.pictures.decoding import read_pixels
from relic.pictures.reasons import Unreadable

PROG = "export/codec.py"
FORMATS = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG"}
"""Formats of a decoded image, by the suffix of its name."""
_JPEG_QUALITY = 95
_LATENTS_PER_RUN = 128 * 128
"""Positions that the decoder takes at once: an image of 2048x2048 pixels."""
_MARGIN = 4
"""Rows of latents around a strip. A pixel depends on 2 rows above and below its own: four 5x5 layers of stride 2."""


class _CodecParser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        print_error(PROG, message)
        sys.exit(2)


@command(PROG)
def main(argv: Sequence[str] | None = None) -> int:
    """Encode or decode one file. Exit code 0: done. 1: it failed. 2: the command line is wrong."""
    arguments = _parse(argv)
    with before_work():
        _check(arguments)
    if arguments.action == "encode":
        _encode_file(
            arguments.source,
            arguments.target,
            arguments.export,
            RdoqSettings(arguments.rdoq, arguments.rdoq_lmbda),
            contexts=arguments.contexts == "true",
        )
    else:
        _decode_file(arguments.source, arguments.target, arguments.export)
    return 0


def encode_file(pixels_HWC: Pixels, encoder: OnnxPart, tables: Tables, move: MoveSymbols | None = None) -> bytes:
    """An image to the bytes of a `.relic` file. Its edges are repeated until both sides are multiples of the stride.

    `move`: changes the symbols of an image (3, H, W) in [0, 1] before they are written, see `rdoq_of`.
    """
    height, width = pixels_HWC.shape[:2]
    _, rows, columns = latent_shape(width, height, tables)
    padded = rows * tables.stride, columns * tables.stride
    check_input_size(encoder, padded, (height, width), tables.stride)
    edges = [(0, padded[0] - height), (0, padded[1] - width), (0, 0)]
    x_CHW = np.pad(pixels_HWC, edges, mode="edge").transpose(2, 0, 1) / np.float32(255)
    y_1Mhw = run_part(encoder, np.ascontiguousarray(x_CHW[None]))
    with naming(encoder.path):
        symbols = quantize(y_1Mhw[0], tables)
    if move:
        symbols = move(symbols, x_CHW[:, :height, :width])
    with naming(encoder.path):
        return pack(symbols, width, height, tables)


def rdoq_of(decoder: OnnxPart, tables: Tables, settings: RdoqSettings) -> MoveSymbols:
    """A function that moves symbols as `settings` say, with the decoder that will read them."""

    def synthesise(y_hat_Mhw: Floats) -> Floats:
        return np.concatenate([rows for _, rows in _decoded_strips(y_hat_Mhw, decoder, tables)], axis=1)

    return mover_of(synthesise, tables, settings, decoder.fixed_size)


def decode_file(stream: Stream, decoder: OnnxPart, tables: Tables) -> Pixels:
    """The image of a `.relic` file, cut to its true size and rounded to 8 bits (half to even).

    A decoder for any size runs on strips of rows, so that the memory of a large image is bounded.
    """
    rows, columns = stream.symbols.shape[1:]
    padded = rows * tables.stride, columns * tables.stride
    check_input_size(decoder, padded, (stream.height, stream.width), tables.stride)
    pixels_HWC = np.empty((*padded, 3), np.uint8)
    for at, x_hat_CHW in _decoded_strips(dequantize(stream.symbols, tables), decoder, tables):
        rounded = np.rint(x_hat_CHW.clip(0, 1) * np.float32(255))
        pixels_HWC[at : at + x_hat_CHW.shape[1]] = rounded.transpose(1, 2, 0)
    return pixels_HWC[: stream.height, : stream.width]


def _decoded_strips(y_hat_Mhw: Floats, decoder: OnnxPart, tables: Tables) -> Iterator[tuple[int, Floats]]:
    """The decoder's pixels (3, rows, columns) of an image, strip by strip, and the first row of each."""
    rows, columns = y_hat_Mhw.shape[1:]
    strip = rows if decoder.fixed_size else max(1, _LATENTS_PER_RUN // columns)
    for first in range(0, rows, strip):
        top = max(0, first - _MARGIN)
        x_hat_CHW = run_part(decoder, np.ascontiguousarray(y_hat_Mhw[None, :, top : first + strip + _MARGIN]))[0]
        yield first * tables.stride, x_hat_CHW[:, (first - top) * tables.stride :][:, : strip * tables.stride]


def read_rgb(path: Path) -> Pixels:
    """The pixels of an image file, upright and in sRGB. Raises InputError naming the file when it cannot be read."""
    try:
        return read_pixels(path)
    except Unreadable as error:
        raise InputError(f"{path}: not a readable image ({error})") from error


def write_image(path: Path, pixels: Pixels) -> None:
    """Write atomically, in the format that the suffix names."""
    with atomic_write(path) as file:
        Image.fromarray(pixels).save(file, format=FORMATS[path.suffix.lower()], quality=_JPEG_QUALITY)


def _encode_file(source: Path, target: Path, folder: Path, rdoq: RdoqSettings, *, contexts: bool) -> None:
    tables = load_tables(folder)
    tables = tables if contexts else tables.plain()
    pixels = read_rgb(source)
    height, width = pixels.shape[:2]
    encoder = open_encoder(folder, tables)
    with naming(source):
        move = None if rdoq.effort == "off" else rdoq_of(open_decoder(folder, tables), tables, rdoq)
        data = encode_file(pixels, encoder, tables, move)
    write_stream(target, data)
    print(f"{target}: {width}x{height} pixels in {len(data):,} bytes, {8 * len(data) / (width * height):.3f} bpp")


def _decode_file(source: Path, target: Path, folder: Path) -> None:
    tables = load_tables(folder)
    stream = read_stream(source, tables)
    decoder = open_decoder(folder, tables)
    with naming(source):
        pixels = decode_file(stream, decoder, tables)
    write_image(target, pixels)
    print(f"{target}: {stream.width}x{stream.height} pixels")


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = _CodecParser(
        prog=PROG, description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("--version", action="version", version=f"relic {__version__}", help="print relic's version")
    actions = parser.add_subparsers(dest="action", required=True, metavar="encode|decode")
    for action, source, target in (("encode", "IN.png", "OUT.relic"), ("decode", "IN.relic", "OUT.png")):
        needs = f"{source} to {target}, by {_part(action)} and {TABLES}"
        sub = actions.add_parser(action, help=needs, description=needs, allow_abbrev=False)
        sub.add_argument("source", type=Path, metavar=source, help="file to read")
        sub.add_argument("target", type=Path, metavar=target, help="file to write")
        sub.add_argument("--export", type=Path, required=True, metavar="D", help="folder of onnx_parts.py --part all")
        if action == "encode":
            what = "false: write version 1, without the context tables of D"
            sub.add_argument("--contexts", choices=("true", "false"), default="true", help=what)
            what = f"move symbols where the saved bits are worth the error; runs {DECODER}, too (default: off)"
            sub.add_argument("--rdoq", choices=get_args(Rdoq), default="off", help=what)
            what = "what an error is worth, as lmbda in CompressAI's loss (default: it follows from the decoder)"
            sub.add_argument("--rdoq_lmbda", type=float, metavar="L", help=what)
    return parser.parse_args(argv)


def _check(arguments: argparse.Namespace) -> None:
    """Refuse paths that cannot work, before anything is read."""
    suffixes = [".relic"] if arguments.action == "encode" else list(FORMATS)
    if arguments.target.suffix.lower() not in suffixes or arguments.target.is_dir():
        raise InputError(f"{arguments.target}: name a file for the output, *{', *'.join(suffixes)}")
    if not arguments.source.is_file():
        raise InputError(f"{arguments.source}: no such file")
    if not arguments.target.parent.is_dir():
        raise InputError(f"{arguments.target.parent}: no such folder")
    needed = {_part(arguments.action), TABLES}
    if arguments.action == "encode":
        RdoqSettings(arguments.rdoq, arguments.rdoq_lmbda).check()
        needed |= {DECODER} if arguments.rdoq != "off" else set()
    check_export("--export", arguments.export, *sorted(needed))


def _part(action: str) -> str:
    """The part that an action runs."""
    return ENCODER if action == "encode" else DECODER


if __name__ == "__main__":
    sys.exit(main())
