"""A weight is a weight to every pass, however the file holds it: plain, or as something that nodes decode."""

from __future__ import annotations

from collections.abc import Callable

import ml_dtypes
import numpy as np
import onnx
import pytest
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper

from onnxcomp.contract import Context
from onnxcomp.graph.ir.query import constants_by_key
from onnxcomp.graph.ir.reader import close_graph, open_graph
from onnxcomp.graph.provenance import Reference
from onnxcomp.graph.report.inspection import inspect
from onnxcomp.graph.stored.opening import open_plain
from onnxcomp.model import Model, load
from onnxcomp.pipeline import optimize, replay
from onnxcomp.pipeline.apply import apply_pass
from onnxcomp.recipe import single
from onnxcomp.registry import get_pass, pass_names
from onnxcomp.testing.applying import apply, eager
from tests.graphs.running import run
from tests.passes.exactly import model as model_of_text

SEEING = [name for name in pass_names() if not get_pass(name).as_stored]
# One that changes values, one that replaces nodes, one that fuses: they meet every way of storing, the others one.
SOME = ("prune-weights", "quantize-dynamic", "fuse-batch-norm")
FEEDS = {"x": np.random.default_rng(7).standard_normal((2, 8, 12, 12)).astype(np.float32)}
# What stays: vectors and all that is not a weight.
VECTORS = frozenset({"bias", "gamma", "beta", "mean", "variance", "addend"})

Storing = Callable[[ModelProto], None]


def network(factor: float = 1.0) -> ModelProto:
    """Conv, BatchNormalization, Relu, Conv, Relu, pooled, MatMul, Add, Relu, Gemm: weights of few bits each."""
    rng = np.random.default_rng(3)

    def weight(*shape: int) -> np.ndarray:
        return (rng.integers(-8, 9, shape) / 32 * factor).astype(np.float32)

    held = {
        "conv1": weight(16, 8, 3, 3), "gamma": 1 + np.abs(weight(16)), "beta": weight(16), "mean": weight(16),
        "variance": 1 + np.abs(weight(16)), "conv2": weight(16, 16, 3, 3), "bias": weight(16),
        "product": weight(16, 64), "addend": weight(64), "gemm": weight(10, 64), "shape": np.array([0, -1], np.int64),
    }  # fmt: skip
    nodes = [
        helper.make_node("Conv", ["x", "conv1"], ["c1"], "convolve", pads=[1] * 4),
        helper.make_node("BatchNormalization", ["c1", "gamma", "beta", "mean", "variance"], ["n1"], "normalize"),
        helper.make_node("Relu", ["n1"], ["r1"], "rectify"),
        helper.make_node("Conv", ["r1", "conv2", "bias"], ["c2"], "convolve_again", strides=[2, 2]),
        helper.make_node("Relu", ["c2"], ["r2"], "rectify_again"),
        helper.make_node("GlobalAveragePool", ["r2"], ["p"], "pool"),
        helper.make_node("Reshape", ["p", "shape"], ["rows"], "flatten"),
        helper.make_node("MatMul", ["rows", "product"], ["m"], "multiply"),
        helper.make_node("Add", ["m", "addend"], ["a"], "add"),
        helper.make_node("Relu", ["a"], ["r3"], "rectify_rows"),
        helper.make_node("Gemm", ["r3", "gemm"], ["y"], "last", transB=1),
    ]
    graph = helper.make_graph(
        nodes, "net",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 8, 12, 12])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 10])],
        [numpy_helper.from_array(values, name) for name, values in held.items()],
    )  # fmt: skip
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def _stored(
    proto: ModelProto, kind: type, form: Callable[[str, np.ndarray], tuple[np.ndarray, list[NodeProto], str]]
) -> None:
    """Put each weight in another type, with what ``form`` puts before the Cast."""
    made: list[NodeProto] = []
    for tensor in proto.graph.initializer:
        if tensor.data_type != TensorProto.FLOAT or tensor.name in VECTORS:
            continue
        name, values = tensor.name, numpy_helper.to_array(tensor)
        stored, before, last = form(name, values)
        for node in proto.graph.node:
            node.input[:] = [f"{name}_wide" if each == name else each for each in node.input]
        made += [*before, helper.make_node("Cast", [last], [f"{name}_wide"], to=TensorProto.FLOAT)]
        tensor.CopyFrom(numpy_helper.from_array(stored.astype(kind), name))
    nodes = [*made, *proto.graph.node]
    del proto.graph.node[:]
    proto.graph.node.extend(nodes)


