"""Coding tables: what is refused, when they are equal, and rounding."""

import os
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from relic.bitstream.rans import SYMBOL_LIMIT
from relic.bitstream.tables import Tables, dequantize, quantize
from relic.errors import InputError
from tests.bitstream.strategies import make_tables, photo_like, tables_of_any_kind


def good_fields() -> dict[str, Any]:
    return {
        "cdf": np.array([[0, 10, 65536, 0], [0, 5, 65000, 65536]], np.int32),
        "cdf_length": np.array([3, 4], np.int32),
        "offset": np.array([-1, 0], np.int32),
        "medians": np.array([0.25, -0.5], np.float32),
        "stride": 16,
    }


@pytest.mark.parametrize(
    ("field", "value", "fault"),
    [
        ("cdf", [[0, 10, 65536, 0], [0, 5, 5, 65536]], "channel 1 has a CDF that does not rise"),
        ("cdf", [[0, 10, 65536, 0], [0, 5, 65000, 65535]], "channel 1 has a CDF that does not run from 0 to 65536"),
        ("cdf", [[1, 10, 65536, 0], [0, 5, 65000, 65536]], "channel 0 has a CDF that does not run"),
        ("cdf", [[0, 70000, 65536, 0], [0, 5, 65000, 65536]], "channel 0 has a CDF that does not rise"),
        ("cdf", [[0, 2**40, 65536, 0], [0, 5, 65000, 65536]], "32-bit"),
        ("cdf", np.zeros((2, 4), np.float32), "32-bit"),
        ("cdf", np.zeros((3, 4), np.int32), "shapes"),
        ("cdf", np.zeros((0, 4), np.int32), "shapes"),
        ("cdf", np.zeros(8, np.int32), "shapes"),
        ("cdf_length", [3, 5], "channel 1 has a CDF length"),
        ("cdf_length", [2, 4], "channel 0 has a CDF length"),
        ("cdf_length", [3, -1], "channel 1 has a CDF length"),
        ("offset", [0, 2**24 + 1], "channel 1 has an offset"),
        ("medians", np.array([np.nan, 0], np.float32), "channel 0 has a median"),
        ("medians", np.array([0, np.inf], np.float32), "channel 1 has a median"),
        ("medians", np.array(["a", "b"]), "floats"),
        ("stride", 0, "stride"),
        ("stride", 4096, "stride"),
    ],
)
def test_tables_that_cannot_code_are_refused(field: str, value: Any, fault: str) -> None:
    Tables(**good_fields())
    with pytest.raises(InputError, match=fault):
        Tables(**{**good_fields(), field: np.array(value) if field != "stride" else value})


def test_every_number_in_use_counts_and_no_other() -> None:
    tables = Tables(**good_fields())
    changed: dict[str, Any] = {
        "cdf": np.array([[0, 11, 65536, 0], [0, 5, 65000, 65536]]),
        "offset": np.array([-1, 1]),
        "medians": np.array([0.25, np.nextafter(np.float32(-0.5), np.float32(0))], np.float32),
        "stride": 8,
    }
    digests = {Tables(**{**good_fields(), name: value}).digest for name, value in changed.items()}
    assert len(digests | {tables.digest}) == 5
    padded = np.pad(good_fields()["cdf"], ((0, 0), (0, 3)), constant_values=9)
    assert Tables(**{**good_fields(), "cdf": padded}) == tables


def test_tables_cannot_change_under_their_digest() -> None:
    fields = good_fields()
    tables = Tables(**fields)
    digest = tables.digest
    fields["cdf"][0, 1] = 99
    with pytest.raises(ValueError, match="read-only"):
        tables.cdf[0, 1] = 99
    assert tables == Tables(**good_fields())
    assert tables.digest == digest


@settings(max_examples=25, deadline=None)
@given(tables=tables_of_any_kind())
def test_a_saved_file_gives_the_same_tables(tables: Tables, tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("tables")
    tables.save(folder / "a.npz")
    loaded = Tables.load(folder / "a.npz")
    assert loaded == tables
    for name in ("cdf", "cdf_length", "offset", "medians"):
        np.testing.assert_array_equal(getattr(loaded, name), getattr(tables, name))
    loaded.save(folder / "b.npz")
    assert (folder / "a.npz").read_bytes() == (folder / "b.npz").read_bytes()


def test_a_damaged_file_is_refused_or_gives_the_same_tables(tmp_path: Path) -> None:
    path = tmp_path / "tables.npz"
    tables = photo_like(channels=2, values=5)
    tables.save(path)
    data = path.read_bytes()
    damaged = [data[:size] for size in range(0, len(data), 97)]
    damaged += [data[:place] + bytes([data[place] ^ 0x55]) + data[place + 1 :] for place in range(0, len(data), 7)]
    refused = 0
    for content in damaged:
        path.write_bytes(content)
        try:
            assert Tables.load(path) == tables
        except InputError as error:
            refused += str(error).startswith(f"{path}: ")
    assert refused > len(damaged) / 2


def test_other_files_are_refused_in_one_line_that_names_them(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"gone\.npz: no such file"):
        Tables.load(tmp_path / "gone.npz")
    np.save(tmp_path / "array.npy", np.zeros(3))
    np.savez(tmp_path / "pickle.npz", cdf=np.array([{}], dtype=object), format_version=1)
    np.savez(tmp_path / "newer.npz", **good_fields(), format_version=3)
    np.savez(tmp_path / "wrong.npz", **{**good_fields(), "offset": np.zeros(5, np.int32)}, format_version=1)
    for name, fault in (
        ("array.npy", "not a readable table file"),
        ("pickle.npz", "not a readable table file"),
        ("newer.npz", "table format 3"),
        ("wrong.npz", "shapes"),
    ):
        with pytest.raises(InputError, match=fault) as caught:
            Tables.load(tmp_path / name)
        assert str(caught.value).startswith(str(tmp_path / name))
        assert "\n" not in str(caught.value)


def test_rounding_is_half_to_even_about_the_median() -> None:
    tables = make_tables([[0, 30000, 65536]], [0])
    assert tables.medians.tolist() == [np.float32(-0.4)]
    centred = np.array([-1.5, -0.5, 0.5, 1.5, 2.5, 2.500001], np.float32)
    y = (centred + tables.medians[0])[None, None]
    in_float32 = [round(float(value - tables.medians[0])) for value in y.ravel()]
    assert quantize(y, tables).ravel().tolist() == in_float32
    assert quantize(np.zeros((2, 1, 3, 4), np.float32), tables).shape == (2, 1, 3, 4)


@settings(max_examples=50, deadline=None)
@given(tables=tables_of_any_kind(), seed=st.integers(0, 2**32))
def test_quantizing_what_was_dequantized_changes_nothing(tables: Tables, seed: int) -> None:
    shape = (tables.num_channels, 3, 4)
    symbols = np.random.default_rng(seed).integers(-(2**20), 2**20, shape).astype(np.int32)
    y_hat = dequantize(symbols, tables)
    assert y_hat.dtype == np.float32
    np.testing.assert_array_equal(quantize(y_hat, tables), symbols)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 2.0 * SYMBOL_LIMIT])
