"""Qualcomm HTP: compile a part in onnxruntime's QNN provider, and run it in the simulator, libQnnHtp.so for x86."""

import numpy as np
import onnxruntime
import onnxruntime_qnn
from job import Compiled, Floats, Job, main

_FORMAT = ("QuantizeLinear", "DequantizeLinear", "Transpose")
"""Nodes that change only how numbers are stored. onnxruntime adds Transpose, for channels last."""


def compile_and_run(job: Job, inputs: Floats) -> tuple[Compiled, Floats]:
    """Operators may not fall back to the CPU: then the session is refused with their names."""
    name = onnxruntime_qnn.get_ep_name()
    onnxruntime.register_execution_provider_library(name, onnxruntime_qnn.get_library_path())
    devices = [one for one in onnxruntime.get_ep_devices() if one.ep_name == name]
    context = job.out / f"{job.part}_htp.onnx"
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
    options.add_session_config_entry("ep.context_enable", "1")
    options.add_session_config_entry("ep.context_embed_mode", "1")
    options.add_session_config_entry("ep.context_file_path", str(context))
    options.add_provider_for_devices(devices[:1], {"backend_path": onnxruntime_qnn.get_qnn_htp_path()})
    options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
    session = onnxruntime.InferenceSession(str(job.model), options)
    fed = session.get_inputs()[0].name
    outputs = [session.run(None, {fed: row[None]})[0] for row in inputs]
    versions = {"onnxruntime-qnn": onnxruntime_qnn.__version__, "onnxruntime": onnxruntime.__version__}
    groups = session.get_provider_graph_assignment_info()
    placed = [(one.ep_name, node.op_type) for one in groups for node in one.get_nodes()]
    operators = [(place, kind) for place, kind in placed if kind not in _FORMAT]
    on_host = sorted({kind for place, kind in operators if place != name})
    device = sum(place == name for place, _ in operators)
    note = "Compiled for the provider's default HTP. QuantizeLinear, DequantizeLinear and Transpose are not counted"
    compiled = Compiled(versions, [context.name], device, len(operators) - device, on_host, note=note)
    return compiled, np.concatenate(outputs)


if __name__ == "__main__":
    main(compile_and_run)
