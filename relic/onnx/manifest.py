"""`export.json`: what an export folder holds and what it was made from. The exporter writes it last."""

import dataclasses
import json
import math
from collections.abc import Mapping
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from relic.bitstream.tables import MAX_CHANNELS
from relic.errors import InputError
from relic.files import write_json
from relic.onnx.layout import MANIFEST
from relic.options import Parts

FORMAT = "relic-export"
VERSION = 1
_MAX_BYTES = 1 << 24
_MAX_TEXT = 80
_LARGEST = (1 << 53) - 1


@dataclasses.dataclass(frozen=True, kw_only=True)
class TensorEntry:
    """The input or output of a part."""

    name: str
    shape: list[int | str]
    """An open size has a name instead of a number."""
    range: tuple[float, float]
    """[0, 1] for images. For latents, the values seen in the check."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ParityEntry:
    """The check of a part's float file against torch."""

    error: float
    max_abs_diff: float
    tolerance: float
    batches: int
    changed_symbols: int
    checked_on: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class PartEntry:
    """The file of a part."""

    file: str
    bytes: int
    sha256: str
    nodes: int
    operators: dict[str, int]
    precision: Literal["float32", "int8"]
    input: TensorEntry
    output: TensorEntry
    parity: ParityEntry

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> "PartEntry":
        """From the exporter's plain values."""
        tensors = {name: TensorEntry(**values[name]) for name in ("input", "output")}
        return cls(**{**values, **tensors, "parity": ParityEntry(**values["parity"])})


@dataclasses.dataclass(frozen=True, kw_only=True)
class ArchitectureEntry:
    """The codec's layers."""

    channels: tuple[int, int]
    """Inner channels and latent channels."""
    replaced: Parts
    """Where ReLU replaces GDN."""
    name: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class TablesEntry:
    """The file of the coding tables."""

    file: str
    bytes: int
    sha256: str
    digest: str
    """The same as in the metadata of every part."""
    channels: int


@dataclasses.dataclass(frozen=True, kw_only=True)
class ExportManifest:
    """The content of the file, in its order."""

    relic_version: str = "unknown"
    """Exports from before the first numbered version have none."""
    opset: int
    batch: int
    height: int
    width: int
    dynamic: bool
    upsample: str
    precision: Literal["float32", "int8"]
    architecture: ArchitectureEntry
    parts: dict[str, PartEntry]
    int8: dict[str, Any] | None
    """What INT8 costs in quality and rate; None for float32."""
    target: dict[str, Any] | None
    """What the device's NPU does with each node; None without --target."""
    tables: TablesEntry
    checkpoint: dict[str, Any]
    """What the checkpoint says about itself."""
    versions: dict[str, str]
    """Versions of the libraries that wrote the files."""

    @property
    def swap_init(self) -> str:
        """How the weights around ReLU started."""
        return str(self.checkpoint.get("swap_init", "unknown"))

    def write(self, folder: Path) -> None:
        """Write `folder`/export.json atomically."""
        write_json(folder / MANIFEST, {"format": FORMAT, "version": VERSION, **dataclasses.asdict(self)})


def read_export_manifest(folder: Path) -> ExportManifest:
    """The manifest of an export folder. Raises InputError if it is missing, damaged or of another version."""
    path = folder / MANIFEST
    try:
        values = _read_json(path)
        found, version = values.pop("format"), values.pop("version")
        if found != FORMAT:
            raise InputError(f"{path}: format {found!s:.40}, not {FORMAT}; give a folder of export/onnx_parts.py")
        if type(version) is not int or version != VERSION:
            raise InputError(f"{path}: export format {version!s:.40}, this relic reads {VERSION}; export again")
        manifest: ExportManifest = _checked(ExportManifest, values, "")
        _check_ranges(manifest)
        return manifest
    except InputError:
        raise
    except Exception as error:  # json raises RecursionError for deep brackets; a file may hold any type in any place
        raise InputError(f"{path}: not readable ({error}); export again") from error


def _read_json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise ValueError("no such file")
    with open(path, "rb") as file:
        data = file.read(_MAX_BYTES + 1)
    if len(data) > _MAX_BYTES:
        raise ValueError(f"over {_MAX_BYTES:,} bytes")
    values = json.loads(data.decode("utf-8"))
    if not isinstance(values, dict):
        raise ValueError("no object")
    return values


def _checked(kind: Any, value: Any, place: str) -> Any:
    """`value`, of JSON, as a value of the type `kind`. Raises ValueError naming the `place` that has another type."""
    origin, inner = get_origin(kind), get_args(kind)
    if dataclasses.is_dataclass(kind) and isinstance(value, dict):
        return _checked_fields(kind, value, place)
    if kind is Any:
        return value
    if origin is Literal and isinstance(value, str) and value in inner:
        return value
    if origin in (Union, UnionType):
        fitting = [one for one in inner if (one is NoneType) == (value is None) and _is_of(one, value)]
        if fitting:
            return None if value is None else _checked(fitting[0], value, place)
    if origin is tuple and isinstance(value, list) and len(value) == len(inner):
        return tuple(_checked(one, each, place) for one, each in zip(inner, value, strict=True))
    if origin is list and isinstance(value, list):
        return [_checked(inner[0], each, place) for each in value]
    if origin is dict and isinstance(value, dict):
        return {key: _checked(inner[1], each, f"{place} {key:.40}") for key, each in value.items()}
    if kind is float and type(value) in (int, float) and math.isfinite(value):
        return float(value)
    if kind is int and type(value) is int and abs(value) <= _LARGEST:
        return value
    if kind in (str, bool) and type(value) is kind:
        return value
    raise ValueError(f"{place.strip()} is {value!s:.40}")


def _is_of(kind: Any, value: Any) -> bool:
    """Whether a JSON value may be of one type of a union."""
    return type(value) is kind if kind in (int, str, bool, NoneType) else True


def _checked_fields(kind: Any, values: dict[str, Any], place: str) -> Any:
    fields = {field.name: field for field in dataclasses.fields(kind)}
    if unknown := values.keys() - fields.keys():
        raise ValueError(f"{place} {min(unknown):.40} is unknown".strip())
    hints = get_type_hints(kind)
    found = {name: _checked(hints[name], value, f"{place} {name}") for name, value in values.items()}
    missing = [name for name, field in fields.items() if name not in found and field.default is dataclasses.MISSING]
    if missing:
        raise ValueError(f"{place} {missing[0]} is missing".strip())
    return kind(**found)


def _check_ranges(manifest: ExportManifest) -> None:
    """Raise ValueError for values of the right type that no export has."""
    for count in (*manifest.architecture.channels, manifest.tables.channels):
        if not 1 <= count <= MAX_CHANNELS:
            raise ValueError(f"{count} channels")
    if min(manifest.opset, manifest.batch, manifest.height, manifest.width) < 1:
        raise ValueError("opset, batch, height and width must be 1 or more")
    swap_init = manifest.checkpoint.get("swap_init", "unknown")
    for name, text in (("checkpoint swap_init", swap_init), ("architecture name", manifest.architecture.name)):
        if not isinstance(text, str) or not text.isprintable() or len(text) > _MAX_TEXT:
            raise ValueError(f"{name} is no short text")
