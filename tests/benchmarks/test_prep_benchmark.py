"""Tiny runs of the packing benchmark: tests the form of its results, not the speed."""

import io
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import simplejpeg
from PIL import Image

from benchmarks._prep import loops, runs
from benchmarks._prep.runs import PackRun, PackVariant, Rate, median_rates
from benchmarks._prep.tables import RATIOS, all_loops, all_variants
from benchmarks.prep import PrepBenchmarkConfig, main
from prep.images import LocalImages
from prep.shard_worker import make_crops
from prep.tasks import KeyedSource
from relic.errors import InputError
from relic.pictures.listing import Source
from tests.conftest import a_packing


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder: Path = tmp_path_factory.mktemp("images")
    rng = np.random.default_rng(0)
    for number in range(6):
        coarse = Image.fromarray(rng.integers(0, 256, (6, 8, 3), dtype=np.uint8))
        coarse.resize((640, 480), Image.Resampling.BICUBIC).save(folder / f"{number}.jpg", quality=92)
    (folder / "other.png").write_bytes(b"not a JPEG")
    return folder


@pytest.mark.commands
@pytest.mark.timeout(300)
def test_every_figure_is_named(images: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    flags = {"images": images, "images_per_worker": 20, "rounds": 1, "listed": 30, "json": tmp_path / "prep.json"}
    assert main([text for flag, value in flags.items() for text in (f"--{flag}", str(value))]) == 0
    found = json.loads((tmp_path / "prep.json").read_text())
    names = {name for name, *_ in all_variants()} | {loop.name for loop in all_loops()}
    assert len(names) == 19
    assert all(found[name] > 0 and found["by_round"][name] == [found[name]] for name in names)
    assert found["ratios"] == {f"{a}/{b}": pytest.approx(found[a] / found[b]) for a, b in RATIOS}
    assert 0 < found["peak_mb"] < 250
    assert found["fast_worst_psnr_db"] <= found["fast_psnr_db"]
    assert found["seconds_to_first_shard"] > 0
    assert found["machine"]["cores"] >= 1 and found["settings"]["sources"] == 6
    said = capsys.readouterr().out
    assert all(name in said for name in (*names, *found["ratios"]))


def test_the_loops_make_the_crops_that_prep_makes(images: Path) -> None:
    path = images / "3.jpg"
    packing = a_packing(samples_per_shard=1, sources_sha256="")
    (crop,) = make_crops(LocalImages(images), KeyedSource(Source(path.name, path.stat().st_size), "3"), packing)
    expected = np.frombuffer(crop.payload, np.uint8, offset=128).reshape(224, 224, 3).astype(int)
    raw = np.frombuffer(loops.bare_raw(path), np.uint8).reshape(224, 224, 3)
    png = np.asarray(Image.open(io.BytesIO(loops.bare_png(path))))
    jpg, pillow = (simplejpeg.decode_jpeg(make(path)) for make in (loops.bare_jpg, loops.pillow_jpg))
    inside = slice(4, -4)  # at the edges, a box also uses pixels outside it
    for found, levels in ((raw, 0), (png, 0), (jpg, 12), (pillow, 12)):
        assert np.abs(found - expected)[inside, inside].max() <= levels
    assert loops.decode_half(path).shape == (240, 320, 4)
    assert loops.decode_eighth(path).shape == (60, 80, 4)


def test_a_rate_is_what_a_longer_run_has_more(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    def run(images: object, work: Path, variant: PackVariant, per_shard: int, shards: int) -> PackRun:
        count = per_shard * shards
        return PackRun(count, 0.5 + count / 200, 40 + shards)

    monkeypatch.setattr(runs, "_run", run)
    rate = runs.measure_rate([], tmp_path, PackVariant("raw", "exact", 2), 40)
    assert rate == pytest.approx((200, 0.5, 48))
    assert median_rates([rate, Rate(1, 1, 99), Rate(300, 0.1, 9)]) == pytest.approx((200, 0.5, 99))


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ({"images_per_worker": 3}, "--images_per_worker 3"),
        ({"rounds": 0}, "--rounds 0"),
    ],
)
def test_contradictions_name_the_flag(flags: dict[str, object], said: str) -> None:
    with pytest.raises(InputError, match=said):
        PrepBenchmarkConfig(**flags)  # type: ignore[arg-type]


def test_what_the_bare_loop_cannot_read_is_said(tmp_path: Path, make_broken: Callable[[], Path]) -> None:
    with pytest.raises(InputError, match="--images"):
        loops.images_per_second(loops.bare_raw, [make_broken()] * 2, 1)


@pytest.fixture
def make_broken(tmp_path: Path) -> Callable[[], Path]:
    def make() -> Path:
        (tmp_path / "broken.jpg").write_bytes(b"x")
        return tmp_path / "broken.jpg"

    return make
