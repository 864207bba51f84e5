"""Picture to bitstream and back without torch: `python export/codec.py encode IN.png OUT.relic --export D`.

Needs numpy, Pillow, onnxruntime and relic.bitstream, and of the export folder only tables.npz and the one part it runs.
"""

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

if not __package__:  # run as a file: same import root as `python -m export.codec`
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from relic.errors import InputError
from relic.onnx.layout import DECODER, ENCODER, TABLES

PROG = "export/codec.py"


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{PROG}: error: {message} (see --help)\n")


def main(argv: Sequence[str] | None = None) -> int:
    """Encode or decode one file; 0 when done, 1 when it failed, 2 (by SystemExit) for a wrong command line."""
    arguments = _parse(argv)
    try:
        (_encode if arguments.action == "encode" else _decode)(arguments.source, arguments.target, arguments.export)
    except (InputError, OSError) as error:
        if os.environ.get("RELIC_TRACEBACK"):
            raise
        print(f"{PROG}: error: {' '.join(str(error).split())}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"{PROG}: interrupted", file=sys.stderr)
        return 130
    return 0


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = _Parser(prog=PROG, description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    actions = parser.add_subparsers(dest="action", required=True, metavar="encode|decode")
    for action, source, target in (("encode", "IN.png", "OUT.relic"), ("decode", "IN.relic", "OUT.png")):
        part = ENCODER if action == "encode" else DECODER
        needs = f"{source} to {target}, by {part} and {TABLES}"
        sub = actions.add_parser(action, help=needs, description=needs)
        sub.add_argument("source", type=Path, metavar=source, help="file to read")
        sub.add_argument("target", type=Path, metavar=target, help="file to write")
        sub.add_argument("--export", type=Path, required=True, metavar="D", help="folder of onnx_parts.py --part all")
    arguments = parser.parse_args(argv)
    _check(arguments, parser)
    return arguments


def _check(arguments: argparse.Namespace, parser: _Parser) -> None:
    """Refuse what cannot work before onnxruntime is loaded."""
    from export.pictures import FORMATS

    suffixes = [".relic"] if arguments.action == "encode" else list(FORMATS)
    if arguments.target.suffix.lower() not in suffixes or arguments.target.is_dir():
        parser.error(f"{arguments.target}: name a file for the output, *{', *'.join(suffixes)}")
    if not arguments.source.is_file():
        parser.error(f"{arguments.source}: no such file")
    if not arguments.target.parent.is_dir():
        parser.error(f"{arguments.target.parent}: no such folder")
    for name in (ENCODER if arguments.action == "encode" else DECODER, TABLES):
        if not (arguments.export / name).is_file():
            parser.error(f"--export {arguments.export}: holds no {name}; export/onnx_parts.py --part all writes it")


def _encode(source: Path, target: Path, folder: Path) -> None:
    from export.device import encode
    from export.pictures import read_picture
    from relic.bitstream.container import write_stream
    from relic.onnx.sessions import load_tables, open_encoder

    tables = load_tables(folder)
    pixels = read_picture(source)
    height, width = pixels.shape[:2]
    data = encode(pixels, open_encoder(folder, tables), tables)
    write_stream(target, data)
    print(f"{target}: {width}x{height} pixels in {len(data):,} bytes, {8 * len(data) / (width * height):.3f} bpp")


def _decode(source: Path, target: Path, folder: Path) -> None:
    from export.device import decode
    from export.pictures import write_picture
    from relic.bitstream.container import read_stream
    from relic.onnx.sessions import load_tables, open_decoder

    tables = load_tables(folder)
    stream = read_stream(source, tables)
    write_picture(target, decode(stream, open_decoder(folder, tables), tables))
    print(f"{target}: {stream.width}x{stream.height} pixels")


if __name__ == "__main__":
    sys.exit(main())
