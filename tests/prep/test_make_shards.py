"""make_shards.py as a whole, called in this process. Each run starts real workers."""

import dataclasses
import json
import os
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import webdataset
from numpy.typing import NDArray
from PIL import Image

from prep.make_shards import main
from relic.shards.manifest import read_manifest
from relic.shards.shard_set import open_shard_set, plan_path

pytestmark = pytest.mark.commands


SMALL = ("--samples_per_shard", "4", "--workers", "1")


def run(coco: Path, out: Path, *flags: str) -> int:
    shape = () if {"--size", "--width"} & set(flags) else ("--size", "32")
    try:
        return main(["--coco_dir", str(coco), "--out_dir", str(out), *SMALL, *shape, *flags])
    except SystemExit as stop:  # a wrong command line
        assert isinstance(stop.code, int)
        return stop.code


def plain_centre_crop(path: Path, side: int) -> NDArray[Any]:
    """The expected content of the shards, made with Pillow alone."""
    image = Image.open(path).convert("RGB")
    square = min(image.size)
    left, top = (image.width - square) // 2, (image.height - square) // 2
    image = image.crop((left, top, left + square, top + square))
    return np.asarray(image.resize((side, side), Image.Resampling.BICUBIC))


def test_tar_webdataset_and_pillow_agree(make_coco: Callable[..., Path], tmp_path: Path) -> None:
    coco, out = make_coco(train=9, val=3), tmp_path / "out"
    assert run(coco, out) == 0
    assert open_shard_set(out, "train").samples == (4, 4, 1)
    assert open_shard_set(out, "val").samples == (3,)
    tars = sorted(out.glob("train-*.tar"))
    found = {
        sample["__key__"]: sample["npy"]
        for sample in webdataset.WebDataset([str(tar) for tar in tars], shardshuffle=False).decode()
    }
    sources = sorted((coco / "train2017").iterdir())
    assert list(found) == [source.stem for source in sources]
    for source in sources:
        expected = plain_centre_crop(source, 32).astype(int)
        assert np.abs(found[source.stem] - expected).max() <= 2  # two JPEG decoders
    names = []
    for tar in tars:
        with tarfile.open(tar) as archive:
            names += archive.getnames()
    assert names == [f"{key}.npy" for key in found]
    lines = [json.loads(line) for tar in tars for line in tar.with_suffix(".jsonl").read_text().splitlines()]
    assert lines[0] == {
        "key": "000000000000",
        "source": "000000000000.jpg",
        "source_size": [120, 90],
        "crop_box": [15, 0, 105, 90],
    }
    assert not plan_path(out, "train").exists()
    left = {path.name for path in out.iterdir() if path.name.startswith("val")}
    assert left == {
        "val-000000.tar",
        "val-000000.index",
        "val-000000.jsonl",
        "val.json",
        "val.rejected.jsonl",
        "val.contact.png",
    }
    sheet = Image.open(out / "train.contact.png")
    assert sheet.size == (8 * 32, 8 * 32)
    np.testing.assert_array_equal(np.asarray(sheet)[:32, 32:64], found["000000000001"])


def test_any_number_of_workers_gives_the_same_bytes(
    make_coco: Callable[..., Path], tmp_path: Path, digests: Callable[[Path], dict[str, str]]
) -> None:
    coco = make_coco(train=13, val=2)
    flags = ("--crop", "random", "--crops_per_image", "2", "--seed", "5")
    seen = []
    for workers in ("1", "2", "3"):
        assert run(coco, tmp_path / workers, *flags, "--workers", workers) == 0
        seen.append(digests(tmp_path / workers))
    assert seen[0] == seen[1] == seen[2]
    assert open_shard_set(tmp_path / "1", "train").samples == (4,) * 6 + (2,)


@pytest.mark.parametrize("encoding", ["jpg", "png"])
def test_encodings(make_coco: Callable[..., Path], tmp_path: Path, encoding: str) -> None:
    coco, out = make_coco(train=4, val=1), tmp_path / "out"
    assert run(coco, out, "--encoding", encoding, "--width", "48", "--height", "24") == 0
    samples = list(webdataset.WebDataset(str(out / "train-000000.tar"), shardshuffle=False).decode("rgb8"))
    assert len(samples) == 4
    for sample in samples:
        image = Image.open(coco / "train2017" / f"{sample['__key__']}.jpg").crop((0, 15, 120, 75))
        expected = np.asarray(image.resize((48, 24), Image.Resampling.BICUBIC)).astype(int)
        limit = 2 if encoding == "png" else 30
        assert np.abs(sample[encoding] - expected).max() <= limit


