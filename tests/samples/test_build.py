import hashlib
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from samples.build import main
from samples.photographs import TRAIN, VAL, find_photograph

ROOT = Path(__file__).resolve().parents[2]


def digests(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.rglob("*.*")
    }


@pytest.mark.commands
def test_the_same_command_gives_the_same_images(tmp_path: Path) -> None:
    command = [sys.executable, str(ROOT / "samples" / "build.py"), "--train", "14", "--val", "5", "--out"]
    done = subprocess.run([*command, "one"], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert main(["--out", str(tmp_path / "deep" / "two"), "--train", "14", "--val", "5"]) == 0
    assert digests(tmp_path / "one") == digests(tmp_path / "deep" / "two")
    assert main(["--out", str(tmp_path / "three"), "--train", "14", "--val", "5", "--seed", "1"]) == 0
    assert digests(tmp_path / "one") != digests(tmp_path / "three")


@pytest.mark.commands
def test_images_are_of_coco_s_kind(tmp_path: Path) -> None:
    assert main(["--out", str(tmp_path / "coco"), "--train", "40", "--val", "12"]) == 0
    sizes = set()
    for split, count in (("train2017", 40), ("val2017", 12)):
        paths = sorted((tmp_path / "coco" / split).iterdir())
        assert [path.name for path in paths] == [f"{number:012d}.jpg" for number in range(count)]
        for path in paths:
            with Image.open(path) as image:
                image.load()
                assert (image.format, image.mode) == ("JPEG", "RGB")
                sizes.add(image.size)
    assert len(sizes) >= 4
    assert max(max(size) for size in sizes) == 640
    assert min(min(size) for size in sizes) >= 375
    hashes = digests(tmp_path / "coco").values()
    assert len(set(hashes)) == len(hashes)


def test_no_picture_is_in_both_splits() -> None:
    contents = [
        {hashlib.sha256(find_photograph(name).read_bytes()).hexdigest() for name in names} for names in (TRAIN, VAL)
    ]
    assert not contents[0] & contents[1]


def test_a_complete_folder_is_kept_and_another_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "coco"
    out.mkdir()
    flags = ["--out", str(out), "--train", "2", "--val", "1"]
    assert main(flags) == 0
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*")}
    assert main(flags) == 0
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*")} == before
    assert main([*flags, "--seed", "4"]) == 2
    (out / "train2017" / "000000000001.jpg").unlink()
    assert main(flags) == 2
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "file").touch()
    assert main(["--out", str(tmp_path / "other")]) == 2
    error = capsys.readouterr().err
    assert error.count("--out") == error.count("\n") == 3


@pytest.mark.parametrize("flags", [[], ["--out", "x", "--train", "0"], ["--out", "x", "--val", "-1"]])
def test_mistakes_exit_with_two(flags: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stop:
        main(flags)
    assert stop.value.code == 2
    assert not list(tmp_path.iterdir())
