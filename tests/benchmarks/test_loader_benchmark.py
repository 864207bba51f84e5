"""Tiny runs of the loader benchmark: tests the form of its results, not the speed."""

import io
import json
import subprocess
import sys
import tarfile
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest
import simplejpeg
from PIL import Image

from benchmarks._loader.ceilings import block_ceiling, copy_ceiling, decode_ceiling, mapped_members, read_ceiling
from benchmarks._loader.config import LoaderBenchmarkConfig
from benchmarks._loader.measure import RATIOS, Pass, ratios, steady_rate, time_shares
from benchmarks._loader.tables import comparison_table
from benchmarks._shared.crops import prepare_crops
from benchmarks.loader import main
from relic.errors import InputError
from relic.machine import available_cores
from relic.shards.shard_set import open_shard_set

FIGURES = {"relic_raw", "relic_jpg", "relic_png", "webdataset_jpg", "webdataset_npy", "torch_folder", "block_ceiling",
           "block_ceiling_1", "copy_ceiling", "read_ceiling", "decode_ceiling", "decode_ceiling_png"}  # fmt: skip
ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A folder of 10 images, and a working folder with the crops of the first run."""
    folder = tmp_path_factory.mktemp("benchmark")
    (folder / "images").mkdir()
    rng = np.random.default_rng(0)
    for number in range(10):
        coarse = Image.fromarray(rng.integers(0, 256, (6, 8, 3), dtype=np.uint8))
        coarse.resize((320, 240)).save(folder / "images" / f"{number}.jpg")
    prepare_crops(folder / "work", folder / "images", 24, available_cores())
    return folder / "images", folder / "work"


@pytest.mark.commands
def test_the_comparison_names_every_figure(work: tuple[Path, Path], tmp_path: Path) -> None:
    images, folder = work
    flags = {"images": images, "work_dir": folder, "crops": 24, "batch_size": 8, "epochs": 2}
    outputs = {name: tmp_path / f"loader.{ending}" for name, ending in (("json", "json"), ("plot", "png"),
                                                                        ("markdown", "md"))}  # fmt: skip
    arguments = [text for flag, value in (flags | outputs).items() for text in (f"--{flag}", str(value))]
    command = [sys.executable, str(ROOT / "benchmarks" / "loader.py"), *arguments]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "loader.json").read_text())
    assert set(found) >= FIGURES
    assert all(found[name] > 0 and found["by_epoch"][name][1] == found[name] for name in FIGURES)
    assert {"relic_raw/copy_ceiling", "relic_raw/webdataset_npy"} < set(found["ratios"])
    assert {"relic_jpg/decode_ceiling", "relic_jpg/webdataset_jpg"} < set(found["ratios"])
    for name, ratio in found["ratios"].items():
        ours, theirs = name.split("/")
        assert ratio == pytest.approx(found[ours] / found[theirs])
    assert found["machine"]["cores"] >= 1 and found["machine"]["torch"]
    assert all(name in done.stdout for name in (*FIGURES, *found["ratios"]))
    table = (tmp_path / "loader.md").read_text()
    assert table in done.stdout
    with Image.open(tmp_path / "loader.png") as picture:
        assert picture.format == "PNG" and picture.info["Description"] == table.strip()
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines() if line[:1] == "|"]
    assert [row[0] for row in rows[2:]] == ["raw", "jpg", "png"]
    of_copying, of_reading = (found["ratios"][f"relic_raw/{name}_ceiling"] for name in ("copy", "read"))
    assert rows[2][1:3] == [f"{found['relic_raw']:,.0f}", f"{of_copying:.2f} of copying, {of_reading:.2f} of reading"]
    assert rows[4][2] == f"{found['ratios']['relic_png/decode_ceiling_png']:.2f} of decoding"


def test_the_page_has_the_table_of_its_chart() -> None:
    """Both are of one run: `--markdown` writes the table, and `--plot` the chart, which holds the table too."""
    with Image.open(ROOT / "docs" / "loader.png") as picture:
        what, *lines = picture.info["Description"].splitlines()
    page = (ROOT / "docs" / "performance.md").read_text()
    table = "\n".join(line for line in lines if line.startswith("|"))
    assert what.rstrip(":") in page
    assert table.count("\n") == 4 and table in page


@pytest.mark.commands
def test_a_consumer_s_wait_on_raw_and_jpg(
    work: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images, folder = work
    flags = ["--wait", "--wait_batches", "6", "--consumer_ms", "5", "--batch_size", "8", "--crops", "24"]
    flags += ["--images", str(images), "--work_dir", str(folder), "--json", str(tmp_path / "wait.json")]
    assert main(flags) == 0
    found = json.loads((tmp_path / "wait.json").read_text())
    assert found["relic_raw_consumer_ms"] == found["relic_jpg_consumer_ms"] == 5
    assert 0 < found["relic_raw_wait"] < 1 and 0 < found["relic_jpg_wait"] < 1
    assert "relic_raw: a consumer of 5 ms" in capsys.readouterr().out


def members(folder: Path) -> dict[str, bytes]:
    """Name -> content of every member of a folder's tars, read with tarfile."""
    found = {}
    for tar in folder.glob("*.tar"):
        with tarfile.open(tar) as archive:
            for entry in archive:
                member = archive.extractfile(entry)
                assert member is not None
                found[entry.name] = member.read()
    return found


