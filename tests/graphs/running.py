"""Check and run a model as the tests do: onnx.checker, then ONNX Runtime on one thread."""

import tempfile
from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort

from onnxcomp.testing.comparing import EXACT

ORT = tuple(int(each) for each in ort.__version__.split(".")[:2])
PROVIDERS = ["CPUExecutionProvider"]


def session_of(model: onnx.ModelProto | bytes, *, optimized: bool = True) -> ort.InferenceSession:
    """Return a quiet session of one thread; `optimized` False keeps ONNX Runtime from rewriting the graph."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 4
    for key, value in EXACT.items():
        options.add_session_config_entry(key, value)
    if not optimized:
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    content = model if isinstance(model, bytes) else model.SerializeToString()
    return ort.InferenceSession(content, options, providers=PROVIDERS)


def run(
    model: onnx.ModelProto | bytes, feeds: dict[str, np.ndarray], *, optimized: bool = True
) -> dict[str, np.ndarray]:
    """Return the outputs by name."""
    session = session_of(model, optimized=optimized)
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(None, feeds), strict=True))


def check(model: onnx.ModelProto) -> None:
    """Raise what onnx.checker raises; its full check (shape inference) knows no sparse initializers."""
    onnx.checker.check_model(model, full_check=not model.graph.sparse_initializer)


def kernels(content: bytes, *, level: str = "ORT_ENABLE_ALL") -> Counter[str]:
    """How often each operator is left after ONNX Runtime's optimizations, in subgraphs too."""
    with tempfile.TemporaryDirectory() as folder:
        options = ort.SessionOptions()
        options.log_severity_level = 4
        options.optimized_model_filepath = str(Path(folder) / "optimized.onnx")
        options.graph_optimization_level = getattr(ort.GraphOptimizationLevel, level)
        ort.InferenceSession(content, options, providers=PROVIDERS)
        return _operators(onnx.load(options.optimized_model_filepath).graph)


def _operators(graph: onnx.GraphProto) -> Counter[str]:
    found = Counter(node.op_type for node in graph.node)
    for node in graph.node:
        for attribute in node.attribute:
            for body in (attribute.g, *attribute.graphs):
                found += _operators(body)
    return found
