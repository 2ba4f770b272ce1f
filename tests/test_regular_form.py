"""Nodes in any order and the default domain by either name: ONNX Runtime takes them, and so does every part here."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import ModelProto, TensorProto, helper, numpy_helper, parser

import onnxcomp
from onnxcomp.errors import ModelError, TargetError
from onnxcomp.graph.ir.seeds import seeded, unseeded
from onnxcomp.model import Model, load, save
from onnxcomp.runtime import Session

UNSORTED = """<ir_version: 8, opset_import: ["" : 13]> net (float[n, 64] x) => (float[n, 32] y) {
    y = MatMul(r, w1)
    r = Relu(h)
    h = MatMul(x, w0)
}"""


def unsorted_model() -> ModelProto:
    proto = parser.parse_model(UNSORTED)
    rng = np.random.default_rng(1)
    for name, shape in (("w0", (64, 96)), ("w1", (96, 32))):
        values = (rng.standard_normal(shape) * 0.2).astype(np.float32)
        proto.graph.initializer.append(numpy_helper.from_array(values, name))
    return proto


def operators(nodes: list[onnx.NodeProto]) -> list[str]:
    return [each.op_type for each in nodes]


def imports(model: ModelProto | onnx.FunctionProto) -> dict[str, int]:
    assert len({each.domain for each in model.opset_import}) == len(model.opset_import)
    return {each.domain: each.version for each in model.opset_import}


def test_nodes_come_after_what_they_read() -> None:
    assert operators(load(unsorted_model()).proto.graph.node) == ["MatMul", "Relu", "MatMul"]


def test_nodes_that_are_in_order_stay_where_they_are() -> None:
    proto = unsorted_model()
    nodes = list(proto.graph.node)[::-1]
    del proto.graph.node[:]
    proto.graph.node.extend(nodes)
    model = load(proto)
    assert model.as_read is None and model.proto == proto


def test_subgraphs_and_functions_are_ordered_and_written_so() -> None:
    """ONNX Runtime does not load them otherwise, so their old form is worth nothing."""
    model = load(
        parser.parse_model("""<ir_version: 8, opset_import: ["" : 13, "f" : 1]>
            net (float[2] x, bool c) => (float[2] y) {
                z = f.twice(x)
                y = If(c) <then_branch = a () => (float[2] o) { o = Relu(t)  t = Neg(z) },
                           else_branch = b () => (float[2] p) { p = Abs(z) }>
            }
            <domain: "f", opset_import: ["" : 13]> twice (a) => (b) { b = Relu(t)  t = Neg(a) }""")
    )
    branch = next(each.g for each in model.proto.graph.node[1].attribute if each.name == "then_branch")
    assert operators(branch.node) == operators(model.proto.functions[0].node) == ["Neg", "Relu"]
    assert model.as_written is model.proto
    Session(model.to_bytes())


def test_what_a_branch_reads_from_outside_comes_before_it() -> None:
    model = load(
        parser.parse_model("""<ir_version: 8, opset_import: ["" : 13]> net (float[2] x, bool c) => (float[2] y) {
            y = If(c) <then_branch = a () => (float[2] o) { o = Relu(t) },
                       else_branch = b () => (float[2] p) { u = Abs(x)  p = Neg(u) }>
            u = Neg(y)
            t = Neg(x)
        }""")
    )
    assert [each.output[0] for each in model.proto.graph.node] == ["t", "y", "u"]  # a branch has a u of its own


def test_a_circle_of_nodes_is_left_to_onnx_runtime() -> None:
    proto = parser.parse_model(UNSORTED.replace("Relu(h)", "Add(h, y)"))
    model = load(proto)
    assert model.proto.graph.node == proto.graph.node
    with pytest.raises((ModelError, TargetError)):
        Session(model.to_bytes())


@pytest.mark.parametrize("random", [False, True])
def test_an_unsorted_model_is_handed_back_to_the_byte(tmp_path: Path, random: bool) -> None:
    proto = unsorted_model()
    if random:
        proto.graph.node[1].CopyFrom(helper.make_node("RandomNormalLike", ["h"], ["r"]))
    (tmp_path / "in.onnx").write_bytes(proto.SerializeToString(deterministic=True))
    model = unseeded(seeded(load(tmp_path / "in.onnx")).for_a_run())
    save(model, tmp_path / "out.onnx")
    assert (tmp_path / "out.onnx").read_bytes() == (tmp_path / "in.onnx").read_bytes()
    assert model.size_bytes == (tmp_path / "in.onnx").stat().st_size


@pytest.mark.parametrize("recipe", ["lossless", "default", "small", "fast"])
def test_an_unsorted_model_is_optimized_with_data(tmp_path: Path, recipe: str) -> None:
    data = np.random.default_rng(0).standard_normal((60, 64)).astype(np.float32)
    np.savez(tmp_path / "calib.npz", x=data)
    result = onnxcomp.optimize(unsorted_model(), recipe=recipe, calibration=tmp_path / "calib.npz", measure=False)
    assert result.receipt.verdict["passed"]


@pytest.mark.parametrize(
    ("stated", "version"),
    [
        ([("", 12), ("ai.onnx", 13)], 13),
        ([("ai.onnx", 13), ("", 12)], 12),
        ([("", 13), ("", 12)], 12),
        ([("ai.onnx", 12)], 12),
    ],
)
def test_the_default_domain_is_imported_once_in_the_last_version(
    stated: list[tuple[str, int]], version: int
) -> None:
    proto = unsorted_model()
    del proto.opset_import[:]
    proto.opset_import.extend(helper.make_opsetid(*each) for each in stated)
    proto.graph.node[1].domain = "ai.onnx"
    model = load(proto)
    assert imports(model.proto) == {"": version} and model.opset == version
    assert {each.domain for each in model.proto.graph.node} == {""}
    assert model.as_written == proto


def test_a_function_goes_by_its_own_name_of_the_default_domain() -> None:
    proto = parser.parse_model("""<ir_version: 8, opset_import: ["" : 12, "f" : 1]>
        net (float[1, 2] x) => (float[2] y) { y = f.flat(x) }
        <domain: "f", opset_import: ["" : 12, "ai.onnx" : 13]> flat (a) => (b) { b = Squeeze <axes = [0]> (a) }""")
    model = load(proto)
    assert imports(model.proto.functions[0]) == {"": 12}
    assert model.as_written == proto


def test_an_alias_inside_a_function_is_not_written_again() -> None:
    """ONNX Runtime does not find an operator of "ai.onnx" there."""
    proto = parser.parse_model("""<ir_version: 8, opset_import: ["" : 12, "f" : 1]>
        net (float[1, 2] x) => (float[1, 2] y) { y = f.flat(x) }
        <domain: "f", opset_import: ["ai.onnx" : 12]> flat (a) => (b) { b = Relu(a) }""")
    proto.functions[0].node[0].domain = "ai.onnx"
    model = load(proto)
    assert imports(model.proto.functions[0]) == {"": 12} and model.as_written is model.proto
    Session(model.to_bytes())


def test_a_rewrite_of_an_unsorted_model_is_written_as_rewritten(tmp_path: Path) -> None:
    model = load(unsorted_model())
    changed = model.with_proto(ModelProto.FromString(model.proto.SerializeToString()))
    changed.proto.graph.initializer[0].raw_data = np.zeros((64, 96), np.float32).tobytes()
    assert isinstance(changed, Model) and changed.as_written is changed.proto
    save(changed, tmp_path / "out.onnx")
    written = onnx.load(tmp_path / "out.onnx").graph.initializer[0]
    assert written.data_type == TensorProto.FLOAT and not numpy_helper.to_array(written).any()
