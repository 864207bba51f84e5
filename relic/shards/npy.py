"""Raw crops as `.npy`: 128 bytes of header, then height x width x 3 bytes."""

import functools
import io

import numpy as np

HEADER_BYTES = 128


@functools.cache
def npy_header(height: int, width: int) -> bytes:
    """The 128 bytes before a C-ordered uint8 (height, width, 3) array, as numpy writes them."""
    buffer = io.BytesIO()
    shape = {"descr": "|u1", "fortran_order": False, "shape": (height, width, 3)}
    np.lib.format.write_array_header_1_0(buffer, shape)
    header = buffer.getvalue()
    assert len(header) == HEADER_BYTES
    return header