def test_fast_decoding_looks_the_same(make_coco: Callable[..., Path], tmp_path: Path) -> None:
    coco, out = make_coco(train=2, val=1, width=640, height=480), tmp_path / "out"
    assert run(coco, out, "--decode", "fast") == 0
    for sample in webdataset.WebDataset(str(out / "train-000000.tar"), shardshuffle=False).decode():
        expected = plain_centre_crop(coco / "train2017" / f"{sample['__key__']}.jpg", 32).astype(float)
        assert np.mean((sample["npy"] - expected) ** 2) < 10  # 38 dB


def test_bad_images_are_listed_and_the_rest_is_packed(
    make_coco: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    coco, out = make_coco(train=6, val=1), tmp_path / "out"
    folder = coco / "train2017"
    (folder / "000000000001.jpg").write_bytes(b"")
    (folder / "000000000002.jpg").write_bytes(b"not an image")
    data = (folder / "000000000003.jpg").read_bytes()
    (folder / "000000000003.jpg").write_bytes(data[: len(data) // 2])
    os.symlink("nowhere", folder / "dang ling\n.é.PNG")
    assert run(coco, out, "--max_bad", "0.2") == 1
    error = capsys.readouterr().err
    assert "--max_bad" in error
    assert "4 of 7" in error
    assert "Traceback" not in error
    assert read_manifest(out, "train") is None
    began = (out / "train-000000.tar").stat().st_mtime_ns
    assert run(coco, out, "--max_bad", "0.6") == 0
    assert (out / "train-000000.tar").stat().st_mtime_ns == began  # nothing was packed twice
    manifest = read_manifest(out, "train")
    assert manifest is not None
    assert (manifest.accepted, manifest.rejected) == (3, 4)
    entries = [json.loads(line) for line in (out / "train.rejected.jsonl").read_text().splitlines()]
    reasons = {entry["source"]: entry["reason"] for entry in entries}
    assert reasons["000000000001.jpg"] == "empty file"
    assert reasons["dang ling\n.é.PNG"] == "dangling link"
    assert len(reasons) == 4
    assert "rejected 4 of 7" in capsys.readouterr().out


def test_a_shard_of_bad_images_only_is_left_out(make_coco: Callable[..., Path], tmp_path: Path) -> None:
    coco, out = make_coco(train=9, val=1), tmp_path / "out"
    for number in range(4, 8):
        (coco / "train2017" / f"{number:012d}.jpg").write_bytes(b"x")
    assert run(coco, out, "--max_bad", "1") == 0
    assert open_shard_set(out, "train").samples == (4, 1)
    assert not list(out.glob("train-000001*"))
    (out / "train-000002.tar").unlink()
    assert run(coco, out, "--max_bad", "1") == 0
    assert open_shard_set(out, "train").samples == (4, 1)


def test_nothing_but_bad_images_fails(
    make_coco: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    coco = make_coco(train=2, val=1)
    for path in (coco / "train2017").iterdir():
        path.write_bytes(b"x")
    assert run(coco, tmp_path / "out", "--max_bad", "1") == 1
    assert "2 of 2" in capsys.readouterr().err


def test_a_second_run_rewrites_nothing(
    make_coco: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    coco, out = make_coco(train=5, val=1), tmp_path / "out"
    assert run(coco, out) == 0
    before = {path: path.stat().st_mtime_ns for path in out.iterdir()}
    assert run(coco, out) == 0
    assert "already packed" in capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in out.iterdir()} == before


def test_missing_files_are_packed_again(
    make_coco: Callable[..., Path], tmp_path: Path, digests: Callable[[Path], dict[str, str]]
) -> None:
    coco, out = make_coco(train=9, val=1), tmp_path / "out"
    (coco / "train2017" / "000000000008.jpg").write_bytes(b"x")
    assert run(coco, out, "--max_bad", "1") == 0
    before = digests(out)
    (out / "train-000001.tar").unlink()
    (out / "train-000000.index").unlink()
    assert run(coco, out, "--max_bad", "1") == 0
    assert digests(out) == before


@pytest.mark.parametrize(
    ("flags", "message"),
    [(("--encoding", "jpg"), "encoding: raw -> jpg"), (("--size", "16"), "width: 32 -> 16; height: 32 -> 16")],
)
def test_other_options_are_refused_unless_overwritten(
    make_coco: Callable[..., Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    digests: Callable[[Path], dict[str, str]],
    flags: Any,
    message: Any,
) -> None:
    coco, out = make_coco(train=5, val=1), tmp_path / "out"
    assert run(coco, out, "--include_val", "false") == 0
    (out / "my notes.txt").write_text("mine")
    before = digests(out)
    assert run(coco, out, "--include_val", "false", *flags) == 2
    assert message in capsys.readouterr().err
    assert digests(out) == before
    assert run(coco, out, "--include_val", "false", *flags, "--overwrite") == 0
    assert run(coco, tmp_path / "fresh", "--include_val", "false", *flags) == 0
    after = digests(out)
    assert after.pop("my notes.txt") == before["my notes.txt"]
    assert after == digests(tmp_path / "fresh")


def test_changed_sources_and_foreign_shards_are_refused(
    make_coco: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    coco, out = make_coco(train=2, val=1), tmp_path / "out"
    assert run(coco, out, "--include_val", "false") == 0
    (coco / "train2017" / "new.jpg").write_bytes(b"x")
    assert run(coco, out, "--include_val", "false") == 2
    assert "sources_sha256" in capsys.readouterr().err
    (tmp_path / "foreign").mkdir()
    (tmp_path / "foreign" / "train-000000.tar").write_bytes(b"someone's")
    assert run(coco, tmp_path / "foreign") == 2
    assert "without a plan" in capsys.readouterr().err
    assert (tmp_path / "foreign" / "train-000000.tar").read_bytes() == b"someone's"


def test_a_dry_run_writes_nothing(
    make_coco: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    coco = make_coco(train=9, val=1)
    assert run(coco, tmp_path / "deep" / "out", "--dry_run") == 0
    said = capsys.readouterr().out
    assert "9 images, 3 shards" in said
    assert "MB needed" in said
    assert "MB free" in said
    assert not (tmp_path / "deep").exists()


def test_the_bytes_needed_are_about_right(make_coco: Callable[..., Path], tmp_path: Path) -> None:
    from prep.config import PrepConfig
    from prep.planning import plan_splits

    coco = make_coco(train=12, val=1)
    config = PrepConfig(coco, tmp_path / "out", include_val=False, size=64)
    (plan,) = plan_splits(config)
    needed = plan.bytes_needed()
    assert run(coco, tmp_path / "out", "--include_val", "false", "--size", "64", "--samples_per_shard", "1000") == 0
    used = sum(path.stat().st_size for path in tmp_path.joinpath("out").glob("train-*"))
    assert 0.97 * needed <= used <= needed + 2048
    assert plan.bytes_needed() == 0
    assert dataclasses.replace(plan, overwrite=True).bytes_needed() < 2048


def test_too_little_disk_is_refused_at_the_start(
    make_coco: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("prep.planning.bytes_free", lambda folder: 1000)
    assert run(make_coco(train=2, val=1), tmp_path / "out") == 2
    assert "--out_dir" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("flags", "code", "message"),
    [
        (("--coco_dir", "/nowhere"), 2, "--coco_dir /nowhere: no such folder"),
        ((), 2, "--coco_dir"),
        (("--coco_dir", ".", "--size", "0"), 2, "--size 0"),
        (("--coco_dir", ".", "--width", "5"), 2, "--height"),
        (("--coco_dir", ".", "--width", "0", "--height", "5"), 2, "--width 0"),
        (("--coco_dir", ".", "--size", "5", "--width", "5", "--height", "5"), 2, "--size 5: contradicts --width"),
        (("--coco_dir", "."), 2, "--coco_dir .: holds no folder train2017"),
        (("--coco_dir", ".", "--encoding", "bmp"), 2, "--encoding"),
        (("--coco_dir", ".", "--max_bad", "2"), 2, "--max_bad"),
        (("--coco_dir", ".", "--workers", "-1"), 2, "--workers"),
        (("--coco_dir", ".", "--crops_per_image", "3"), 2, "--crop random"),
        (
            ("--coco_dir", ".", "--crop", "random", "--crops_per_image", "3", "--samples_per_shard", "2"),
            2,
            "--samples_per_shard",
        ),
        (("--coco_dir", ".", "--jpeg_quality", "101"), 2, "--jpeg_quality"),
    ],
)
def test_mistakes_are_told_in_one_line(
    capsys: pytest.CaptureFixture[str], flags: tuple[str, ...], code: int, message: str
) -> None:
    found: object = None
    try:
        found = main(list(flags))
    except SystemExit as stop:
        found = stop.code
    error = capsys.readouterr().err
    assert found == code
    assert message in error
    assert error.count("\n") == 1


def test_missing_and_empty_folders_are_named(
    make_coco: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    coco = make_coco(train=1, val=0)
    assert run(coco, tmp_path / "out") == 2
    assert "--include_val false" in capsys.readouterr().err
    (coco / "val2017").rmdir()
    assert run(coco, tmp_path / "out") == 2
    assert "--include_val false" in capsys.readouterr().err
    assert run(coco, tmp_path / "out", "--include_val", "false") == 0
    assert run(tmp_path, tmp_path / "other") == 2
    assert "holds no folder train2017" in capsys.readouterr().err
    (tmp_path / "file").touch()
    for out in (tmp_path / "file", coco / "train2017", coco / "train2017" / "deeper"):
        assert run(coco, out, "--include_val", "false") == 2
        assert f"--out_dir {out}: " in capsys.readouterr().err
