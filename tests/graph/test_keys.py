"""Constants of all graphs of a model are known by keys that differ, whatever slashes names hold."""

from __future__ import annotations

import onnx

from onnxcomp.contract import Context
from onnxcomp.graph.ir.query import constants_by_key
from onnxcomp.graph.ir.reader import close_graph, open_graph
from onnxcomp.graph.ir.rewire import renew_keys
from onnxcomp.graph.weights.roles import weights
from onnxcomp.model import Model, load

OUTER = "out/then_branch/w"  # the key of what the branch calls w
PLAIN = "{ p = MatMul(h, w) }"
NESTED = """{ v = MatMul(h, w) [in] p = If (c) <
    then_branch = i () => (float[n,2] s) <float[2,2] w = {9, 9, 9, 9}> { s = MatMul(v, w) },
    else_branch = j () => (float[n,2] r) { r = Neg(v) }> }"""


def model_of(branch: str = PLAIN) -> Model:
    proto = onnx.parser.parse_model(f"""<ir_version: 8, opset_import: ["" : 17]>
        g (float[n,2] x, bool c) => (float[n,2] y) <float[2,2] outer = {{1, 2, 3, 4}}> {{
        h = MatMul(x, outer)
        [out] o = If (c) <
            then_branch = t () => (float[n,2] p) <float[2,2] w = {{5, 6, 7, 8}}> {branch},
            else_branch = e () => (float[n,2] q) {{ q = Neg(h) }}>
        y = Relu(o) }}""")
    proto.graph.initializer[0].name = proto.graph.node[0].input[1] = OUTER
    return load(proto)


def test_a_path_whose_keys_are_taken_gets_a_number() -> None:
    graph = open_graph(model_of())
    values = {key: each.values.reshape(-1).tolist() for key, each in constants_by_key(graph).items()}
    assert values == {OUTER: [1, 2, 3, 4], "out/then_branch~2/w": [5, 6, 7, 8]}
    assert constants_by_key(open_graph(close_graph(graph))).keys() == values.keys()


def test_paths_inside_follow() -> None:
    keys = constants_by_key(open_graph(model_of(NESTED))).keys()
    assert keys == {OUTER, "out/then_branch~2/w", "out/then_branch~2/in/then_branch/w"}


def test_renewed_keys_are_those_of_the_model_opened_again() -> None:
    graph = open_graph(model_of(NESTED))
    renew_keys(graph, constants_by_key(graph))
    assert constants_by_key(graph).keys() == constants_by_key(open_graph(close_graph(graph))).keys()


def test_a_pattern_excludes_the_one_or_the_other() -> None:
    found = weights(open_graph(model_of()))
    for name in (OUTER, "out/then_branch~2/w"):
        context = Context(exclude=(name,))
        assert [each.name for each in found if not context.selects(each.name)] == [name]
