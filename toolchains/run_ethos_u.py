"""Arm Ethos-U: compile a .tflite file by Vela, and run the same file in LiteRT's interpreter.

Vela has no simulator. It keeps the integers of the operators that it places, so the interpreter shows the numbers.
"""

import csv
import re
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import numpy as np
from ai_edge_litert.interpreter import Interpreter
from job import Compiled, Floats, Job, main


def compile_and_run(job: Job, inputs: Floats) -> tuple[Compiled, Floats]:
    """Vela's own estimate for its default memory, and the interpreter's outputs."""
    vela = Path(sys.executable).with_name("vela")
    flags = ["--accelerator-config", job.device, "--output-dir", str(job.out), "--show-cpu-operations"]
    done = subprocess.run([str(vela), str(job.model), *flags], capture_output=True, text=True, check=False)
    sys.stderr.write(done.stdout + done.stderr)
    if done.returncode:
        raise RuntimeError((done.stderr or done.stdout).strip().splitlines()[-1])
    return _report(job, done.stdout + done.stderr), _interpret(job, inputs)


def _report(job: Job, said: str) -> Compiled:
    counts = {where: int(count) for where, count in re.findall(r"(CPU|NPU) operators = (\d+)", said)}
    (summary,) = job.out.glob(f"{job.model.stem}_summary_*.csv")
    with open(summary) as file:
        row = list(csv.DictReader(file))[-1]
    summary.unlink()
    return Compiled(
        versions={name: version(name) for name in ("ethos-u-vela", "ai-edge-litert")},
        files=[job.model.name, f"{job.model.stem}_vela.tflite"],
        device_operators=counts["NPU"],
        host_operators=counts["CPU"],
        on_host=sorted(set(re.findall(r"operator: (\w+), ofm", said))),
        cycles=float(row["cycles_total"]),
        milliseconds=1000 * float(row["inference_time"]),
        memory_bytes=round(1024 * float(row["sram_memory_used"])),
        note=f"Vela's estimate for {row['system_config']}, {row['memory_mode']}",
    )


def _interpret(job: Job, inputs: Floats) -> Floats:
    interpreter = Interpreter(model_path=str(job.model), num_threads=1)
    interpreter.allocate_tensors()
    fed, given = interpreter.get_input_details()[0], interpreter.get_output_details()[0]
    (scale, zero), (step, offset) = fed["quantization"], given["quantization"]
    outputs = []
    for row_CHW in inputs:
        levels = np.clip(np.rint(row_CHW / np.float32(scale)) + zero, -128, 127).astype(np.int8)
        interpreter.set_tensor(fed["index"], levels.transpose(1, 2, 0)[None])
        interpreter.invoke()
        found = interpreter.get_tensor(given["index"])[0].transpose(2, 0, 1)
        outputs.append((found.astype(np.int32) - offset) * np.float32(step))
    return np.stack(outputs)


if __name__ == "__main__":
    main(compile_and_run)