def cast(kind: type) -> Storing:
    return lambda proto: _stored(proto, kind, lambda name, values: (values, [], name))


def transposed(proto: ModelProto) -> None:
    def form(name: str, values: np.ndarray) -> tuple[np.ndarray, list[NodeProto], str]:
        order = list(range(values.ndim))
        turned = [*order[1:], order[0]]
        back = helper.make_node("Transpose", [name], [f"{name}_t"], perm=list(np.argsort(turned)))
        return values.transpose(turned), [back], f"{name}_t"

    _stored(proto, np.float16, form)


def flattened(proto: ModelProto) -> None:
    def form(name: str, values: np.ndarray) -> tuple[np.ndarray, list[NodeProto], str]:
        proto.graph.initializer.append(numpy_helper.from_array(np.array(values.shape, np.int64), f"{name}_shape"))
        again = helper.make_node("Reshape", [name, f"{name}_shape"], [f"{name}_r"])
        same = helper.make_node("Identity", [f"{name}_r"], [f"{name}_i"])
        return values.reshape(-1), [again, same], f"{name}_i"

    _stored(proto, np.float16, form)


def unsqueezed(proto: ModelProto) -> None:
    def form(name: str, values: np.ndarray) -> tuple[np.ndarray, list[NodeProto], str]:
        proto.graph.initializer.append(numpy_helper.from_array(np.array([0], np.int64), f"{name}_axes"))
        less = helper.make_node("Squeeze", [name, f"{name}_axes"], [f"{name}_s"])
        return values[np.newaxis], [less], f"{name}_s"

    _stored(proto, np.float16, form)


def compact(proto: ModelProto) -> None:
    wanted = frozenset(each.name for each in proto.graph.initializer) - VECTORS - {"shape"}
    done, _ = apply_pass(load(proto), get_pass("store-compact")(), Context(include=wanted))
    proto.CopyFrom(load(done.to_bytes()).proto)


STORINGS: dict[str, Storing] = {
    "float16": cast(np.float16), "bfloat16": cast(ml_dtypes.bfloat16), "float8": cast(ml_dtypes.float8_e4m3fn),
    "transposed": transposed, "flattened": flattened, "unsqueezed": unsqueezed, "compact": compact,
}  # fmt: skip


def stored(how: str, factor: float = 1.0) -> ModelProto:
    """The network's twin, whose weights nodes decode."""
    proto = network(factor)
    if how == "float8":
        proto.opset_import[0].version, proto.ir_version = 19, 9
    STORINGS[how](proto)
    onnx.checker.check_model(proto, full_check=True)
    return proto


def weights_of(model: Model) -> dict[str, np.ndarray]:
    return {key: np.asarray(each.values) for key, each in constants_by_key(open_plain(model)).items()}


