"""Constants that come to more bytes than any memory holds are refused before ONNX Runtime computes them."""

from __future__ import annotations

import pytest
from onnx import ModelProto, parser

from onnxcomp.errors import ModelError
from onnxcomp.graph.storage.amplified import refuse_amplified
from onnxcomp.model import load

HEAD = '<ir_version: 8, opset_import: ["" : 17]> net (float[N,4] x) => (float[N,4] y)'
NODES = {
    "constant of shape": "<int64[1] s = {68719476736}> { c = ConstantOfShape(s) r = ReduceSum(c) y = Add(x, r) }",
    "expand": "<float o = {1}, int64[2] s = {100000, 100000}> { c = Expand(o, s) r = ReduceSum(c) y = Add(x, r) }",
    "tiles": "<float[2] t0 = {1, 1}, int64[1] s = {2}> {"
    + " ".join(f"t{i + 1} = Tile(t{i}, s)" for i in range(40))
    + " r = ReduceSum(t40) y = Add(x, r) }",
}


def model(nodes: str) -> ModelProto:
    return parser.parse_model(HEAD + nodes)


@pytest.mark.parametrize("kind", NODES)
def test_what_is_computed_from_constants_has_a_limit(kind: str) -> None:
    with pytest.raises(ModelError, match="its constants come to"):
        refuse_amplified(load(model(NODES[kind])))


def test_small_constants_and_what_depends_on_inputs_are_let_through() -> None:
    refuse_amplified(load(model("<int64[1] s = {1024}> { c = ConstantOfShape(s) r = ReduceSum(c) y = Add(x, r) }")))
    refuse_amplified(load(model("{ s = Shape(x) c = Expand(x, s) y = Identity(c) }")))
