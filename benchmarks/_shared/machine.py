"""Describe the machine of a measurement. Does not import torch."""

import platform
import shutil
import subprocess
from importlib.metadata import distributions, version
from pathlib import Path

from relic.machine import available_cores, pillow_name

_PACKAGES = ("numpy", "torch", "webdataset", "simplejpeg")
_CUDNN = "nvidia-cudnn-"
"""Beginning of the name of cuDNN's package; the rest is the version of CUDA."""


def machine() -> dict[str, str | int]:
    """Cores, CPU, GPU, operating system and library versions, for the JSON file of a benchmark."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return {
        "cores": available_cores(),
        "cpu": next(names, platform.processor()),
        **_gpu(),
        "os": platform.platform(),
        "python": platform.python_version(),
        "pillow": pillow_name(),
        **{package: version(package) for package in _PACKAGES},
    }


def _gpu() -> dict[str, str | int]:
    """The first GPU, the number of GPUs, the driver and cuDNN. Empty without a driver."""
    if shutil.which("nvidia-smi") is None:
        return {}
    query = ["nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader"]
    listed = subprocess.run(query, capture_output=True, text=True, check=False, timeout=60)
    gpus = [line.split(", ") for line in listed.stdout.splitlines()]
    if listed.returncode or not gpus:
        return {}
    cudnn = (each.version for each in distributions() if (each.metadata["Name"] or "").startswith(_CUDNN))
    return {"gpu": gpus[0][0], "gpus": len(gpus), "driver": gpus[0][-1], "cudnn": next(cudnn, "unknown")}
