"""Run a toolchain's script on one part, in the toolchain's own environment. See `toolchains/job.py`."""

import json
import logging
import subprocess
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from export.toolchains.environment import clean_environment
from export.toolchains.registry import FOLDER
from relic.arrays import Floats
from relic.errors import InputError

log = logging.getLogger(__name__)
_MOST_SECONDS = 4 * 3600
"""A decoder of N=192 M=320 at 1280x720 takes a simulator minutes."""


class CompiledPart(NamedTuple):
    """What the compiler says about one part. The fields are those of `toolchains/job.py`."""

    versions: dict[str, str]
    files: list[str]
    device_operators: int
    host_operators: int
    on_host: list[str]
    cycles: float | None
    milliseconds: float | None
    memory_bytes: int | None
    note: str


def run_script(
    python: Path, script: str, part: str, device: str, model: Path, inputs: Floats, out: Path
) -> tuple[CompiledPart, Floats]:
    """Compile a part into `out`, and run it on `inputs` (N, C, H, W). Raises InputError with the vendor's words."""
    with tempfile.TemporaryDirectory(prefix="relic-compile-") as temporary:
        folder = Path(temporary)
        job: Mapping[str, Any] = {
            "part": part,
            "device": device,
            "model": str(model.absolute()),
            "out": str(out.absolute()),
            **{name: str(folder / file) for name, file in _FILES.items()},
        }
        np.save(folder / _FILES["inputs"], inputs)
        (folder / "job.json").write_text(json.dumps(job))
        log.info("%s: compiling the %s for %s, and running it on %d inputs", script, part, device, len(inputs))
        try:
            done = subprocess.run(
                [str(python), str(FOLDER / script), str(folder / "job.json")],
                cwd=folder,
                env=clean_environment(),
                capture_output=True,
                text=True,
                errors="replace",
                check=False,
                timeout=_MOST_SECONDS,
            )
        except subprocess.TimeoutExpired:
            raise InputError(f"{part} for {device}: {script} did not end within {_MOST_SECONDS // 3600} h") from None
        result = folder / _FILES["result"]
        if not result.is_file():
            last = " ".join(done.stderr.split("\n")[-3:])
            raise InputError(f"{part} for {device}: {script} ended with code {done.returncode}: {last}")
        said = json.loads(result.read_text())
        if "refused" in said:
            raise InputError(f"{part} for {device}: the compiler refuses it: {said['refused']}")
        outputs: Floats = np.load(folder / _FILES["outputs"])
    return CompiledPart(**said), outputs


_FILES = {"inputs": "inputs.npy", "outputs": "outputs.npy", "result": "result.json"}
