"""`export.json`: what an export folder holds and what it was made from. The exporter writes it last."""

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from relic.errors import InputError
from relic.files import write_json
from relic.onnx.layout import MANIFEST
from relic.options import Parts

FORMAT = "relic-export"
VERSION = 1


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
        """From plain values."""
        tensors = {name: _tensor(values[name]) for name in ("input", "output")}
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


def read_manifest(folder: Path) -> ExportManifest:
    """The manifest of an export folder. Raises InputError if it is missing, damaged or of another version."""
    path = folder / MANIFEST
    try:
        values: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        found, version = values.pop("format"), values.pop("version")
        if found != FORMAT:
            raise InputError(f"{path}: format {found}, not {FORMAT}; give a folder of export/onnx_parts.py")
        if version != VERSION:
            raise InputError(f"{path}: export format {version}, this relic reads {VERSION}; export again")
        values["parts"] = {name: PartEntry.of(entry) for name, entry in values["parts"].items()}
        values["architecture"] = _architecture(values["architecture"])
        values["tables"] = TablesEntry(**values["tables"])
        return ExportManifest(**values)
    except InputError:
        raise
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{path}: not readable ({error}); export again") from error


def _tensor(values: Mapping[str, Any]) -> TensorEntry:
    low, high = values["range"]
    return TensorEntry(**{**values, "range": (low, high)})


def _architecture(values: Mapping[str, Any]) -> ArchitectureEntry:
    wide, latent = values["channels"]
    return ArchitectureEntry(**{**values, "channels": (wide, latent)})
