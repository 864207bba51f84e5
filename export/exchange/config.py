"""Flags of `export/exchange_streams.py`. Imports no torch."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from relic.errors import InputError
from relic.options import ToolchainName


@dataclass(frozen=True)
class ExchangeConfig:
    """Encode images in every runtime, decode every stream in all of them, and compare the symbols.

    The runtimes are onnxruntime, torch with --ckpt, and the simulators of --toolchains. Prints the mean PSNR of each
    pair, and how many streams had other symbols.
    """

    GROUPS: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "runtimes": ("export", "ckpt", "toolchains"),
        "images": ("images",),
        "output": ("json",),
    }

    export: Path
    """Folder that `export/onnx_parts.py --part all` wrote for a fixed size. Of --int8 the float files run too."""
    images: Path
    """Folder of images. The centre of each is coded, in the size of the export."""
    ckpt: str | None = None
    """The checkpoint of the export, or `embedded`: adds torch."""
    toolchains: list[ToolchainName] | None = None
    """Compilers whose simulators are added. export/install_toolchain.py installs them."""
    json: Path | None = None
    """JSON file to write the results to."""

    def __post_init__(self) -> None:
        """Refuse a toolchain that is named twice."""
        names = self.toolchains or []
        if len(set(names)) < len(names):
            raise InputError(f"--toolchains {' '.join(names)}: name each once")
