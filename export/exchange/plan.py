"""What a run of `export/exchange_streams.py` reads. Imports no torch."""

from dataclasses import dataclass
from pathlib import Path

from export.exchange.config import ExchangeConfig
from export.plan import check_checkpoint
from export.toolchains.environment import find_python
from export.toolchains.plan import open_export
from relic.errors import InputError
from relic.files import check_folder
from relic.onnx.manifest import ExportManifest
from relic.options import ToolchainName
from relic.pictures.listing import ENDINGS, list_sources


@dataclass(frozen=True, kw_only=True)
class ExchangePlan:
    """The flags, the export, the images, and the interpreters of the toolchains' environments."""

    config: ExchangeConfig
    manifest: ExportManifest
    images: list[Path]
    pythons: dict[ToolchainName, Path]


def make_plan(config: ExchangeConfig) -> ExchangePlan:
    """Check the export, the images and the environments. Raises InputError, naming the flag."""
    toolchains = config.toolchains or []
    manifest = open_export(config.export, toolchains)
    if config.ckpt is not None:
        check_checkpoint(config.ckpt)
    try:
        images = [config.images / source.path for source in list_sources(config.images)]
    except InputError as error:
        raise InputError(f"--images {error}") from error
    if not images:
        raise InputError(f"--images {config.images}: no image in it ({', '.join(ENDINGS)})")
    if config.json is not None:
        check_folder("--json", config.json.parent)
    pythons = {name: find_python(name) for name in toolchains}
    return ExchangePlan(config=config, manifest=manifest, images=images, pythons=pythons)