def test_latents_that_cannot_be_coded_are_refused(value: float) -> None:
    y = np.zeros((6, 2, 2), np.float32)
    y[3, 1, 0] = value
    with pytest.raises(InputError, match="diverged"):
        quantize(y, photo_like())


def npy(header: str, body: bytes = b"") -> bytes:
    padded = header.encode() + b" " * (-(len(header) + 11) % 64) + b"\n"
    return b"\x93NUMPY\x01\x00" + len(padded).to_bytes(2, "little") + padded + body


@pytest.mark.parametrize(
    "member",
    [
        npy("{'descr': '<i4', 'fortran_order': False, 'shape': (2, 1000000000000), }"),
        npy("{'descr': '<i4', 'fortran_order': False, 'shape': (-2, -4), }", bytes(32)),
        npy("{'descr': '<i4', 'fortran_order': False, 'shape': (2, True), }", bytes(32)),
        npy("{'descr': '|O', 'fortran_order': False, 'shape': (2, 4), }", bytes(64)),
        npy("{'descr': '<U9', 'fortran_order': False, 'shape': (2, 4), }", bytes(288)),
        npy("{'descr': [('a', '<i4')], 'fortran_order': False, 'shape': (2, 4), }", bytes(32)),
        npy("{'descr': '<i4', 'fortran_order': False, 'shape': " + "(" * 9000 + ", }"),
        npy("import os"),
        b"\x93NUMPY\x09\x00" + bytes(100),
        b"",
    ],
)
@pytest.mark.parametrize("name", ["cdf", "cdf_length", "offset", "medians", "stride", "format_version"])
def test_an_array_that_is_none_is_refused(tmp_path: Path, name: str, member: bytes) -> None:
    photo_like(channels=2, values=5).save(tmp_path / "good.npz")
    with zipfile.ZipFile(tmp_path / "good.npz") as good, zipfile.ZipFile(tmp_path / "a.npz", "w") as bad:
        for each in good.namelist():
            bad.writestr(each, member if each == f"{name}.npy" else good.read(each))
    with pytest.raises(InputError, match="not a readable table file") as caught:
        Tables.load(tmp_path / "a.npz")
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 1000


def test_tables_are_refused_by_their_size_before_they_are_unpacked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("relic.bitstream.tables.MAX_ENTRIES", 100)
    np.savez_compressed(tmp_path / "a.npz", **{**good_fields(), "cdf": np.zeros((2, 900), np.int32)}, format_version=1)
    read = zipfile.ZipFile.read

    def watched(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> bytes:
        assert info.file_size <= 800
        return read(archive, info)

    monkeypatch.setattr(zipfile.ZipFile, "read", watched)
    with pytest.raises(InputError, match=r"a\.npz: not a readable table file \(cdf unpacks to 7,328 bytes\)"):
        Tables.load(tmp_path / "a.npz")
    with pytest.raises(InputError, match="1,800 entries; up to 100 can be coded"):
        Tables(**{**good_fields(), "cdf": np.zeros((2, 900), np.int32)})


def test_numbers_that_are_none_are_refused(tmp_path: Path) -> None:
    for name, value in (
        ("stride", [16]),
        ("stride", 16.0),
        ("stride", "16"),
        ("format_version", [1]),
        ("stride", True),
    ):
        np.savez(tmp_path / "a.npz", **{**good_fields(), "format_version": 1, name: np.array(value)})
        with pytest.raises(InputError, match="not a readable table file"):
            Tables.load(tmp_path / "a.npz")
    np.savez(tmp_path / "a.npz", **{**good_fields(), "medians": np.array([1e300, 0])}, format_version=1)
    with pytest.raises(InputError, match="channel 0 has a median that is not a finite number"):
        Tables.load(tmp_path / "a.npz")


def test_what_is_not_a_file_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "tables.npz")
    with pytest.raises(InputError, match="no such file"):
        Tables.load(tmp_path / "tables.npz")


def test_packed_tables_are_read(tmp_path: Path) -> None:
    np.savez_compressed(tmp_path / "a.npz", **good_fields(), format_version=1)
    assert Tables.load(tmp_path / "a.npz") == Tables(**good_fields())
