"""Export the parts asked for, check each against torch, and write them with export.json."""

import hashlib
import logging
import shutil
from pathlib import Path
from typing import Any, NamedTuple

import compressai
import onnx
import onnxruntime
import torch

from export.check_inputs import CheckInputs, make_check_inputs
from export.config import ExportConfig
from export.devices.lint import Finding, lint, manifest_entry, refuse_gdn, refuse_host
from export.devices.rules import TARGETS
from export.int8.conversion import Int8, check_learnable, convert_to_int8
from export.onnx_files import InputSize, describe_part, export_part, operators, shape_of
from export.output_folder import staged_output
from export.parity import TOLERANCE, Parity, check_parity
from export.parts import INPUT_NAMES, OUTPUT_NAMES, Part
from export.plan import ExportPlan
from export.source import ExportSource
from relic import __version__
from relic.files import atomic_write
from relic.onnx.layout import CALIBRATION, FLOAT, MANIFEST, TABLES, onnx_name
from relic.onnx.manifest import ArchitectureEntry, ExportManifest, PartEntry, TablesEntry
from relic.options import Upsample

log = logging.getLogger(__name__)


class Exported(NamedTuple):
    """A part that passed its checks."""

    part: Part
    file: str
    model: onnx.ModelProto
    parity: Parity
    facts: dict[str, Any]
    """Plain values: input, output and check of the part."""

    @property
    def num_bytes(self) -> int:
        size: int = self.model.ByteSize()
        return size


class Export(NamedTuple):
    """What an export consists of."""

    exported: list[Exported]
    findings: list[Finding]
    """What the rules of --target say about every node; empty for `generic`."""
    int8: Int8 | None


def export_all(plan: ExportPlan, source: ExportSource, upsample: Upsample) -> Export:
    """Make, check and write the parts that the flags ask for, with this form of the decoder's upsampling.

    Raises InputError if a part differs from torch, if a device does not run it, or if the folder cannot be written to.
    Then nothing is written.
    """
    config = plan.config
    size = InputSize(config.batch, config.image_height, config.image_width, config.dynamic)
    wanted: list[Part] = ["encoder", "decoder", "full"] if config.part == "all" else [config.part]
    refuse_gdn(config.target, wanted, source.architecture.replaced)
    check_learnable(config, source)
    if source.quantization is not None and not config.int8:
        log.warning("the checkpoint was trained with --qat: its weights fit the roundings of INT8; add --int8")
    last = MANIFEST if config.part == "all" else None
    with staged_output(config.folder, last=last, owned=(FLOAT, CALIBRATION)) as staging:
        exported = _export_float(plan, source, size, wanted, upsample)
        in_int8 = _parts_in_int8(plan)
        findings = [
            one
            for part in exported
            for one in lint(part.part, part.model, config.target, "int8" if part.part in in_int8 else "float32")
        ]
        refuse_host(config.target, findings)
        int8 = None
        if plan.int8:
            floats = {one.part: one.model for one in exported}
            int8 = convert_to_int8(config, upsample, plan.int8, source, size, floats, staging / CALIBRATION)
            _keep_for_vendors(config, staging, exported)
            exported = [_in_int8(one, int8, source) if one.part in in_int8 else one for one in exported]
        export = Export(exported, findings, int8)
        _write(config, source, upsample, export, staging)
    return export


def _parts_in_int8(plan: ExportPlan) -> set[Part]:
    if plan.int8 is None:
        return set()
    return {"encoder", "decoder", "full"} if plan.config.int8_parts == "all" else {plan.config.int8_parts, "full"}


def choose_upsample(config: ExportConfig, source: ExportSource) -> Upsample:
    """The form that --upsample names. By default that of the device, or the one that --qat trained for, or subpixel.

    Of the forms, `subpixel` compiles in every toolchain that was tried, and is the most exact one in INT8.
    """
    if config.upsample is not None:
        return config.upsample
    if config.target in TARGETS:
        return TARGETS[config.target].upsample
    trained_for: Upsample = source.quantization["upsample"] if source.quantization else "subpixel"
    return trained_for


def _export_float(
    plan: ExportPlan, source: ExportSource, size: InputSize, wanted: list[Part], upsample: Upsample
) -> list[Exported]:
    config = plan.config
    inputs = make_check_inputs(size, source.tables, plan.shards)
    exported = []
    for part in wanted:
        model = export_part(part, source, size, config.opset, upsample)
        parity = check_parity(part, model, source, inputs)
        facts = {"precision": "float32", **_facts(part, model, parity, inputs)}
        describe_part(model, part, source, facts)
        name = onnx_name(part) if config.part == "all" else config.out.name
        exported.append(Exported(part, name, model, parity, facts))
    return exported


def _in_int8(one: Exported, int8: Int8, source: ExportSource) -> Exported:
    """The INT8 model instead of the float one. Its parity entry stays that of the float model."""
    exported = one._replace(model=int8.models[one.part], facts={**one.facts, "precision": "int8"})
    describe_part(exported.model, one.part, source, exported.facts)
    return exported


def _keep_for_vendors(config: ExportConfig, staging: Path, exported: list[Exported]) -> None:
    """With --part all keep what a vendor's quantizer needs: the float files and the calibration inputs."""
    if config.part != "all":
        shutil.rmtree(staging / CALIBRATION)
        return
    (staging / FLOAT).mkdir()
    for one in exported:
        with atomic_write(staging / FLOAT / one.file) as file:
            file.write(one.model.SerializeToString())


def _write(config: ExportConfig, source: ExportSource, upsample: Upsample, export: Export, staging: Path) -> None:
    for one in export.exported:
        with atomic_write(staging / one.file) as file:
            file.write(one.model.SerializeToString())
    if config.part == "all":
        source.tables.save(staging / TABLES)
        _manifest(staging, config, source, upsample, export).write(staging)


def _facts(part: Part, model: onnx.ModelProto, parity: Parity, inputs: CheckInputs) -> dict[str, Any]:
    """Input, output and check of a part. Images are in [0, 1]; the range of latents is the one seen in the check."""
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
            "checked_on": inputs.description,
        },
    }


def _manifest(
    staging: Path, config: ExportConfig, source: ExportSource, upsample: Upsample, export: Export
) -> ExportManifest:
    return ExportManifest(
        relic_version=__version__,
        opset=config.opset,
        batch=config.batch,
        height=config.image_height,
        width=config.image_width,
        dynamic=config.dynamic,
        upsample=upsample,
        precision="int8" if export.int8 else "float32",
        architecture=ArchitectureEntry(**source.architecture._asdict()),
        parts={one.part: _part_entry(staging, one) for one in export.exported},
        int8=export.int8.facts if export.int8 else None,
        target=manifest_entry(config.target, export.findings),
        tables=TablesEntry(**_file(staging / TABLES), digest=source.tables.digest, channels=source.tables.num_channels),
        checkpoint=source.origin,
        versions={module.__name__: module.__version__ for module in (torch, compressai, onnx, onnxruntime)},
    )


def _part_entry(staging: Path, one: Exported) -> PartEntry:
    counts = operators(one.model)
    return PartEntry.of({**_file(staging / one.file), "nodes": sum(counts.values()), "operators": counts, **one.facts})


def _file(path: Path) -> dict[str, Any]:
    data = path.read_bytes()
    return {"file": path.name, "bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
