"""`.relic` files: every image size can be read back, and every kind of damage is named."""

import struct
import tracemalloc
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from relic.bitstream.coder import PythonCoder, load_coder
from relic.bitstream.container import (
    MAX_PIXELS,
    OVERHEAD_BYTES,
    latent_shape,
    pack,
    read_stream,
    read_stream_header,
    unpack,
    write_stream,
)
from relic.bitstream.runs import code_length_bits
from relic.bitstream.tables import Tables
from relic.errors import InputError
from tests.bitstream.strategies import make_tables, photo_like, typical_symbols

TABLES = photo_like(channels=3)


def stream_of(width: int, height: int, tables: Tables = TABLES) -> tuple[bytes, NDArray[Any]]:
    symbols = typical_symbols(tables, *latent_shape(width, height, tables)[1:], seed=width * 1000 + height)
    return pack(symbols, width, height, tables), symbols


def with_header(data: bytes, offset: int, field: str, value: int) -> bytes:
    """`data` with one header field replaced and the CRC corrected."""
    changed = bytearray(data[:-4])
    struct.pack_into(field, changed, offset, value)
    return bytes(changed) + struct.pack("<I", zlib.crc32(changed))


@settings(max_examples=100, deadline=None)
@given(width=st.integers(1, 300), height=st.integers(1, 300))
def test_every_size_round_trips(width: int, height: int) -> None:
    data, symbols = stream_of(width, height)
    assert symbols.shape == (3, (height + 15) // 16, (width + 15) // 16)
    assert len(data) == pytest.approx(OVERHEAD_BYTES + code_length_bits(symbols, TABLES) / 8 + 6, abs=2, rel=1e-3)
    for coder in (load_coder(), PythonCoder()):
        stream = unpack(data, TABLES, coder)
        assert (stream.width, stream.height) == (width, height)
        np.testing.assert_array_equal(stream.symbols, symbols)


def test_the_bytes_stand_as_documented() -> None:
    data, symbols = stream_of(33, 17)
    assert data[:8] == b"RELI\x01\x00\x03\x00"
    assert struct.unpack("<4I", data[8:24]) == (33, 17, 3, 2)
    assert data[24:32].hex() == TABLES.digest[:16]
    assert struct.unpack("<I", data[32:36]) == (len(data) - 40,)
    assert zlib.crc32(data) == 0x2144DF1C  # the CRC-32 of any message with its CRC-32 appended
    header = read_stream_header(data[:36])
    assert (header.width, header.height, header.latent_shape) == (33, 17, symbols.shape)


def test_every_flipped_byte_cut_and_addition_is_refused() -> None:
    data, _ = stream_of(40, 20)
    flips = [
        data[:place] + bytes([data[place] ^ change]) + data[place + 1 :]
        for place in range(len(data))
        for change in (1, 0x80, 0xFF)
    ]
    cuts = [data[:size] for size in range(len(data))]
    for other in [*flips, *cuts, data + b"\0", data + data]:
        with pytest.raises(InputError) as caught:
            unpack(other, TABLES)
        assert ": " in str(caught.value)
        assert "\n" not in str(caught.value)


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 10**6), st.integers(1, 255)), min_size=1, max_size=4))
def test_mutations_with_a_right_crc(edits: list[tuple[int, int]]) -> None:
    """The mutant is refused, or is what `pack` writes for other symbols or another image size with these latents."""
    changed = bytearray(stream_of(40, 20)[0][:-4])
    for place, change in edits:
        changed[place % len(changed)] ^= change
    data = bytes(changed) + struct.pack("<I", zlib.crc32(changed))
    try:
        stream = unpack(data, TABLES)
    except InputError:
        return
    assert pack(stream.symbols, stream.width, stream.height, TABLES) == data


@pytest.mark.parametrize("coder", [load_coder(), PythonCoder()], ids=["installed", "python"])
def test_huge_claims_cost_neither_time_nor_memory(coder: PythonCoder) -> None:
    data, _ = stream_of(40, 20)
    claims = [
        with_header(data, 8, "<Q", 2**31 << 32 | 2**31),
        with_header(data, 8, "<I", 2**31),
        with_header(data, 12, "<I", 2**32 - 1),
        with_header(data, 8, "<I", 2**24),
        with_header(data, 8, "<Q", 0),
        with_header(data, 16, "<I", 2**31),
        with_header(data, 6, "<H", 65535),
        with_header(data, 32, "<I", 2**32 - 1),
        with_header(with_header(data, 8, "<Q", 16384 << 32 | 16384), 16, "<Q", 1024 << 32 | 1024),
    ]
    tracemalloc.start()
    for claim in claims:
        with pytest.raises(InputError):
            unpack(claim, TABLES, coder)
    assert tracemalloc.get_traced_memory()[1] < 2**20
    tracemalloc.stop()


def test_a_flat_image_may_be_large_and_short() -> None:
    tables = make_tables([[0, 65535, 65536]], [0])
    data = pack(np.zeros((1, 512, 512), np.int32), 8192, 8192, tables)
    assert len(data) < OVERHEAD_BYTES + 16
    assert not unpack(data, tables).symbols.any()


def test_other_tables_are_named() -> None:
    others = photo_like(channels=3, seed=1)
    data, _ = stream_of(16, 16)
    with pytest.raises(InputError, match=f"{TABLES.digest[:16]}.*{others.digest[:16]}: decode with the export folder"):
        unpack(data, others)


def test_what_cannot_be_packed_is_refused() -> None:
    symbols = typical_symbols(TABLES, 2, 2)
    with pytest.raises(InputError, match="do not belong to 33 x 17"):
        pack(symbols, 33, 17, TABLES)
    with pytest.raises(InputError, match="cut it into tiles"):
        pack(symbols, MAX_PIXELS // 16 + 1, 1, TABLES)
    with pytest.raises(InputError, match="cannot be coded"):
        pack(symbols, 0, 16, TABLES)


def test_files(tmp_path: Path) -> None:
    data, symbols = stream_of(100, 50)
    path = tmp_path / "image.relic"
    write_stream(path, data)
    assert [file.name for file in tmp_path.iterdir()] == ["image.relic"]
    np.testing.assert_array_equal(read_stream(path, TABLES).symbols, symbols)
    (tmp_path / "cut.relic").write_bytes(data[:-1])
    (tmp_path / "long.relic").write_bytes(data + b"\0")
    (tmp_path / "image.png").write_bytes(b"\x89PNG" * 20)
    (tmp_path / "empty.relic").touch()
    for name, fault in (
        ("gone.relic", "No such file"),
        (".", "Is a directory"),
        ("cut.relic", "cut"),
        ("long.relic", "bytes after the stream"),
        ("image.png", "not a .relic file"),
        ("empty.relic", "not a .relic file"),
    ):
        with pytest.raises(InputError, match=f"{name}: .*{fault}" if name != "." else fault):
            read_stream(tmp_path / name, TABLES)
