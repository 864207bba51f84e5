"""ONNX files in onnxruntime on a CPU. Imports nothing of torch."""

from pathlib import Path

import onnxruntime


def open_session(model: Path | bytes, *, threads: int = 0) -> onnxruntime.InferenceSession:
    """A session of a file, or of its bytes, that keeps its chatter to itself; `threads` 0: one a core.

    INT8 means the same on every processor: older x86 ones, without VNNI, would let sums of products saturate.
    """
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3  # its errors come as exceptions, its warnings concern nobody here
    options.intra_op_num_threads = threads
    options.add_session_config_entry("session.x64quantprecision", "1")
    source = str(model) if isinstance(model, Path) else model
    return onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])
