"""Names of the files in an export folder, and whether they are there. Imports no package."""

from pathlib import Path

from relic.errors import InputError

ENCODER = "encoder.onnx"
DECODER = "decoder.onnx"
TABLES = "tables.npz"
MANIFEST = "export.json"

FLOAT = "float"
"""Folder of the float parts that INT8 parts were made from."""
CALIBRATION = "calibration"
"""Folder of the inputs that INT8 parts were calibrated on."""

TABLES_KEY = "relic.tables"
"""Key of a part's ONNX metadata: the digest of the tables it was exported with."""


def onnx_name(part: str) -> str:
    """The file of a part (`encoder`, `decoder` or `full`) in an export folder."""
    return f"{part}.onnx"


def check_export(flag: str, folder: Path, *names: str) -> None:
    """Raise InputError naming `flag` unless `folder` holds these files."""
    for name in names:
        if not (folder / name).is_file():
            raise InputError(f"{flag} {folder}: holds no {name}; export/onnx_parts.py --part all writes it")
