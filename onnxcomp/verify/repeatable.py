"""Whether two sessions on a model draw the same noise, wherever its random nodes stand.

The model runs twice on the first batches, each time in a fresh session; the second time it has two more nodes that
nothing reads, since what ONNX Runtime seeds itself depends on a node's index.
"""

from __future__ import annotations

import itertools

import numpy as np
from numpy.typing import NDArray
from onnx import FunctionProto, GraphProto, ModelProto, helper

from onnxcomp.calibration import CalibrationData
from onnxcomp.graph.infer.shapes import inner_graphs
from onnxcomp.graph.ir.seeds import is_drawing
from onnxcomp.model import Model
from onnxcomp.target import Target
from onnxcomp.verify.reference import flatten

BATCHES = 2  # a generator that is shared or seeded by time may agree once
SAME = 1e-4  # of the largest magnitude: threads add in any order
CONTRIBUTED = frozenset({"Sampling", "BiasDropout", "BitmaskDropout", "BitmaskBiasDropout"})


def draws_differently(model: Model, data: CalibrationData, target: Target) -> str | None:
    """Why the outputs of a model (with seeds, see ``graph.seeds``) and of a rewrite of it cannot be compared, or None.

    Raises TargetError or VerificationError where the model does not load or run.
    """
    if not may_draw(model, target):
        return None
    for first, second in zip(_outputs(model, data, target), _outputs(_shifted(model), data, target), strict=True):
        for name in first.keys() | second.keys():
            if name not in first or name not in second or not _same(first[name], second[name]):
                return (
                    f"the model draws random numbers that no seed holds: output {name} differs between two runs on "
                    "the same inputs"
                )
    return None


def may_draw(model: Model, target: Target) -> bool:
    """Whether some node may draw random numbers."""
    return is_drawing(model) or bool(target.custom_ops) or _has_contributed(model.proto)


def _has_contributed(proto: ModelProto) -> bool:
    """Whether one of ONNX Runtime's own random operators is there."""
    bodies: list[GraphProto | FunctionProto] = [proto.graph, *inner_graphs(proto.graph), *proto.functions]
    return any(node.op_type in CONTRIBUTED and node.domain for body in bodies for node in body.node)


def _outputs(model: Model, data: CalibrationData, target: Target) -> list[dict[str, NDArray[np.generic]]]:
    with model.opened_on(target.session) as session:
        return [flatten(session.run(feeds)) for feeds in itertools.islice(data.batches(), BATCHES)]


def _shifted(model: Model) -> Model:
    """The model with every node at another index."""
    proto = ModelProto()
    proto.CopyFrom(model.proto)
    for index, body in enumerate([proto.graph, *inner_graphs(proto.graph)]):
        _shift(body, f"shifted_{index}")
    return model.with_proto(proto)


def _shift(body: GraphProto, name: str) -> None:
    made = helper.make_node("Constant", [], [name], value=helper.make_tensor("", 1, [], [0.0]))
    body.node.insert(0, made)
    body.node.insert(1, helper.make_node("Identity", [name], [f"{name}_copy"]))


def _same(first: NDArray[np.generic], second: NDArray[np.generic]) -> bool:
    if first.shape != second.shape or first.dtype != second.dtype:
        return False
    if first.dtype.kind not in "fV" or not first.size:
        return bool(np.array_equal(first, second))
    one, other = first.astype(np.float64), second.astype(np.float64)
    scale = np.max(np.abs(one), where=np.isfinite(one), initial=0.0)
    return bool(np.allclose(one, other, rtol=0.0, atol=SAME * float(scale), equal_nan=True))
