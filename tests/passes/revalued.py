"""Run value passes over a one-node model and look at the weight that comes out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from onnx import numpy_helper

from onnxcomp.contract import Context, Outcome
from onnxcomp.graph.ir.reader import close_graph, open_graph
from onnxcomp.graph.weights.roles import weights
from onnxcomp.model import load
from onnxcomp.numerics.encodings.encoding import Encoding
from onnxcomp.registry import get_pass

NODES = {
    "MatMul": "y = MatMul(x, w)",
    "Gemm": "y = Gemm <transB = 1> (x, w)",
    "Conv": "y = Conv(x, w)",
    "Gather": "y = Gather(w, x)",
    "Add": "y = Add(x, w)",
}
DIMENSIONS = {"MatMul": "N, K", "Gemm": "N, K", "Conv": "N, C, H, W"}  # of x; one for the others


@dataclass
class Revalued:
    """The weight after the passes, and what the last of them said."""

    values: np.ndarray
    encoding: Encoding | None
    outcome: Outcome

    @property
    def codes(self) -> np.ndarray | None:
        assert self.encoding is not None
        return self.encoding.encode(self.values)

    @property
    def reason(self) -> str:
        """Why the weight was left alone."""
        assert not self.outcome.changed
        return self.outcome.skipped[0].reason

    @property
    def details(self) -> dict[str, Any]:
        assert not self.outcome.skipped
        return dict(self.outcome.changed[0].details)


def model_with(values: np.ndarray, op: str = "MatMul") -> onnx.ModelProto:
    """A model of one node that reads the initializer ``w`` and the input ``x``."""
    kind = "int64" if op == "Gather" else "float"
    shape = DIMENSIONS.get(op, "N")
    proto = onnx.parser.parse_model(
        f'<ir_version: 8, opset_import: ["" : 17]> g ({kind}[{shape}] x) => (float[{shape}] y) {{ {NODES[op]} }}'
    )
    proto.graph.initializer.append(numpy_helper.from_array(values, "w"))
    return proto


def revalue(values: np.ndarray, *steps: tuple[str, dict[str, Any]], op: str = "MatMul", **context: Any) -> Revalued:
    """The weight after the passes, each given as its name and its fields, the model written and read between."""
    model = load(model_with(values, op))
    for name, fields in steps:
        graph = open_graph(model)
        outcome = get_pass(name)(**fields).apply(graph, Context(**context))
        model = close_graph(graph)
    weight = weights(open_graph(model))[0]
    return Revalued(np.array(weight.values), weight.encoding, outcome)


def random_weight(*shape: int, dtype: Any = np.float32, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(dtype)
