"""Rockchip RKNN-Toolkit2: build a part, export it, and run it in the simulator for x86.

A float file becomes fp16. A QDQ file keeps its integers, which the toolkit rounds by rules of its own. A saved .rknn
file cannot be simulated, so that one process does all.
"""

import os
import re
import sys
import tempfile
from importlib.metadata import version
from typing import Any

import numpy as np
from job import Compiled, Floats, Job, main
from rknn.api import RKNN

_LAYER = re.compile(r"RKNN: \[[\d:.]+\] +\d+ +(\w+) +\w+ +(NPU|CPU) .*? \d+/\d+/(\d+) ")
"""A row of the table of layers: number, operator, type, where it runs, shapes, cycles of memory / NPU / both."""
_ENDS = ("InputOperator", "OutputOperator")
_ERROR = re.compile(r"^(?:E |[\w.]*(?:Error|Exception|Fail|Argument): ).*\w", re.MULTILINE)


def compile_and_run(job: Job, inputs: Floats) -> tuple[Compiled, Floats]:
    """Raises RuntimeError with the last error that the toolkit printed, in whatever way a step fails."""
    name = f"{job.part}.rknn"
    rknn = RKNN(verbose=True)
    with _Printed() as printed:
        try:
            _check(rknn.config(target_platform=job.device))
            _check(rknn.load_onnx(model=str(job.model)))
            _check(rknn.build(do_quantization=False))
            _check(rknn.export_rknn(str(job.out / name)))
            table = printed.text()
            _check(rknn.init_runtime())
            outputs = [rknn.inference(inputs=[row[None]], data_format=["nchw"])[0] for row in inputs]
        except Exception as error:
            said = _ERROR.findall(f"{printed.text()}\n{error}") or str(error).split("\n")
            raise RuntimeError(said[-1]) from error
    layers = [(kind, place, int(cycles)) for kind, place, cycles in _LAYER.findall(table) if kind not in _ENDS]
    on_host = [kind for kind, place, _ in layers if place == "CPU"]
    compiled = Compiled(
        versions={"rknn-toolkit2": version("rknn-toolkit2")},
        files=[name],
        device_operators=len(layers) - len(on_host),
        host_operators=len(on_host),
        on_host=sorted(set(on_host)),
        cycles=float(sum(cycles for _, _, cycles in layers)),
        note="The compiler's cycles are those of convolutions alone. Its simulator rounds otherwise than onnxruntime",
    )
    return compiled, np.concatenate(outputs)


def _check(code: Any) -> None:
    if code != 0:
        raise RuntimeError(f"RKNN-Toolkit2 gave the code {code}")


class _Printed:
    """Catches what is printed inside the block, by C code too, and prints it to standard error after it."""

    def __enter__(self) -> "_Printed":
        self._file = tempfile.TemporaryFile("w+", errors="replace")
        self._saved = [os.dup(descriptor) for descriptor in (1, 2)]
        self._redirect([self._file.fileno()] * 2)
        return self

    def text(self) -> str:
        """What was printed so far."""
        sys.stderr.flush()
        self._file.seek(0)
        return self._file.read()

    def __exit__(self, *error: object) -> None:
        text = self.text()
        self._redirect(self._saved)
        sys.stderr.write(text)
        self._file.close()

    def _redirect(self, descriptors: list[int]) -> None:
        sys.stderr.flush()
        for descriptor, target in zip((1, 2), descriptors, strict=True):
            os.dup2(target, descriptor)


if __name__ == "__main__":
    main(compile_and_run)
