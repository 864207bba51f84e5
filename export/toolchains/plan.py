"""What a run of `export/compile_parts.py` reads, opened once. Imports no torch."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from export.toolchains.config import CompileConfig
from export.toolchains.environment import find_python
from export.toolchains.registry import TOOLCHAINS
from relic.errors import InputError
from relic.files import check_folder
from relic.onnx.layout import CALIBRATION, DECODER, ENCODER, MANIFEST, TABLES, check_export
from relic.onnx.manifest import ExportManifest, read_export_manifest
from relic.options import ToolchainName
from relic.shards.shard_set import ShardSet, open_shard_set


@dataclass(frozen=True, kw_only=True)
class CompilePlan:
    """The flags, the export and what it is compared on."""

    config: CompileConfig
    folder: Path
    """The folder that the results are written to."""
    python: Path
    """The interpreter of the toolchain's environment."""
    manifest: ExportManifest
    shards: ShardSet | None
    """The `val` crops of --shards."""
    calibration: list[Path]
    """Without --shards: the encoder's calibration inputs, one .npy file each."""


def open_export(export: Path, toolchains: Sequence[ToolchainName]) -> ExportManifest:
    """The manifest of a whole export that these toolchains can take. Raises InputError naming --export."""
    check_export("--export", export, MANIFEST, TABLES, ENCODER, DECODER)
    manifest = read_export_manifest(export)
    if manifest.dynamic or manifest.batch != 1:
        raise InputError(f"--export {export}: compilers need one image of a fixed size; export without --dynamic")
    for name in toolchains:
        if TOOLCHAINS[name].int8_only and manifest.precision != "int8":
            raise InputError(f"--toolchain {name}: runs only 8 bits; export with --int8")
    return manifest


def results_folder(config: CompileConfig) -> Path:
    """--out, or beside the export a folder with its name and that of the device."""
    export = Path(os.path.abspath(config.export)) if config.export.name in ("", "..") else config.export
    return config.out or export.with_name(f"{export.name}-{config.target_device}")


def make_plan(config: CompileConfig) -> CompilePlan:
    """Check the export and the environment. Raises InputError, naming the flag."""
    manifest = open_export(config.export, [config.toolchain])
    folder = results_folder(config)
    check_folder("--out", folder)
    if folder.resolve() == config.export.resolve():
        raise InputError(f"--out {config.out}: is the export itself; choose another folder")
    shards = None if config.shards is None else open_shard_set(config.shards, "val")
    calibration = sorted((config.export / CALIBRATION / "encoder").glob("*.npy"))
    if shards is None and not calibration:
        raise InputError("--shards: needed, because the export holds no calibration crops to compare on")
    python = find_python(config.toolchain)
    return CompilePlan(
        config=config, folder=folder, python=python, manifest=manifest, shards=shards, calibration=calibration
    )
