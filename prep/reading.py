"""Read a listed file, and what is wrong with one that is not as it was listed."""

import os
from pathlib import Path

from relic.errors import InputError
from relic.pictures.decoding import read_file
from relic.pictures.reasons import Unreadable


def read_source(path: Path, size: int) -> bytes:
    """Read a listed file that has `size` bytes.

    Raises Unreadable, and InputError if the file changed since it was listed.
    """
    try:
        data = read_file(path)
    except FileNotFoundError:
        if path.is_symlink():
            raise Unreadable("dangling link") from None
        raise deleted(os.fspath(path)) from None
    except OSError as error:
        raise Unreadable(f"cannot be read: {error.strerror}") from error
    return check_bytes(data, size, os.fspath(path))


def check_bytes(data: bytes, size: int, name: str) -> bytes:
    """The bytes of a file that was listed with `size`. Raises as `read_source` does."""
    if len(data) != size:
        raise changed(name)
    if not data:
        raise Unreadable("empty file")
    return data


def deleted(name: str) -> InputError:
    """The error for a file that was deleted after the listing."""
    return InputError(f"{name!r}: deleted while it was packed; run the command again")


def changed(name: str) -> InputError:
    """The error for a file that has other bytes than when it was listed."""
    return InputError(f"{name!r}: changed while it was packed; run the command again")
