from pathlib import Path

import numpy as np
import pytest

from relic.errors import InputError
from relic.shards.index import IndexRecord, read_index_header, read_records, write_index

RECORDS = [
    IndexRecord(512, 3, 2**64 - 1, "a"),
    IndexRecord(2**40, 2**33, 0, "the-longest-key"),
    IndexRecord(2**41, 0, 7, "é"),
]
TAR_BYTES = 2**42


def test_records_come_back(tmp_path: Path) -> None:
    write_index(tmp_path / "x.index", RECORDS, tar_bytes=TAR_BYTES)
    table = read_records(tmp_path / "x.index")
    assert [(*row.item()[:3], row["key"].decode()) for row in table] == RECORDS
    header = read_index_header(tmp_path / "x.index")
    assert (tmp_path / "x.index").stat().st_size == 64 + 3 * header.record_bytes
    mapped = np.memmap(tmp_path / "x.index", table.dtype, "r", offset=64)
    np.testing.assert_array_equal(mapped, table)


def test_no_sample_is_an_index_too(tmp_path: Path) -> None:
    write_index(tmp_path / "x.index", [], tar_bytes=1024)
    assert len(read_records(tmp_path / "x.index")) == 0


@pytest.mark.parametrize("place", [0, 9, 65, 100])
def test_a_flipped_byte_is_noticed(tmp_path: Path, place: int) -> None:
    path = tmp_path / "x.index"
    write_index(path, RECORDS, tar_bytes=TAR_BYTES)
    data = bytearray(path.read_bytes())
    data[place] ^= 1
    path.write_bytes(data)
    with pytest.raises(InputError, match=r"x\.index"):
        read_records(path)


@pytest.mark.parametrize("length", [0, 63, 64, 100])
def test_a_cut_file_is_noticed(tmp_path: Path, length: int) -> None:
    path = tmp_path / "x.index"
    write_index(path, RECORDS, tar_bytes=TAR_BYTES)
    path.write_bytes(path.read_bytes()[:length])
    with pytest.raises(InputError, match=r"x\.index"):
        read_records(path)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"y\.index"):
        read_index_header(tmp_path / "y.index")
