"""What a run of `export/compile_parts.py` reads, opened once. Imports no torch."""

from dataclasses import dataclass
from pathlib import Path

from export.toolchains.config import CompileConfig
from export.toolchains.environment import find_python
from export.toolchains.registry import TOOLCHAINS
from relic.errors import InputError
from relic.files import check_folder
from relic.onnx.layout import CALIBRATION, MANIFEST, TABLES, onnx_name
from relic.onnx.manifest import ExportManifest, read_export_manifest
from relic.shards.shard_set import ShardSet, open_shard_set


@dataclass(frozen=True, kw_only=True)
class CompilePlan:
    """The flags, the export and what it is compared on."""

    config: CompileConfig
    python: Path
    """The interpreter of the toolchain's environment."""
    manifest: ExportManifest
    shards: ShardSet | None
    """The `val` crops of --shards."""
    calibration: list[Path]
    """Without --shards: the encoder's calibration inputs, one .npy file each."""


def make_plan(config: CompileConfig) -> CompilePlan:
    """Check the export and the environment. Raises InputError, naming the flag."""
    for name in (MANIFEST, TABLES, onnx_name("encoder"), onnx_name("decoder")):
        if not (config.export / name).is_file():
            raise InputError(f"--export {config.export}: holds no {name}; export/onnx_parts.py --part all writes it")
    manifest = read_export_manifest(config.export)
    if manifest.dynamic or manifest.batch != 1:
        raise InputError(
            f"--export {config.export}: compilers need one image of a fixed size; export without --dynamic"
        )
    if TOOLCHAINS[config.toolchain].int8_only and manifest.precision != "int8":
        raise InputError(f"--toolchain {config.toolchain}: runs only 8 bits; export with --int8")
    check_folder("--out", config.folder)
    if config.folder.resolve() == config.export.resolve():
        raise InputError(f"--out {config.out}: is the export itself; choose another folder")
    shards = None if config.shards is None else open_shard_set(config.shards, "val")
    calibration = sorted((config.export / CALIBRATION / "encoder").glob("*.npy"))
    if shards is None and not calibration:
        raise InputError("--shards: needed, because the export holds no calibration crops to compare on")
    python = find_python(config.toolchain)
    return CompilePlan(config=config, python=python, manifest=manifest, shards=shards, calibration=calibration)
