"""Names of the files in an export folder. Imports nothing."""

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
