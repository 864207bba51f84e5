"""Headers of tar members, checked before Python's tarfile uses them.

tarfile reads an extended header of any length at once, follows a negative size back to the same header for ever
(CVE-2025-8194), and searches long runs of digits in quadratic time (CVE-2024-6232).
"""

import re
import tarfile
from typing import Any

_EXTENSIONS = {
    tarfile.XHDTYPE,
    tarfile.XGLTYPE,
    tarfile.SOLARIS_XHDTYPE,
    tarfile.GNUTYPE_LONGNAME,
    tarfile.GNUTYPE_LONGLINK,
}
_MAX_EXTENSION_BYTES = 1 << 20
_LONG_NUMBER = re.compile(rb"[0-9]{257}")


class CheckedMember(tarfile.TarInfo):
    """A member of a tar. Raises ValueError for a header that would cost time or memory without limit."""

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> "CheckedMember":
        member = super().frombuf(buf, encoding, errors)
        if member.size < 0:
            raise ValueError(f"a member of {member.size} bytes")
        if member.type in _EXTENSIONS and member.size > _MAX_EXTENSION_BYTES:
            raise ValueError(f"an extended header of {member.size} bytes")
        return member

    def _proc_pax(self, archive: Any) -> Any:
        file = archive.fileobj
        start = file.tell()
        if _LONG_NUMBER.search(file.read(self.size)):
            raise ValueError("an extended header with a number of more than 256 digits")
        file.seek(start)
        return super()._proc_pax(archive)  # type: ignore[misc]
