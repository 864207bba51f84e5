"""Read a file of `torch.save` that anyone may have made: no code runs, and no memory is taken that the file lacks.

torch's own safe reader still calls a few types with any number (`bytearray(10**11)`), and unpacks a compressed record
of any size. So the records and the names in the pickles are checked before it reads.
"""

import hashlib
import io
import os
import pickletools
import re
import zipfile
from pathlib import Path
from typing import IO, Any

import torch
from torch import Tensor, nn

from relic.errors import InputError

_MAX_PICKLE_BYTES = 1 << 24
"""Largest pickle, without the tensors' values. Those of CompressAI and relic have less than 100 KB."""
_LEGACY_PICKLES = 5
"""Pickles at the start of a file of torch before 1.6: magic number, version, system, content, names of the storages."""
_PLAIN_GLOBALS = re.compile(
    r"collections\.OrderedDict|collections\.Counter|(builtins|__builtin__)\.set|torch\.Size|torch\.device"
    r"|torch\.nn\.parameter\.Parameter|torch\._utils\._rebuild_(tensor|tensor_v2|tensor_v3|parameter)"
    r"|torch\.[A-Z]\w*Storage|torch\.(b?float|u?int|complex|bool)\d*"
)
"""Types that a pickle may name: containers, tensors and numbers. None of them can be called to take memory."""
_MAX_NAME = 200
_ZIP_MAGIC = b"PK\x03\x04"
_REAL_DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
_SAVE_AGAIN = 'save the weights alone, with torch.save({"state_dict": model.state_dict()}, FILE)'


def read_tensors(path: Path, *, flag: str, digest: "hashlib._Hash | None" = None) -> dict[str, Any]:
    """Read a file without running code from it.

    The file is opened once, since a training run may replace it meanwhile: what was checked is what is loaded.
    A `digest` (such as `hashlib.sha256()`) gets all bytes of the file.
    Raises InputError naming `flag` and the path if the file is not a dict of tensors and plain values.
    """
    source = f"{flag} {path}"
    if not path.is_file():
        raise InputError(f"{source}: no such file" if not path.exists() else f"{source}: not a file")
    try:
        with open(path, "rb") as file:
            file_bytes = os.fstat(file.fileno()).st_size
            _check_pickles(file, file_bytes, source)
            if digest is not None:
                file.seek(0)
                hashlib.file_digest(file, lambda: digest)
            file.seek(0)
            content = torch.load(file, map_location="cpu", weights_only=True)
        _check_size(content, file_bytes)
    except InputError:
        raise
    except Exception as error:  # for a damaged or hostile pickle, torch raises any type
        raise InputError(f"{source}: not a checkpoint, or a damaged one; get it again, or name another") from error
    if not isinstance(content, dict) or not all(isinstance(name, str) for name in content):
        raise InputError(f"{source}: not a checkpoint: it holds no dict of names; {_SAVE_AGAIN}")
    return content


def check_state(state: object) -> None:
    """Raise ValueError unless `state` is a dict of names to plain tensors, each no larger than its data."""
    if not isinstance(state, dict):
        raise ValueError("no dict of tensors")
    for name, tensor in state.items():
        if not isinstance(name, str) or not name.isprintable() or len(name) > _MAX_NAME:
            raise ValueError(f"a tensor's name is no short text: {name!r:.40}")
        if fault := fault_of(tensor):
            raise ValueError(f"no dict of tensors: {name} is {fault}")


def fault_of(value: object) -> str:
    """What keeps `value` from being a plain tensor with real numbers on the CPU; empty if nothing does."""
    if not isinstance(value, Tensor):
        return f"a {type(value).__name__}"
    if type(value) not in (Tensor, nn.Parameter) or value.is_nested or value.layout is not torch.strided:
        return "no dense tensor"
    if value.device.type != "cpu" or value.is_quantized or value.is_complex():
        return f"a tensor of {value.dtype} on {value.device.type}"
    if value.numel() * value.element_size() > value.untyped_storage().nbytes():
        return "larger than its data"
    return ""


def is_real(tensor: Tensor) -> bool:
    """Whether the tensor holds floating-point numbers that can be converted to float32."""
    return tensor.dtype in _REAL_DTYPES


def _check_size(content: object, file_bytes: int) -> None:
    """Raise ValueError if the tensors of a dict, and of the dicts in it, are larger than the file they come from."""
    dicts = [content, *content.values()] if isinstance(content, dict) else []
    tensors = [
        each for inner in dicts if isinstance(inner, dict) for each in inner.values() if isinstance(each, Tensor)
    ]
    sizes = {storage.data_ptr(): storage.nbytes() for storage in (tensor.untyped_storage() for tensor in tensors)}
    if sum(sizes.values()) > file_bytes:
        raise ValueError("a pickle of torch before 1.6 can claim more than it holds")


def _check_pickles(file: IO[bytes], file_bytes: int, source: str) -> None:
    """Raise InputError if the file holds anything but plain values, or unpacks to more than its size."""
    if file.read(len(_ZIP_MAGIC)) != _ZIP_MAGIC:  # torch decides by these bytes too
        file.seek(0)
        for _ in range(_LEGACY_PICKLES):
            _check_globals(file, source)
        return
    with zipfile.ZipFile(file) as archive:
        records = archive.infolist()
        packed = any(record.compress_type != zipfile.ZIP_STORED for record in records)
        if packed or sum(record.file_size for record in records) > file_bytes:
            raise InputError(
                f"{source}: refused, its records are compressed, which torch.save never does; unpack it, or load and "
                "save it again with torch"
            )
        # torch does not compare the checksums: a flipped bit would be another weight.
        if damaged := archive.testzip():
            raise InputError(f"{source}: damaged, the checksum of {damaged} is wrong; get the file again")
        for record in records:
            if record.filename.lower().endswith(".pkl"):
                if record.file_size > _MAX_PICKLE_BYTES:
                    raise InputError(f"{source}: refused, it holds {record.file_size:,} bytes besides its tensors")
                _check_globals(io.BytesIO(archive.read(record)), source)


def _check_globals(file: IO[bytes], source: str) -> None:
    """Raise InputError if the next pickle in `file` names a type that is no plain value."""
    for operation, argument, _ in pickletools.genops(file):
        if operation.name not in ("GLOBAL", "STACK_GLOBAL", "INST"):
            continue
        named = ".".join(str(argument).split())
        if operation.name != "GLOBAL" or not _PLAIN_GLOBALS.fullmatch(named):
            raise InputError(f"{source}: refused, it holds more than tensors and plain values ({named}); {_SAVE_AGAIN}")
