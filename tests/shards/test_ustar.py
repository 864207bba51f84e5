import tarfile

import pytest

from relic.errors import InputError
from relic.shards.ustar import ustar_header


@pytest.mark.parametrize("name", ["a.npy", "k" * 80 + ".jpg", "n" * 100])
@pytest.mark.parametrize("size", [0, 1, 511, 150_656, 8**11 - 1])
def test_the_header_is_the_one_tarfile_writes(name: str, size: int) -> None:
    member = tarfile.TarInfo(name)
    member.size = size
    assert ustar_header(name, size) == member.tobuf(tarfile.USTAR_FORMAT)


@pytest.mark.parametrize(("name", "size"), [("n" * 101, 1), ("a", 8**11)])
def test_what_the_format_cannot_hold_is_refused(name: str, size: int) -> None:
    with pytest.raises(InputError, match="does not fit"):
        ustar_header(name, size)
