"""2,000 mutated files of each version: each is refused with one line, or is read correctly. None ends the process."""

import random
import resource
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import pytest

from relic.bitstream.coder import Coder, PythonCoder, load_coder
from relic.bitstream.container import latent_shape, pack, read_stream
from relic.bitstream.tables import Tables
from relic.errors import InputError
from tests.bitstream.strategies import photo_like, typical_symbols, with_contexts

NUM_FILES = 2000
MEMORY_BYTES = 1 << 30
"""Limit of the address space, in addition to what imports need."""
SIZES = ((1, 1), (33, 17), (64, 48), (300, 200))
KINDS = {
    "plain": (photo_like(channels=5), photo_like(channels=5, seed=1)),
    "contexts": (with_contexts(channels=5, seed=0), with_contexts(channels=5, seed=1)),
}
"""The tables to read with, and others."""


def stream_of(size: tuple[int, int], tables: Tables, seed: int) -> bytes:
    symbols = typical_symbols(tables, *latent_shape(*size, tables)[1:], seed=seed)
    if seed % 3 == 0:
        symbols.flat[seed % symbols.size] = 5000  # an escape; a mutation may change the number of its digits
    return pack(symbols, *size, tables)


def with_crc(data: bytes) -> bytes:
    return data[:-4] + struct.pack("<I", zlib.crc32(data[:-4]))


def flip(rng: random.Random, data: bytes, kind: str) -> bytes:
    changed = bytearray(data)
    for _ in range(rng.randint(1, 8)):
        changed[rng.randrange(len(changed))] ^= 1 << rng.randrange(8)
    return bytes(changed)


def cut(rng: random.Random, data: bytes, kind: str) -> bytes:
    start = rng.choice([0, 0, rng.randrange(len(data))])
    return data[start : rng.randrange(start, len(data))]


def foreign(rng: random.Random, data: bytes, kind: str) -> bytes:
    """Symbols of other tables with the digest of these tables, or the reverse."""
    other = stream_of(rng.choice(SIZES), KINDS[kind][1], rng.randrange(100))
    return rng.choice([other, with_crc(other[:24] + data[24:32] + other[32:])])


def swap_headers(rng: random.Random, data: bytes, kind: str) -> bytes:
    other = stream_of(rng.choice(SIZES), KINDS[kind][0], rng.randrange(100))
    lengths = data[:32] + other[32:36]
    return with_crc(rng.choice([data[:36] + other[36:], lengths + other[36:]]))


def huge(rng: random.Random, data: bytes, kind: str) -> bytes:
    changed = bytearray(data)
    for offset in rng.sample([8, 12, 16, 20, 32], rng.randint(1, 5)):
        struct.pack_into("<I", changed, offset, rng.choice([2**31, 2**31 - 1, 2**32 - 1, 2**24, 2**14, 0]))
    return with_crc(bytes(changed))


def other_version(rng: random.Random, data: bytes, kind: str) -> bytes:
    """The other version, with its own digest or the one of the file."""
    tables = KINDS[kind][0].plain() if data[4] == 2 else KINDS["contexts"][0]
    digest = rng.choice([data[24:32], bytes.fromhex(tables.stream_digest[:16])])
    return with_crc(data[:4] + bytes([3 - data[4]]) + data[5:24] + digest + data[32:])


def flip_with_crc(rng: random.Random, data: bytes, kind: str) -> bytes:
    return with_crc(flip(rng, data, kind))


MUTATIONS = (flip, flip_with_crc, cut, foreign, swap_headers, huge, other_version)


def read_all(folder: Path, coder: Coder, count: int, kind: str) -> list[int]:
    """The number of files refused and read. Fails for any other result."""
    rng = random.Random(0)
    path = folder / "x.relic"
    tables = KINDS[kind][0]
    tally = [0, 0]
    for number in range(count):
        data = stream_of(SIZES[number % len(SIZES)], tables, number % 50)
        mutant = MUTATIONS[number % len(MUTATIONS)](rng, data, kind)
        path.write_bytes(mutant)
        try:
            stream = read_stream(path, tables, coder)
        except InputError as error:
            message = str(error)
            assert message.startswith(f"{path}: ") and "\n" not in message and len(message) < 400, message
            tally[0] += 1
        else:
            used = tables if mutant[4] == 2 else tables.plain()
            assert pack(stream.symbols, stream.width, stream.height, used) == mutant
            tally[1] += 1
    return tally


@pytest.mark.commands
@pytest.mark.parametrize("kind", KINDS)
def test_two_thousand_hostile_files(tmp_path: Path, kind: str) -> None:
    """In a separate process, so that a crash of the compiled coder fails this test, and memory can be limited."""
    command = [sys.executable, "-m", "tests.bitstream.test_mutations", str(tmp_path), kind]
    root = Path(__file__).resolve().parents[2]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=110, check=False)
    assert done.returncode == 0, (done.returncode, done.stderr)
    refused, read = map(int, done.stdout.split())
    assert refused + read == NUM_FILES
    assert refused > 0.8 * NUM_FILES and read > 0


@pytest.mark.parametrize("kind", KINDS)
def test_plain_python_refuses_them_too(tmp_path: Path, kind: str) -> None:
    refused, read = read_all(tmp_path, PythonCoder(), NUM_FILES // 10, kind)
    assert refused > read > 0


if __name__ == "__main__":
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY_BYTES, used + MEMORY_BYTES))
    sys.stdout.write("{} {}".format(*read_all(Path(sys.argv[1]), load_coder(), NUM_FILES, sys.argv[2])))
