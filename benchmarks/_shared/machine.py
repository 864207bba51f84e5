"""Describe the machine of a measurement."""

import platform
from importlib.metadata import version
from pathlib import Path

from relic.machine import available_cores, pillow_name

_PACKAGES = ("numpy", "torch", "webdataset", "simplejpeg")


def machine() -> dict[str, str | int]:
    """Cores, CPU, operating system and library versions, for the JSON file of a benchmark."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return {
        "cores": available_cores(),
        "cpu": next(names, platform.processor()),
        "os": platform.platform(),
        "python": platform.python_version(),
        "pillow": pillow_name(),
        **{package: version(package) for package in _PACKAGES},
    }
