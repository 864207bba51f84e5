"""What an export folder holds: names that the exporter writes, and device and evaluator read. Imports nothing."""

ENCODER = "encoder.onnx"
DECODER = "decoder.onnx"
TABLES = "tables.npz"
MANIFEST = "export.json"

FLOAT = "float"
"""Folder of the float parts that an INT8 set was made from."""
CALIBRATION = "calibration"
"""Folder of the inputs it was calibrated on."""

TABLES_KEY = "relic.tables"
"""Key of a part's ONNX metadata: the digest of the tables it was exported with."""


def onnx_name(part: str) -> str:
    """The file of a part (`encoder`, `decoder` or `full`) in an export folder."""
    return f"{part}.onnx"
