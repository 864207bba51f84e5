import os
import re
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prep.listing import (
    MAX_KEY_LENGTH,
    crop_key,
    crop_key_length,
    listing_sha256,
    unique_keys,
)
from relic.errors import InputError
from relic.pictures.listing import Source, list_sources


def test_the_listing_is_recursive_sorted_and_by_ending(tmp_path: Path) -> None:
    for name in ("b/x.JPG", "a.b/y.jpeg", "a/z.Tiff", "a.jpg", "notes.txt", "jpg", ".jpg", "c/.hidden.png", "w.webp"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"12")
    (tmp_path / "folder.jpg").mkdir()
    (tmp_path / "folder.jpg" / "inside.gif").write_bytes(b"")
    os.symlink(tmp_path / "a", tmp_path / "linked")
    os.symlink(tmp_path / "b", tmp_path / "linked.png")
    os.symlink(tmp_path / "a.jpg", tmp_path / "link.bmp")
    os.symlink("nowhere", tmp_path / "dangling.tif")
    found = list_sources(tmp_path)
    assert [source.path for source in found] == [
        "a.b/y.jpeg",
        "a.jpg",
        "a/z.Tiff",
        "b/x.JPG",
        "c/.hidden.png",
        "dangling.tif",
        "folder.jpg/inside.gif",
        "link.bmp",
        "w.webp",
    ]
    assert {source.path: source.size for source in found}["link.bmp"] == 2
    assert {source.path: source.size for source in found}["dangling.tif"] == 0


def test_an_unreadable_folder_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: str) -> None:
        raise PermissionError(13, "Permission denied", path)

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(InputError, match="cannot list"):
        list_sources(tmp_path)


@given(st.lists(st.text(min_size=1).filter(lambda name: "/" not in name and "\0" not in name), max_size=30))
def test_keys_are_unique_short_and_plain(names: list[str]) -> None:
    sources = [Source(f"{number}/{name}.jpg", 1) for number, name in enumerate(names)]
    keys = unique_keys(sources)
    assert len(set(keys)) == len(keys)
    assert all(re.fullmatch(r"[A-Za-z0-9_-]{1,80}", key) for key in keys)


def test_equal_stems_are_told_apart_by_the_listing_alone() -> None:
    sources = [Source(path, 1) for path in ("a/x.jpg", "b/x.jpg", "c/x-1.png", "d/x.y.jpg", "e/x y.gif", "f/x.tif")]
    assert unique_keys(sources) == ["x", "x-2", "x-1", "x_y", "x_y-1", "x-3"]


@pytest.mark.commands
@pytest.mark.timeout(30)  # quadratic work would take hours
def test_a_hundred_thousand_equal_stems_are_keyed() -> None:
    sources = [Source(f"{number:06d}/image.jpg", 1) for number in range(100_000)]
    assert len(set(unique_keys(sources))) == 100_000


@pytest.mark.parametrize("crops", [2, 10, 1000])
def test_crop_keys_are_unique_and_fit(crops: int) -> None:
    sources = [Source(f"{name}.jpg", 1) for name in ("k" * 100, "k" * 99, "a", "a_0", "a_0_0", "a_1")]
    keys = unique_keys(sources, reserved_length=crop_key_length(crops))
    made = [crop_key(key, number, crops) for key in keys for number in range(crops)]
    assert len(set(made)) == len(made)
    assert max(map(len, made)) <= MAX_KEY_LENGTH


def test_the_hash_is_of_paths_and_sizes() -> None:
    base = [Source("a.jpg", 1), Source("b.jpg", 2)]
    others = ([Source("a.jpg", 1)], [Source("a.jpg", 1), Source("b.jpg", 3)], [Source("a.jpg", 1), Source("c.jpg", 2)])
    assert listing_sha256(base) == listing_sha256(list(base))
    assert len({listing_sha256(base), *map(listing_sha256, others)}) == 4
    assert listing_sha256([Source("\udcff.jpg", 1)])


def test_linked_folders_are_entered_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    root, outside = tmp_path / "root", tmp_path / "outside"
    for path in (root / "a" / "1.jpg", outside / "b" / "2.jpg", outside / "3.jpg", tmp_path / "other" / "4.jpg"):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"1")
    links: dict[str, Path | str] = {
        "b": outside / "b",  # a folder that is listed nowhere else
        "c": outside,  # holds the one before, and a file
        "again": "a",
        "self": "self",
        "root": ".",
        "a/up": "..",
        "a/far": tmp_path,  # a folder above the listed one
        "through.jpg": "a/1.jpg/x",
        "loop.jpg": "loop.jpg",
        "long.jpg": "y" * 300,
        "nowhere": "nothing",
    }
    for name, target in links.items():
        os.symlink(target, root / name)
    os.symlink(root, outside / "back")
    found = {source.path: source.size for source in list_sources(root)}
    assert found == {"a/1.jpg": 1, "b/2.jpg": 1, "c/3.jpg": 1, "through.jpg": 0, "loop.jpg": 0, "long.jpg": 0}
    for name in ("again", "root", "a/up", "a/far"):
        assert f"{root}/{name}: this link leads to a folder that is listed" in caplog.text


def test_more_levels_than_python_recurses_are_listed(tmp_path: Path) -> None:
    here = os.open(tmp_path, os.O_RDONLY)
    for _ in range(400):
        os.mkdir("d", dir_fd=here)
        below = os.open("d", os.O_RDONLY, dir_fd=here)
        os.close(here)
        here = below
    os.close(os.open("x.jpg", os.O_CREAT | os.O_WRONLY, dir_fd=here))
    os.close(here)
    limit = sys.getrecursionlimit()
    sys.setrecursionlimit(300)
    try:
        found = list_sources(tmp_path)
    finally:
        sys.setrecursionlimit(limit)
    assert [source.path for source in found] == ["d/" * 400 + "x.jpg"]


def test_keys_of_other_scripts_are_no_notes() -> None:
    names = ("日本語", "__thumb", "фото", "_a", "é", "____", "__a__")
    keys = unique_keys([Source(f"{name}.jpg", 1) for name in names])
    assert keys == ["k___", "k__thumb", "k____", "_a", "_", "k____-1", "k__a__"]
