"""Flags of `export/compile_parts.py` and `export/install_toolchain.py`. Imports no torch."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from export.toolchains.registry import TOOLCHAINS
from relic.errors import InputError
from relic.options import ToolchainName

_MOST_CROPS = 1000


@dataclass(frozen=True)
class CompileConfig:
    """Compile an export by a vendor's own compiler, run it in the vendor's simulator, and compare with onnxruntime.

    Writes the device files, report.json and report.md.
    """

    GROUPS: ClassVar[Mapping[str, tuple[str, ...]]] = {
        "compiler": ("export", "toolchain", "device"),
        "comparison": ("shards", "crops"),
        "output": ("out",),
    }

    export: Path
    """Folder that `export/onnx_parts.py --part all` wrote. Ethos-U needs --int8 there."""
    toolchain: ToolchainName
    """The compiler. It runs in an environment of its own, made by export/install_toolchain.py."""
    device: str | None = None
    """What to compile for. By default openvino: cpu; qnn: htp; ethos-u: ethos-u55-256; rknn: rk3588."""
    shards: Path | None = None
    """Folder of shards whose `val` crops are compared. By default the crops that the export was calibrated on."""
    crops: int = 24
    """Number of crops to compare, at most 1000. Simulators take seconds per crop."""
    out: Path | None = None
    """Folder for the results. By default beside the export, with the name of the device added."""

    def __post_init__(self) -> None:
        """Refuse values that contradict each other, naming the flag."""
        devices = TOOLCHAINS[self.toolchain].devices
        if self.device is not None and self.device not in devices:
            raise InputError(f"--device {self.device}: --toolchain {self.toolchain} takes {', '.join(devices)}")
        if not 1 <= self.crops <= _MOST_CROPS:
            raise InputError(f"--crops {self.crops}: must be 1 to {_MOST_CROPS}")

    @property
    def target_device(self) -> str:
        """The device to compile for."""
        return self.device or TOOLCHAINS[self.toolchain].devices[0]


@dataclass(frozen=True)
class InstallConfig:
    """Install a vendor's compiler into an environment of its own, in the cache folder of the user."""

    toolchain: ToolchainName
    """The compiler. Its packages and versions are in toolchains/NAME.txt."""
    accept_licence: bool = False
    """You have read the vendor's licence and accept it. Needed where it is no open-source licence."""

    def __post_init__(self) -> None:
        """Refuse a licence that was not accepted."""
        toolchain = TOOLCHAINS[self.toolchain]
        if not toolchain.open_source and not self.accept_licence:
            raise InputError(
                f"--toolchain {self.toolchain}: its licence is {toolchain.licence}; read it, and give --accept_licence "
                "if you accept it"
            )
