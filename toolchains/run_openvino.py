"""OpenVINO: read a part, save it as IR, and run it with the plugin for CPUs. The plugin for NPUs needs the device."""

import numpy as np
import openvino as ov
from job import Compiled, Floats, Job, main


def compile_and_run(job: Job, inputs: Floats) -> tuple[Compiled, Floats]:
    """All operators of a part run in the plugin, or reading it fails."""
    core = ov.Core()
    model = core.read_model(job.model)
    ov.save_model(model, job.out / f"{job.part}.xml", compress_to_fp16=False)
    compiled = core.compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    request = compiled.create_infer_request()
    outputs = [next(iter(request.infer([row[None]]).values())).copy() for row in inputs]
    kinds = [one.get_rt_info()["layerType"] for one in compiled.get_runtime_model().get_ops()]
    operators = [kind for kind in map(str, kinds) if kind not in ("Input", "Output", "Const")]
    files = [f"{job.part}.xml", f"{job.part}.bin"]
    note = "Computed by the plugin for CPUs. The plugin for NPUs compiles only on a machine with the NPU"
    return (
        Compiled({"openvino": ov.__version__}, files, len(operators), 0, [], note=note),
        np.concatenate(outputs),
    )


if __name__ == "__main__":
    main(compile_and_run)