def test_ceilings_deliver_every_crop_once(work: tuple[Path, Path]) -> None:
    raw, jpg, png = (open_shard_set(work[1] / encoding, "train") for encoding in ("raw", "jpg", "png"))
    pixels = sorted(np.load(io.BytesIO(data)).tobytes() for data in members(raw.folder).values())
    jpgs = sorted(simplejpeg.decode_jpeg(data).tobytes() for data in members(jpg.folder).values())
    pngs = sorted(np.asarray(Image.open(io.BytesIO(data))).tobytes() for data in members(png.folder).values())
    with ExitStack() as stack:
        ceilings = {
            "copy": (copy_ceiling(raw, mapped_members(raw), 7, 2, stack), pixels),
            "read": (read_ceiling(raw, 7, 2, stack), pixels),
            "jpg": (decode_ceiling(jpg, mapped_members(jpg), 4, 2, stack), jpgs),
            "png": (decode_ceiling(png, mapped_members(png), 4, 2, stack), pngs),
            "twice": (copy_ceiling(raw, mapped_members(raw), 7, 3, stack, repeats=2), sorted(2 * pixels)),
        }
        for name, (epoch, expected) in ceilings.items():
            assert sorted(image.tobytes() for batch in epoch(0) for image in batch) == expected, name
        copied = [len(block) for block in block_ceiling(raw, 2, stack)(0)]
    assert copied == [15, 15] and raw.num_samples == 30


def test_what_bounds_the_copying_is_told(work: tuple[Path, Path]) -> None:
    raw = open_shard_set(work[1] / "raw", "train")
    figures = {"relic_raw": 900.0, "relic_jpg": 10.0, "relic_png": 1.0, "block_ceiling": 100_000.0,
               "copy_ceiling": 100_000.0, "read_ceiling": 80_000.0}  # fmt: skip
    pairs = {f"{ours}/{theirs}": 0.5 for ours, theirs in RATIOS} | {"block_ceiling/block_ceiling_1": 1.25}
    table = comparison_table("crops", figures, pairs | {"copy_ceiling/block_ceiling": 0.9}, raw, 2)
    assert "bound by the bandwidth of the memory: " in table and "(15.1 GB/s with all threads, 1.25 times" in table
    assert "a crop takes a thread 5.0 us more" in table  # 2 / 80,000 s less 2 / 100,000 s
    assert "bound by the calls for each crop: " in comparison_table("crops", figures, pairs, raw, 2)


def test_the_loose_files_are_the_members(work: tuple[Path, Path]) -> None:
    loose = {path.name: path.read_bytes() for path in (work[1] / "loose").iterdir()}
    assert len(loose) == 30 and loose == members(work[1] / "jpg")


def test_a_figure_is_the_median_after_the_first_epoch() -> None:
    passes = [Pass(100, seconds, 0.5, 0.25, 0.1) for seconds in (50.0, 1.0, 4.0, 2.0)]
    assert steady_rate(passes) == 50
    others = [Pass(100, seconds) for seconds in (1.0, 2.0, 2.0, 8.0)]
    assert ratios({"one": passes, "other": others}, [("one", "other")]) == {"one/other": 2}  # of 2, 0.5 and 4
    assert time_shares(passes[1:], 2) == pytest.approx((1.5 / 14, 0.75 / 14, 0.3 / 7))


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ({"wait": True, "shards": "d"}, "--shards and --wait"),
        ({"cold": True, "wait": True}, "--cold and --wait"),
        ({"plot": Path("p.png"), "wait": True}, "--plot has no effect here; leave out --wait"),
        ({"plot": Path("p.png"), "cold": True}, "leave out --cold"),
        ({"markdown": Path("p.md"), "wait": True}, "--markdown has no effect here; leave out --wait"),
        ({"epochs": 5, "wait": True}, "--epochs has no effect here; leave out --wait"),
        ({"images": Path("d"), "shards": "d"}, "--images has no effect here; leave out --shards"),
        ({"crops": 100, "shards": "d"}, "--crops has no effect here; leave out --shards"),
        ({"work_dir": Path("w"), "shards": "d"}, "--work_dir has no effect here; leave out --shards"),
        ({"wait_batches": 5, "shards": "d"}, "--wait_batches has no effect here; it needs --wait"),
        ({"seconds": 5.0}, "--seconds has no effect here; it needs --shards"),
        ({"split": "val", "cold": True}, "--split has no effect here; it needs --shards"),
        ({"io_threads": 5}, "--io_threads has no effect here; it needs --cold or --shards"),
        ({"consumer_ms": 5.0}, "--consumer_ms has no effect here; it needs --cold or --wait"),
        ({"consumer_ms": 0.0, "cold": True}, "--consumer_ms 0.0: must be more than 0"),
        ({"gpu_images_per_second": 5.0}, "--gpu_images_per_second"),
        ({"crops": 63}, "--crops 63"),
        ({"epochs": 1}, "--epochs 1"),
        ({"seconds": 0.0, "shards": "d"}, "--seconds 0.0: must be more than 0"),
    ],
)
def test_contradictions_name_the_flag(flags: dict[str, object], said: str) -> None:
    with pytest.raises(InputError, match=said):
        LoaderBenchmarkConfig(**flags)  # type: ignore[arg-type]


def test_many_crops_are_packed_for_cold_runs() -> None:
    usual, cold, chosen = LoaderBenchmarkConfig(), LoaderBenchmarkConfig(cold=True), LoaderBenchmarkConfig(crops=70)
    assert (usual.packed_crops, cold.packed_crops, chosen.packed_crops) == (3000, 48_000, 70)


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--shards", "nowhere"], "--shards nowhere: no such folder; python prep/make_shards.py makes one"),
        (["--images", "nowhere"], "--images nowhere: no such folder"),
        (["--markdown", "nowhere/x.md"], "--markdown nowhere/x.md: no folder nowhere"),
        (["--work_dir", "/proc/here"], "--work_dir /proc/here: /proc is not a folder that can be written to"),
    ],
)
def test_what_is_missing_is_refused(flags: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(flags) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"benchmarks/loader.py: error: {said}") and error.count("\n") == 1
