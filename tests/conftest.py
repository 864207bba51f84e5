"""Small shard sets of random crops, written with relic's writer."""

import io
import os
import signal
import sys
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import simplejpeg
from numpy.typing import NDArray
from PIL import Image

from relic.arrays import Pixels
from relic.errors import InputError
from relic.options import Encoding
from relic.shards.manifest import MEMBER_SUFFIX, Manifest, Packing, write_manifest
from relic.shards.writer import ShardWriter
from relic.storage import resident
from tests.storage.s3_server import S3Server, serve_s3
from tests.torch_marker import needs_torch

# One thread, as torchrun sets it: sums have a fixed order, so that runs can be compared bit by bit.
os.environ.setdefault("OMP_NUM_THREADS", "1")


if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    # Shells make background commands ignore Ctrl-C, and child processes would inherit this.
    signal.signal(signal.SIGINT, signal.default_int_handler)

ShardFactory = Callable[..., dict[str, NDArray[Any]]]

_opened: list[Path] | None = None
"""The files that were opened since the fixture `opened` began; None outside of it."""


def _note_opened(event: str, arguments: tuple[Any, ...]) -> None:
    if event == "open" and _opened is not None and isinstance(arguments[0], str | bytes | os.PathLike):
        _opened.append(Path(os.fsdecode(arguments[0])))


sys.addaudithook(_note_opened)  # Python calls it for every file that it opens; a hook cannot be taken away again


def photograph(width: int, height: int, seed: int) -> Pixels:
    """Smooth colours with some texture, suitable for JPEG, and different for each seed."""
    rng = np.random.default_rng(seed)
    small = rng.integers(0, 256, (6, 8, 3), dtype=np.uint8)
    smooth = np.asarray(Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC)).astype(int)
    pixels: Pixels = np.clip(smooth + rng.integers(-8, 9, (height, width, 1)), 0, 255).astype(np.uint8)
    return pixels


@pytest.fixture(scope="session")
def make_photograph() -> Callable[[int, int, int], Pixels]:
    return photograph


@pytest.fixture
def opened() -> Iterator[list[Path]]:
    """The files that this process opens from here on, one entry per opening."""
    global _opened
    _opened = []
    yield _opened
    _opened = None


def encode(pixels: NDArray[Any], encoding: Encoding) -> bytes:
    """The payload of one sample."""
    buffer = io.BytesIO()
    if encoding == "raw":
        np.save(buffer, pixels)
    elif encoding == "png":
        Image.fromarray(pixels).save(buffer, "PNG")
    else:
        encoded: bytes = simplejpeg.encode_jpeg(pixels, quality=95)
        return encoded
    return buffer.getvalue()


def a_packing(**changed: Any) -> Packing:
    """Raw centre crops of 224x224, with `changed` fields."""
    fields: dict[str, Any] = {
        "split": "train",
        "width": 224,
        "height": 224,
        "crop": "center",
        "crops_per_image": 1,
        "encoding": "raw",
        "jpeg_quality": 95,
        "decode": "exact",
        "samples_per_shard": 1000,
        "seed": 0,
        "sources_sha256": "0" * 64,
        "libraries": {},
    }
    return Packing(**{**fields, **changed})


def refusal(make: Callable[[], object], capsys: pytest.CaptureFixture[str]) -> str:
    """The line with which a config (exit code 2) or a plan (InputError) refuses; empty if none does."""
    try:
        make()
    except SystemExit as end:
        assert end.code == 2
        return capsys.readouterr().err.removesuffix("\n")
    except InputError as error:
        return str(error)
    return ""


def set_ranks(monkeypatch: pytest.MonkeyPatch, rank: int = 0, size: int = 1) -> None:
    """Set the variables that torchrun sets for a rank of one machine."""
    for name, value in {"RANK": rank, "WORLD_SIZE": size, "LOCAL_RANK": rank, "LOCAL_WORLD_SIZE": size}.items():
        monkeypatch.setenv(name, str(value))
    monkeypatch.setenv("MASTER_ADDR", "localhost")
    monkeypatch.setenv("MASTER_PORT", "29500")


def write_shards(
    folder: Path,
    split: str = "train",
    counts: tuple[int, ...] = (5, 3),
    side: int = 176,
    encoding: Encoding = "raw",
    seed: int = 0,
    crops_per_image: int = 1,
) -> dict[str, NDArray[Any]]:
    """Write a split of random smooth crops; no tar for a count of 0. Returns key -> pixels, in order.

    The listing names the source `NUMBER.jpg`, with NUMBER = place // `crops_per_image`.
    """
    rng = np.random.default_rng(seed)
    folder.mkdir(parents=True, exist_ok=True)
    packed: dict[str, NDArray[Any]] = {}
    infos = []
    for number, count in enumerate(counts):
        with ShardWriter(folder / f"{split}-{number:06d}.tar") as writer:
            for _ in range(count):
                key = f"{split}{len(packed):05d}"
                coarse = Image.fromarray(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8))
                pixels = np.asarray(coarse.resize((side, side), Image.Resampling.BICUBIC))
                listing: dict[str, object] = {"source": f"{len(packed) // crops_per_image}.jpg"}
                writer.add(key, MEMBER_SUFFIX[encoding], encode(pixels, encoding), listing)
                packed[key] = pixels
        if writer.info is not None:
            infos.append(writer.info)
    packing = a_packing(split=split, width=side, height=side, encoding=encoding)
    write_manifest(folder, Manifest(packing, tuple(infos), len(packed), 0))
    return packed


@pytest.fixture(autouse=True)
def _own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each test has its own cache folder, separate from the user's."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))


@pytest.fixture(autouse=True)
def _fillers_end(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """What fills a cache in the background ends with its test. Else it makes the store of the next test's server.

    That one would lack the keys, if they are set a moment later.
    """
    ends: list[Callable[[], None]] = []
    monkeypatch.setattr(resident, "atexit", types.SimpleNamespace(register=ends.append))
    yield
    for end in ends:
        end()


@pytest.fixture
def make_shards() -> ShardFactory:
    return write_shards


@pytest.fixture(scope="session")
def crops(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with 12 train and 4 val crops of 176x176."""
    folder = tmp_path_factory.mktemp("crops")
    write_shards(folder, "train", (7, 5), seed=1)
    write_shards(folder, "val", (3, 1), seed=2)
    return folder


def pytest_configure(config: pytest.Config) -> None:
    """Under `-m "... not torch"` every import of torch fails, so that no unmarked test can need it."""
    if "not torch" in str(config.option.markexpr):
        sys.modules["torch"] = None  # type: ignore[assignment]  # an import raises ImportError


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """With `-m "... not torch"`, do not collect files and folders that need torch."""
    if "not torch" not in str(config.option.markexpr):
        return None
    module = collection_path / "conftest.py" if collection_path.is_dir() else collection_path
    return True if module.suffix == ".py" and module.exists() and needs_torch(module) else None


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the tests that need torch."""
    for item in items:
        if needs_torch(item.path):
            item.add_marker("torch")


@pytest.fixture
def s3(monkeypatch: pytest.MonkeyPatch) -> Iterator[S3Server]:
    """A server of object storage, and the keys for it in the environment."""
    with serve_s3("MYKEY") as server:
        monkeypatch.setenv("AWS_ENDPOINT_URL", server.url)
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", "MYKEY")
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "S3CRET")
        yield server
