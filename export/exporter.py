"""Export the parts asked for, check each, and publish them with what there is to know about them."""

import hashlib
from pathlib import Path
from typing import Any, NamedTuple

import compressai
import onnx
import onnxruntime
import torch

from export.config import ExportConfig
from export.onnx_files import Geometry, describe, export_part, operators, shape_of
from export.parity import TOLERANCE, Parity, check_parity
from export.parts import INPUT_NAMES, OUTPUT_NAMES, Part
from export.probes import Probes, make_probes
from export.publish import published
from export.source import Source
from relic.files import atomic_write, write_json
from relic.onnx.layout import MANIFEST, TABLES, onnx_name
from relic.shards.shard_set import open_shard_set

FORMAT = "relic-export"
VERSION = 1


class Exported(NamedTuple):
    """A part that passed its checks."""

    part: Part
    file: str
    model: onnx.ModelProto
    parity: Parity
    facts: dict[str, Any]
    """Plain values: its input, its output, its check."""

    @property
    def num_bytes(self) -> int:
        return self.model.ByteSize()


def export_all(config: ExportConfig, source: Source) -> list[Exported]:
    """Make, check and write what `config` asks for. InputError (parity, opset, folder) leaves nothing written."""
    geometry = Geometry(config.batch, config.image_height, config.image_width, config.dynamic)
    probes = make_probes(geometry, source.tables, open_shard_set(config.shards, "val") if config.shards else None)
    wanted: list[Part] = ["encoder", "decoder", "full"] if config.part == "all" else [config.part]
    exported = []
    for part in wanted:
        model = export_part(part, source, geometry, config.opset)
        parity = check_parity(part, model, source, probes)
        facts = _facts(part, model, parity, probes)
        describe(model, part, source, facts)
        name = onnx_name(part) if config.part == "all" else config.out.name
        exported.append(Exported(part, name, model, parity, facts))
    _write(config, source, exported)
    return exported


def _write(config: ExportConfig, source: Source, exported: list[Exported]) -> None:
    with published(config.folder, last=MANIFEST if config.part == "all" else None) as staging:
        for one in exported:
            with atomic_write(staging / one.file) as file:
                file.write(one.model.SerializeToString())
        if config.part == "all":
            source.tables.save(staging / TABLES)
            write_json(staging / MANIFEST, _manifest(staging, config, source, exported))


def table(exported: list[Exported]) -> str:
    """The parts as rows of text."""
    rows = [("part", "file", "nodes", "MB", "parity", "output range")]
    for one in exported:
        low, high = one.parity.output_range
        size = f"{one.num_bytes / 1e6:.2f}"
        nodes = str(sum(operators(one.model).values()))
        rows.append((one.part, one.file, nodes, size, f"{one.parity.error:.1e}", f"{low:.4g} to {high:.4g}"))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(cell.ljust(width) if place < 2 else cell.rjust(width) for place, (cell, width) in enumerate(cells))
        for cells in (list(zip(row, widths, strict=True)) for row in rows)
    )


def _facts(part: Part, model: onnx.ModelProto, parity: Parity, probes: Probes) -> dict[str, Any]:
    """What a file says of its input, its output and its check. Images lie in [0, 1]; latents, as seen in the check."""
    image = (0.0, 1.0)
    fed, given = INPUT_NAMES[part], OUTPUT_NAMES[part]
    return {
        "input": {"name": fed, "shape": shape_of(model, "i"), "range": image if fed == "x" else parity.input_range},
        "output": {
            "name": given,
            "shape": shape_of(model, "o"),
            "range": parity.output_range if given == "y" else image,
        },
        "parity": {
            "error": parity.error,
            "max_abs_diff": parity.max_abs_diff,
            "tolerance": TOLERANCE,
            "batches": parity.batches,
            "changed_symbols": parity.changed_symbols,
            "checked_on": probes.description,
        },
    }


def _manifest(staging: Path, config: ExportConfig, source: Source, exported: list[Exported]) -> dict[str, Any]:
    parts = {
        one.part: {
            **_file(staging / one.file),
            "nodes": sum(operators(one.model).values()),
            "operators": operators(one.model),
            **one.facts,
        }
        for one in exported
    }
    return {
        "format": FORMAT,
        "version": VERSION,
        "opset": config.opset,
        "batch": config.batch,
        "height": config.image_height,
        "width": config.image_width,
        "dynamic": config.dynamic,
        "architecture": source.architecture._asdict(),
        "parts": parts,
        "tables": {**_file(staging / TABLES), "digest": source.tables.digest, "channels": source.tables.num_channels},
        "checkpoint": source.origin,
        "versions": {module.__name__: module.__version__ for module in (torch, compressai, onnx, onnxruntime)},
    }


def _file(path: Path) -> dict[str, Any]:
    data = path.read_bytes()
    return {"file": path.name, "bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
