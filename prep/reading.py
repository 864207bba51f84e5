"""Read a listed file."""

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
        raise InputError(
            f"{os.fspath(path)!r}: deleted while it was packed; run the command again with --overwrite"
        ) from None
    except OSError as error:
        raise Unreadable(f"cannot be read: {error.strerror}") from error
    if len(data) != size:
        raise InputError(f"{os.fspath(path)!r}: changed while it was packed; run the command again with --overwrite")
    if not data:
        raise Unreadable("empty file")
    return data
