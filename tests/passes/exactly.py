"""Run one pass over a model written as text, and hold its outputs against the original in ONNX Runtime."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from onnx import GraphProto, ModelProto, NodeProto

from onnxcomp.contract import Context, Outcome
from onnxcomp.graph.extract import up_to
from onnxcomp.graph.ir.reader import close_graph, open_graph
from onnxcomp.graph.provenance import Reference
from onnxcomp.graph.stored.opening import open_plain
from onnxcomp.model import Model, load
from onnxcomp.registry import get_pass
from onnxcomp.runtime import Session


@dataclass
class Rewrite:
    """A model before and after a pass."""

    before: Model
    after: Model
    outcome: Outcome

    @property
    def graph(self) -> GraphProto:
        return self.after.proto.graph

    @property
    def ops(self) -> list[str]:
        """The operators of the main graph, in order, without Constant nodes."""
        return [node.op_type for node in self.graph.node if node.op_type != "Constant"]

    @property
    def counts(self) -> Counter[str]:
        """How often each operator occurs, in subgraphs and functions too."""
        counts: Counter[str] = Counter()

        def visit(nodes: Any) -> None:
            for node in nodes:
                counts[node.op_type] += 1
                for attribute in node.attribute:
                    visit(attribute.g.node)

        visit(self.graph.node)
        for function in self.after.proto.functions:
            visit(function.node)
        return counts

    def node(self, op: str) -> NodeProto:
        return next(node for node in self.graph.node if node.op_type == op)

    def initializer(self, name: str) -> np.ndarray:
        return onnx.numpy_helper.to_array(next(each for each in self.graph.initializer if each.name == name))

    def skipped(self, name: str) -> str:
        """Why a node or weight was left alone."""
        return next(each.reason for each in self.outcome.skipped if each.name == name)


def model(body: str, *, opset: int = 17, ir: int = 8, more: str = "") -> ModelProto:
    """A model from ONNX text; ``more`` are further opset imports such as ``, "local" : 1``."""
    text = f'<ir_version: {ir}, opset_import: ["" : {opset}{more}]> {body}'
    return onnx.parser.parse_model(text)


def rewrite(proto: ModelProto, name: str, *, context: Context | None = None, **fields: Any) -> Rewrite:
    """The model as the pass leaves it, valid by onnx's checker."""
    before = load(proto)
    chosen = get_pass(name)(**fields)
    graph = open_graph(before) if chosen.as_stored else open_plain(before)
    outcome = chosen.apply(graph, context or Context())
    after = close_graph(graph)
    onnx.checker.check_model(after.proto)
    return Rewrite(before, after, outcome)


def check_same(done: Rewrite, feeds: Mapping[str, np.ndarray], *, rtol: float = 0.0, atol: float = 0.0) -> None:
    """Hold the outputs of both models together, unoptimized, to the bit unless a tolerance is given; so too every inner
    tensor that keeps its name, in the sizes and units that the pass says it has."""
    _check_alike(*(Session(each.to_bytes(), optimization="none").run(feeds) for each in (done.before, done.after)),
                 rtol=rtol, atol=atol)  # fmt: skip
    before, after = (inner_values(each, feeds) for each in (done.before, done.after))
    reference = Reference(done.before, done.outcome.origins)
    expected = {name: reference.as_now(name, value) for name, value in before.items() if name in after}
    known = {name: value for name, value in expected.items() if value is not None}
    got = {name: after[name].astype(value.dtype) for name, value in known.items()}  # inner types may be longer now
    _check_alike(known, got, rtol=rtol, atol=atol)


def _check_alike(
    expected: Mapping[str, np.ndarray], got: Mapping[str, np.ndarray], *, rtol: float, atol: float
) -> None:
    assert expected.keys() == got.keys()
    for name, value in expected.items():
        assert got[name].dtype == value.dtype and got[name].shape == value.shape, name
        if rtol or atol:
            np.testing.assert_allclose(got[name], value, rtol=rtol, atol=atol, err_msg=name)
        else:
            assert got[name].tobytes() == value.tobytes(), name


def inner_values(model: Model, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """What the tensors of the main graph hold; without sequences and optional values."""
    nodes = [node for node in model.proto.graph.node if node.op_type != "Constant"]
    names = [name for node in nodes for name in node.output if name]
    if not names:
        return {}
    found = Session(up_to(model, names).to_bytes(), optimization="none").run(feeds)
    return {name: value for name, value in found.items() if isinstance(value, np.ndarray)}


def floats(*shape: int, seed: int = 0) -> np.ndarray:
    """Normally distributed float32 values."""
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)