@pytest.mark.parametrize(
    ("name", "how"), [*((name, "float16") for name in SEEING), *((name, how) for name in SOME for how in STORINGS)]
)
def test_each_pass_does_to_stored_weights_what_it_does_to_plain_ones(name: str, how: str) -> None:
    kind = get_pass(name)
    before = load(network(1.125))
    plain_proto, stored_proto = network(), stored(how)
    plain_proto.opset_import[0].version = stored_proto.opset_import[0].version
    plain_proto.ir_version = stored_proto.ir_version
    plain = apply(plain_proto, kind(**eager(kind)), FEEDS, reference=Reference(before))
    twin = apply(stored_proto, kind(**eager(kind)), FEEDS, reference=Reference(before))
    assert [each.name for each in twin.outcome.changed] == [each.name for each in plain.outcome.changed]
    assert {each.name: each.what for each in twin.outcome.changed} == {
        each.name: each.what for each in plain.outcome.changed
    }
    assert twin.outcome.skipped == plain.outcome.skipped
    expected, found = weights_of(plain.after), weights_of(twin.after)
    assert expected.keys() <= found.keys()
    for key, values in expected.items():
        np.testing.assert_array_equal(found[key], values, key)
    for output, values in run(plain.content, FEEDS).items():
        np.testing.assert_allclose(run(twin.content, FEEDS)[output], values, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("how", ("float16", "compact"))
@pytest.mark.parametrize("name", pass_names())
def test_no_pass_makes_a_stored_weight_larger_that_it_leaves_alone(name: str, how: str) -> None:
    kind, model = get_pass(name), load(stored(how))
    before = Reference(load(network(1.125)))
    done = apply(model, kind(**eager(kind)), FEEDS, reference=before, exclude=("conv2*", "convolve_again"))
    before, after = weights_of(done.before), weights_of(done.after)
    if "conv2" in after and np.array_equal(before["conv2"], after["conv2"]):
        assert _holds_short(done.after), "it is plain now"


def _holds_short(model: Model) -> bool:
    """Whether nothing of the weight's form is kept in float32."""
    return not any(
        each.data_type == TensorProto.FLOAT and np.prod(each.dims) == 16 * 16 * 9
        for each in model.proto.graph.initializer
    )


@pytest.mark.parametrize("how", STORINGS)
def test_opening_and_closing_changes_no_byte(how: str) -> None:
    model = load(stored(how))
    again = close_graph(open_plain(model))
    assert again.proto.SerializeToString(deterministic=True) == model.proto.SerializeToString(deterministic=True)


@pytest.mark.parametrize("how", STORINGS)
def test_a_stored_weight_is_seen_with_its_values(how: str) -> None:
    graph = open_plain(load(stored(how)))
    found = constants_by_key(graph)
    plain = constants_by_key(open_graph(load(network())))
    for name in ("conv1", "conv2", "product", "gemm"):
        np.testing.assert_array_equal(found[name].values, plain[name].values)
        assert found[name].dtype == np.float32
    assert not any(node.op == "Cast" for node in graph.main.graph.nodes)


def test_new_values_that_float16_holds_are_stored_like_the_old_ones() -> None:
    graph = open_plain(load(stored("float16")))
    weight = constants_by_key(graph)["product"]
    weight.values = np.asarray(weight.values) * np.float32(2)
    doubled = close_graph(graph)
    assert (
        next(each for each in doubled.proto.graph.initializer if each.name == "product").data_type
        == TensorProto.FLOAT16
    )
    np.testing.assert_array_equal(weights_of(doubled)["product"], constants_by_key(graph)["product"].values)


def test_new_values_that_it_does_not_hold_are_plain() -> None:
    graph = open_plain(load(stored("float16")))
    weight = constants_by_key(graph)["product"]
    weight.values = np.asarray(weight.values) * np.float32(1.1)
    changed = close_graph(graph)
    assert (
        next(each for each in changed.proto.graph.initializer if each.name == "product").data_type == TensorProto.FLOAT
    )
    assert [node.op_type for node in changed.proto.graph.node].count("Cast") == 3


def test_a_graph_may_be_edited_further_after_it_was_written() -> None:
    graph = open_plain(load(stored("compact")))
    first = close_graph(graph)
    weight = constants_by_key(graph)["product"]
    weight.values = np.asarray(weight.values) * np.float32(1.1)
    second = close_graph(graph)
    assert weights_of(first)["product"].tobytes() != weights_of(second)["product"].tobytes()
    np.testing.assert_array_equal(weights_of(second)["gemm"], weights_of(first)["gemm"])


def test_a_weight_that_is_also_read_as_it_is_stored_stays_one() -> None:
    proto = stored("float16")
    proto.graph.node.add(op_type="Identity", input=["product"], output=["short"])
    proto.graph.output.append(helper.make_tensor_value_info("short", TensorProto.FLOAT16, [16, 64]))
    found = constants_by_key(open_plain(load(proto)))
    assert found["product"].dtype == np.float16
    assert found["gemm"].dtype == np.float32


def test_casts_of_one_weight_are_one_weight() -> None:
    proto = stored("float16")
    again = helper.make_node("Cast", ["gemm"], ["gemm_again"], to=TensorProto.FLOAT)
    nodes = [again, *proto.graph.node, helper.make_node("Gemm", ["r3", "gemm_again"], ["z"], transB=1)]
    del proto.graph.node[:]
    proto.graph.node.extend(nodes)
    proto.graph.output.append(helper.make_tensor_value_info("z", TensorProto.FLOAT, ["N", 10]))
    model = load(proto)
    done, outcome = apply_pass(model, get_pass("prune-weights")(), Context(include=frozenset({"gemm"})))
    assert [each.name for each in outcome.changed] == ["gemm"]
    assert done.size_bytes <= model.size_bytes
    results = run(done.to_bytes(), FEEDS)
    np.testing.assert_array_equal(results["y"], results["z"])


def test_a_recipe_for_bytes_fuses_no_weight_that_would_be_larger() -> None:
    model = load(stored("float16"))
    lossless = optimize(model, recipe="lossless", measure=False)
    assert lossless.model.size_bytes <= model.size_bytes
    steps = {each.rewrite: each for each in lossless.receipt.steps}
    assert not steps["fuse-batch-norm"].changed
    assert any("fewer bytes" in each.what for each in steps["fuse-batch-norm"].skipped)


def test_a_pass_that_is_asked_for_by_name_fuses_it_all_the_same() -> None:
    result = optimize(load(stored("float16")), recipe=single(get_pass("fuse-batch-norm")()), measure=False)
    assert result.receipt.steps[-1].decision == "kept"
    assert "BatchNormalization" not in {node.op_type for node in result.model.proto.graph.node}


def test_replaying_makes_the_same_bytes() -> None:
    proto = stored("float16")
    for recipe in ("lossless", single(get_pass("prune-weights")(sparsity=0.1))):
        result = optimize(load(proto), recipe=recipe, measure=False)
        again = replay(load(proto), result.receipt)
        assert again.model.to_bytes() == result.model.to_bytes()


@pytest.mark.parametrize("pattern", ("conv2", "conv2_wide", "*_wide"))
def test_it_is_excluded_by_either_name(pattern: str) -> None:
    proto = stored("float16")
    result = optimize(load(proto), recipe=single(get_pass("quantize-weights")()), exclude=[pattern], measure=False)
    np.testing.assert_array_equal(weights_of(result.model)["conv2"], weights_of(load(proto))["conv2"])


def test_inspect_shows_it_as_a_weight_that_can_become_smaller() -> None:
    found = {each.name: each for each in inspect(load(stored("float16"))).tensors}
    plain = {each.name: each for each in inspect(load(network())).tensors}
    for name in ("conv1", "product", "gemm"):
        assert found[name].kind == plain[name].kind
        assert found[name].size_bytes == plain[name].size_bytes // 2
        assert 0 <= plain[name].bits_bytes[2] - found[name].bits_bytes[2] <= 2 * 2**2  # a shorter type's codebook


def test_a_stored_number_stays_a_number() -> None:
    proto = model_of_text("""g (float[2] x) => (float[2] y) <float16 k = {15360}> {
        wide = Cast<to = 1>(k)
        y = Mul(x, wide)
    }""")
    graph = open_plain(load(proto))
    factor = constants_by_key(graph)["k"]
    assert factor.values.shape == () and float(factor.values) == 1
    factor.values = np.asarray(factor.values) * np.float32(2)
    changed = close_graph(graph).proto
    assert list(changed.graph.initializer[0].dims) == []
    (out,) = run(changed.SerializeToString(), {"x": np.array([1, 2], np.float32)}).values()
    np.testing.assert_array_equal(out, np.array([2, 4], np.float32))
