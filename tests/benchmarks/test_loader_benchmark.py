"""Tiny runs of the loader benchmark: tests the form of its results, not the speed."""

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

from benchmarks._loader.ceilings import copy_ceiling, decode_ceiling
from benchmarks._loader.measure import Pass, steady_rate, time_shares
from benchmarks._shared.crops import prepare_crops
from benchmarks.loader import LoaderBenchmarkConfig, main
from relic.errors import InputError
from relic.machine import available_cores
from relic.shards.shard_set import open_shard_set
from tests.conftest import ShardFactory

FIGURES = {"relic_raw", "relic_jpg", "relic_png", "webdataset_jpg", "webdataset_npy", "torch_folder", "copy_ceiling",
           "decode_ceiling"}  # fmt: skip
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


def test_the_comparison_names_every_figure(work: tuple[Path, Path], tmp_path: Path) -> None:
    images, folder = work
    flags = {"images": images, "work_dir": folder, "crops": 24, "batch_size": 8, "epochs": 2}
    outputs = {"json": tmp_path / "loader.json", "plot": tmp_path / "loader.png"}
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
    with Image.open(tmp_path / "loader.png") as picture:
        assert picture.format == "PNG"


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


def test_a_user_s_own_set(make_shards: ShardFactory, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_shards(tmp_path / "own", "val", (9, 8), side=64, encoding="jpg")
    flags = ["--shards", str(tmp_path / "own"), "--split", "val", "--gpu_images_per_second", "0.5"]
    assert main([*flags, "--batch_size", "4", "--epochs", "2", "--json", str(tmp_path / "own.json")]) == 0
    found = json.loads((tmp_path / "own.json").read_text())
    assert found["gpus"] == pytest.approx(found["images_per_second"] / 0.5)
    assert {found["bound_by"], found["first_bound_by"]} <= {"read", "decode", "copy"}
    assert 0 < found["shares"]["decode"] <= 1
    assert "17 val crops of 64x64, jpg, 2 shards" in capsys.readouterr().out


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
    raw, jpg = (open_shard_set(work[1] / encoding, "train") for encoding in ("raw", "jpg"))
    copied = [image.tobytes() for batch in copy_ceiling(raw, 7)(0) for image in batch]
    assert sorted(copied) == sorted(data[128:] for data in members(raw.folder).values())
    with ExitStack() as stack:
        decoded = [image.tobytes() for batch in decode_ceiling(jpg, 4, 2, stack)(0) for image in batch]
    assert sorted(decoded) == sorted(simplejpeg.decode_jpeg(data).tobytes() for data in members(jpg.folder).values())


def test_the_loose_files_are_the_members(work: tuple[Path, Path]) -> None:
    loose = {path.name: path.read_bytes() for path in (work[1] / "loose").iterdir()}
    assert len(loose) == 30 and loose == members(work[1] / "jpg")


def test_a_figure_is_the_median_after_the_first_epoch() -> None:
    passes = [Pass(100, seconds, 0.5, 0.25, 0.1) for seconds in (50.0, 1.0, 4.0, 2.0)]
    assert steady_rate(passes) == 50
    assert time_shares(passes[1:], 2) == pytest.approx((1.5 / 14, 0.75 / 14, 0.3 / 7))


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ({"wait": True, "shards": Path("d")}, "--wait"),
        ({"plot": Path("p.png"), "wait": True}, "--plot"),
        ({"consumer_ms": 5.0}, "--consumer_ms"),
        ({"gpu_images_per_second": 5.0}, "--gpu_images_per_second"),
        ({"crops": 63}, "--crops 63"),
        ({"epochs": 1}, "--epochs 1"),
    ],
)
def test_contradictions_name_the_flag(flags: dict[str, object], said: str) -> None:
    with pytest.raises(InputError, match=said):
        LoaderBenchmarkConfig(**flags)  # type: ignore[arg-type]
