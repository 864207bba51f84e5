"""What relic asks of a toolchain's script, and what the script answers. Imports nothing but numpy.

A script is run as `python run_NAME.py JOB.json`, once per part, in the toolchain's own environment. It compiles the
file `model` for `device`, writes what a device needs into `out`, runs the part on every row of `inputs`, and writes
`outputs` and `result`. Values are float32, (N, C, H, W). The vendor's own order and integers stay inside the script.
"""

import contextlib
import json
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]


class Job(NamedTuple):
    """One part to compile and to run."""

    part: str
    """`encoder` or `decoder`."""
    device: str
    model: Path
    """The file to compile: ONNX, or TFLite for Ethos-U."""
    out: Path
    """Folder for device files. It exists."""
    inputs: Path
    """A .npy file."""
    outputs: Path
    """The .npy file to write."""
    result: Path
    """The JSON file to write."""


class Compiled(NamedTuple):
    """What the compiler said, as far as it says it."""

    versions: dict[str, str]
    """Of the vendor's packages."""
    files: list[str]
    """Names of the device files in `out`."""
    device_operators: int
    host_operators: int
    """Operators that the compiler leaves to the host."""
    on_host: list[str]
    """Their types, as the vendor names them."""
    cycles: float | None = None
    milliseconds: float | None = None
    """The compiler's own estimate of one run. Nothing is measured on a device."""
    memory_bytes: int | None = None
    """Of the NPU's fast memory."""
    note: str = ""


VendorWork = Callable[[Job, Floats], tuple[Compiled, Floats]]
"""Compile and run. Raises any exception with the vendor's words."""


def main(work: VendorWork) -> None:
    """Do the job that the command line names. What the vendor's packages print goes to standard error."""
    values: dict[str, Any] = json.loads(Path(sys.argv[1]).read_text())
    paths = {name: Path(values[name]) for name in ("model", "out", "inputs", "outputs", "result")}
    job = Job(part=values["part"], device=values["device"], **paths)
    try:
        with contextlib.redirect_stdout(sys.stderr):
            compiled, outputs = work(job, np.load(job.inputs))
    except Exception as error:  # vendors raise classes of their own, and RKNN plain ones
        traceback.print_exc()
        job.result.write_text(json.dumps({"refused": " ".join(str(error).split()) or type(error).__name__}))
        return
    np.save(job.outputs, outputs.astype(np.float32))
    job.result.write_text(json.dumps(compiled._asdict()))
