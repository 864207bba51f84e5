"""The 512 bytes before a member (POSIX.1-1988 ustar). Written here, so that no tar library can change them."""

from relic.errors import InputError

BLOCK_BYTES = 512
_MAX_NAME_BYTES = 100
_MAX_SIZE = 8**11 - 1


def ustar_header(name: str, size: int) -> bytes:
    """The header of a regular file of `size` bytes: mode 644, owner 0, no owner names, time 0.

    Raises InputError for names over 100 bytes and sizes of 8 GiB or more, which the format cannot hold.
    """
    raw_name = name.encode()
    if len(raw_name) > _MAX_NAME_BYTES or size > _MAX_SIZE:
        raise InputError(
            f"{name}: a member of {size} bytes and {len(raw_name)} bytes of name does not fit a USTAR header"
        )
    before = b"%b%07o\0%07o\0%07o\0%011o\0%011o\0" % (raw_name.ljust(100, b"\0"), 0o644, 0, 0, size, 0)
    after = b"0" + bytes(100) + b"ustar\x0000" + bytes(32 + 32 + 8 + 8 + 155 + 12)
    checksum = sum(before) + 8 * ord(" ") + sum(after)
    return before + b"%06o\0 " % checksum + after
