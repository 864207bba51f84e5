"""The vendors' toolchains that relic can install and run, as data.

Each has pinned requirements, `toolchains/NAME.txt`, and a script for its own environment, `toolchains/run_NAME.py`.
"""

from pathlib import Path
from typing import NamedTuple

from relic.options import ToolchainName

FOLDER = Path(__file__).resolve().parents[2] / "toolchains"


class Toolchain(NamedTuple):
    """A vendor's compiler, with its simulator or reference interpreter."""

    title: str
    script: str
    """In FOLDER. Runs one part: see `toolchains/job.py`."""
    devices: tuple[str, ...]
    """What it compiles for; the first is the default."""
    licence: str
    open_source: bool
    """If not, the licence has to be accepted before it is installed."""
    gigabytes: float
    """Of the installed environment."""
    int8_only: bool = False


TOOLCHAINS: dict[ToolchainName, Toolchain] = {
    "openvino": Toolchain(
        title="Intel OpenVINO 2026.4.1",
        script="run_openvino.py",
        devices=("cpu",),
        licence="Apache License 2.0",
        open_source=True,
        gigabytes=0.3,
    ),
    "qnn": Toolchain(
        title="Qualcomm HTP compiler and simulator of onnxruntime-qnn 2.7.0",
        script="run_qnn.py",
        devices=("htp",),
        licence="MIT, with libraries under Qualcomm's licence (the file Qualcomm_LICENSE.pdf in the package)",
        open_source=False,
        gigabytes=0.5,
    ),
    "ethos-u": Toolchain(
        title="Arm Vela 5.2.0 and the LiteRT 2.1.2 interpreter",
        script="run_ethos_u.py",
        devices=(
            "ethos-u55-256",
            *(f"ethos-u55-{macs}" for macs in (32, 64, 128)),
            *(f"ethos-u65-{macs}" for macs in (256, 512)),
            *(f"ethos-u85-{macs}" for macs in (128, 256, 512, 1024, 2048)),
        ),
        licence="Apache License 2.0",
        open_source=True,
        gigabytes=0.2,
        int8_only=True,
    ),
    "rknn": Toolchain(
        title="Rockchip RKNN-Toolkit2 2.5.0",
        script="run_rknn.py",
        devices=("rk3588", "rk3576", "rk3568", "rk3566", "rk3562", "rv1126b"),
        licence="Rockchip's, closed source (the package names none)",
        open_source=False,
        gigabytes=5.5,
    ),
}
