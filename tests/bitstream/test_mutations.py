"""2,000 mutated files: each is refused with one line, or is read correctly. None ends the process."""

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
from tests.bitstream.strategies import photo_like, typical_symbols

NUM_FILES = 2000
MEMORY_BYTES = 1 << 30
"""Limit of the address space, in addition to what imports need."""
SIZES = ((1, 1), (33, 17), (64, 48), (300, 200))
TABLES = photo_like(channels=5)
FOREIGN = photo_like(channels=5, seed=1)


def stream_of(size: tuple[int, int], tables: Tables, seed: int) -> bytes:
    symbols = typical_symbols(tables, *latent_shape(*size, tables)[1:], seed=seed)
    if seed % 3 == 0:
        symbols.flat[seed % symbols.size] = 5000  # an escape; a mutation may change the number of its digits
    return pack(symbols, *size, tables)


def with_crc(data: bytes) -> bytes:
    return data[:-4] + struct.pack("<I", zlib.crc32(data[:-4]))


def flip(rng: random.Random, data: bytes) -> bytes:
    changed = bytearray(data)
    for _ in range(rng.randint(1, 8)):
        changed[rng.randrange(len(changed))] ^= 1 << rng.randrange(8)
    return bytes(changed)


def cut(rng: random.Random, data: bytes) -> bytes:
    start = rng.choice([0, 0, rng.randrange(len(data))])
    return data[start : rng.randrange(start, len(data))]


def foreign(rng: random.Random, data: bytes) -> bytes:
    """Symbols of other tables with the digest of these tables, or the reverse."""
    other = stream_of(rng.choice(SIZES), FOREIGN, rng.randrange(100))
    return rng.choice([other, with_crc(other[:24] + data[24:32] + other[32:])])


def swap_headers(rng: random.Random, data: bytes) -> bytes:
    other = stream_of(rng.choice(SIZES), TABLES, rng.randrange(100))
    lengths = data[:32] + other[32:36]
    return with_crc(rng.choice([data[:36] + other[36:], lengths + other[36:]]))


def huge(rng: random.Random, data: bytes) -> bytes:
    changed = bytearray(data)
    for offset in rng.sample([8, 12, 16, 20, 32], rng.randint(1, 5)):
        struct.pack_into("<I", changed, offset, rng.choice([2**31, 2**31 - 1, 2**32 - 1, 2**24, 2**14, 0]))
    return with_crc(bytes(changed))


def flip_with_crc(rng: random.Random, data: bytes) -> bytes:
    return with_crc(flip(rng, data))


MUTATIONS = (flip, flip_with_crc, cut, foreign, swap_headers, huge)


def read_all(folder: Path, coder: Coder, count: int) -> list[int]:
    """The number of files refused and read. Fails for any other result."""
    rng = random.Random(0)
    path = folder / "x.relic"
    tally = [0, 0]
    for number in range(count):
        data = stream_of(SIZES[number % len(SIZES)], TABLES, number % 50)
        mutant = MUTATIONS[number % len(MUTATIONS)](rng, data)
        path.write_bytes(mutant)
        try:
            stream = read_stream(path, TABLES, coder)
        except InputError as error:
            message = str(error)
            assert message.startswith(f"{path}: ") and "\n" not in message and len(message) < 400, message
            tally[0] += 1
        else:
            assert pack(stream.symbols, stream.width, stream.height, TABLES) == mutant
            tally[1] += 1
    return tally


@pytest.mark.commands
def test_two_thousand_hostile_files(tmp_path: Path) -> None:
    """In a separate process, so that a crash of the compiled coder fails this test, and memory can be limited."""
    command = [sys.executable, "-m", "tests.bitstream.test_mutations", str(tmp_path)]
    root = Path(__file__).resolve().parents[2]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=110, check=False)
    assert done.returncode == 0, (done.returncode, done.stderr)
    refused, read = map(int, done.stdout.split())
    assert refused + read == NUM_FILES
    assert refused > 0.8 * NUM_FILES and read > 0


def test_plain_python_refuses_them_too(tmp_path: Path) -> None:
    refused, read = read_all(tmp_path, PythonCoder(), NUM_FILES // 10)
    assert refused > read > 0


if __name__ == "__main__":
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY_BYTES, used + MEMORY_BYTES))
    sys.stdout.write("{} {}".format(*read_all(Path(sys.argv[1]), load_coder(), NUM_FILES)))
