"""store-integers: the values of the codes to the bit, and what ONNX Runtime makes of each form."""

from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, numpy_helper, parser

from onnxcomp.contract import Context, Outcome
from onnxcomp.graph.ir.reader import close_graph, open_graph
from onnxcomp.model import Model, load
from onnxcomp.recipe import Recipe
from onnxcomp.registry import get_pass
from onnxcomp.runtime import Session
from onnxcomp.target import QuantizationStyle, Target
from tests.graphs.running import kernels

Array = NDArray[Any]
StoreIntegers = get_pass("store-integers")
QuantizeWeights = get_pass("quantize-weights")
# DequantizeLinear stays as it is written, so that its values can be held to the bit.
UNFUSED = {"optimization": "none"}


def drawn(*shape: int, seed: int = 7) -> Array:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def model_of(text: str, opset: int = 21, functions: str = "", **constants: Array) -> Model:
    """``text`` is the graph, ``constants`` are its initializers."""
    domains = ', "f" : 1' if functions else ""
    proto = parser.parse_model(f'<ir_version: 10, opset_import: ["" : {opset}{domains}]>\n{text}\n{functions}')
    for name, values in constants.items():
        proto.graph.initializer.append(numpy_helper.from_array(values, name))
    return load(proto)


def rounded(model: Model, **fields: Any) -> Model:
    graph = open_graph(model)
    outcome = QuantizeWeights(**fields).apply(graph, Context())
    assert outcome.changed
    return close_graph(graph)


def stored(model: Model, context: dict[str, Any] | None = None, **fields: Any) -> tuple[Model, Outcome]:
    graph = open_graph(model)
    outcome = StoreIntegers(**{"min_elements": 2, **fields}).apply(graph, Context(**(context or {})))
    result = close_graph(graph)
    onnx.checker.check_model(onnx.load_from_string(result.to_bytes()), full_check=True)
    return result, outcome


def outputs(model: Model, feeds: dict[str, Array], **options: Any) -> list[Array]:
    return [np.asarray(each) for each in dict(Session(model.to_bytes(), **options).run(feeds)).values()]


def assert_close(model: Model, result: Model, feeds: dict[str, Array], share: float) -> None:
    for before, after in zip(outputs(model, feeds), outputs(result, feeds), strict=True):
        assert after.dtype == before.dtype and after.shape == before.shape
        assert np.abs(after.astype(np.float64) - before).max() <= share * np.abs(before).max()


def held(model: Model) -> dict[str, TensorProto]:
    return {each.name: each for each in model.proto.graph.initializer}


GRIDS = [
    {"bits": 8},
    {"bits": 8, "granularity": "tensor"},
    {"bits": 8, "symmetric": False},
    {"bits": 5, "granularity": "block", "block_size": 16},
    {"bits": 4, "granularity": "block", "block_size": 32},
    {"bits": 4, "granularity": "block", "block_size": 32, "symmetric": False},
    {"bits": 3, "granularity": "block", "block_size": 64},
    {"bits": 2, "granularity": "block", "block_size": 32},
    {"bits": 2, "granularity": "block", "block_size": 16, "symmetric": False},
    {"bits": 3},
]


@pytest.mark.parametrize("fields", GRIDS)
def test_decoders_give_the_weight_to_the_bit(fields: dict[str, Any]) -> None:
    """A product with the identity is the weight."""
    model = rounded(
        model_of("g (float[M,64] x) => (float[M,24] y) { y = MatMul(x, W) }", 25, W=drawn(64, 24)), **fields
    )
    weight = numpy_helper.to_array(model.proto.graph.initializer[0])
    result, outcome = stored(model, form="dequantize")
    assert outcome.changed[0].details["error"] == 0
    (got,) = outputs(result, {"x": np.eye(64, dtype=np.float32)}, **UNFUSED)
    np.testing.assert_array_equal(got, weight)


@pytest.mark.parametrize("fields", GRIDS)
def test_kernels_multiply_by_the_values_of_the_codes(fields: dict[str, Any]) -> None:
    """In float32 where level 0 says so; with inputs in 8 bits, each block of a row by itself, at level 4."""
    model = rounded(
        model_of("g (float[M,64] x) => (float[M,24] y) { y = MatMul(x, W) }", 17, W=drawn(64, 24)), **fields
    )
    weight = numpy_helper.to_array(model.proto.graph.initializer[0]).astype(np.float64)
    x = drawn(9, 64, seed=8)
    for level, tolerance in ((0, 1e-5), (1, 1e-5), (4, 2e-2)):
        result, outcome = stored(model, accuracy_level=level)
        assert outcome.changed[0].details["error"] == 0
        (node,) = result.proto.graph.node
        assert {each.name: each.i for each in node.attribute}["accuracy_level"] == level
        (got,) = outputs(result, {"x": x})
        expected = x.astype(np.float64) @ weight
        assert np.abs(got - expected).max() <= tolerance * np.abs(expected).max()


@pytest.mark.parametrize("form", ["nbits", "dequantize"])
@pytest.mark.parametrize(
    "body",
    [
        "y = Gemm(x, W)",
        "y = Gemm(x, W, b)",
        "y = Gemm<alpha=0.5, beta=2.0>(x, W, b)",
        "y = Gemm<transB=1>(x, W, b)",
        "t = Transpose(x) y = Gemm<transA=1>(t, W, b)",
        "t = Transpose(x) y = Gemm<transA=1, transB=1, alpha=2.0, beta=0.25>(t, W, c)",
        "t = Transpose(W) i = Identity(t) y = MatMul(x, i)",
        "h = MatMul(x, W) y = Add(h, b)",
    ],
)
def test_every_form_of_a_product_becomes_a_kernel(body: str, form: str) -> None:
    constants = {"W": drawn(48, 48) / 7, "b": drawn(48), "c": drawn(1, 48)}
    used = {name: each for name, each in constants.items() if f"{name})" in body or f"{name}," in body}
    model = model_of(f"g (float[48,48] x) => (float[48,48] y) {{ {body} }}", **used)
    result, outcome = stored(model, form=form, bits=8, block_size=16)
    assert [each.name for each in outcome.changed] == ["W"]
    assert not {"MatMul", "Gemm", "DequantizeLinear"} & kernels(result.to_bytes()).keys()
    assert_close(model, result, {"x": drawn(48, 48, seed=9)}, 0.03)


@pytest.mark.parametrize("form", ["nbits", "dequantize"])
@pytest.mark.parametrize("shape", ["64,C", "N,64,5"])
def test_a_weight_on_the_left_is_turned(shape: str, form: str) -> None:
    out = shape.replace("64", "24")
    model = rounded(model_of(f"g (float[{shape}] x) => (float[{out}] y) {{ y = MatMul(W, x) }}", W=drawn(24, 64)))
    result, outcome = stored(model, form=form)
    assert outcome.changed[0].details["error"] == 0
    dims = [3 if each in "NC" else int(each) for each in shape.split(",")]
    assert_close(model, result, {"x": drawn(*dims, seed=9)}, 0.03)


@pytest.mark.parametrize("form", ["nbits", "dequantize"])
def test_a_gemm_may_add_what_is_computed(form: str) -> None:
    model = model_of("g (float[48,48] x) => (float[48,48] y) { y = Gemm<beta=0.5>(x, W, x) }", W=drawn(48, 48) / 7)
    result, _ = stored(model, form=form, bits=8, block_size=16)
    assert_close(model, result, {"x": drawn(48, 48, seed=9)}, 0.03)


@pytest.mark.parametrize("form", ["nbits", "dequantize"])
def test_a_weight_of_several_products_is_stored_once(form: str) -> None:
    text = "g (float[M,48] x) => (float[M,48] y) { h = MatMul(x, W) r = Gemm<alpha=0.5>(h, W) y = MatMul(r, W) }"
    model = model_of(text, W=drawn(48, 48) / 7)
    result, _ = stored(model, form=form, bits=8, block_size=16)
    assert sum(len(each.raw_data) == 48 * 48 for each in held(result).values()) == 1
    assert_close(model, result, {"x": drawn(5, 48, seed=9)}, 0.03)


@pytest.mark.parametrize(
    ("fields", "kind"),
    [
        ({"bits": 8}, TensorProto.INT8),
        ({"bits": 4}, TensorProto.INT4),
        ({"bits": 3}, TensorProto.INT4),
        ({"bits": 2}, TensorProto.INT2),
        ({"bits": 8, "symmetric": False}, TensorProto.UINT8),
        ({"bits": 4, "symmetric": False}, TensorProto.UINT4),
        ({"bits": 2, "symmetric": False}, TensorProto.UINT2),
    ],
)
def test_decoders_read_the_smallest_type_that_holds_the_codes(fields: dict[str, Any], kind: int) -> None:
    result, _ = stored(
        model_of("g (float[M,64] x) => (float[M,24] y) { y = MatMul(x, W) }", 25, W=drawn(64, 24)),
        form="dequantize",
        **fields,
    )
    assert held(result)["W_columns"].data_type == kind


@pytest.mark.parametrize("form", ["nbits", "dequantize"])
def test_large_codes_are_packed_in_the_file(form: str) -> None:
    model = model_of("g (float[M,512] x) => (float[M,1024] y) { y = MatMul(x, W) }", W=drawn(512, 1024))
    result, _ = stored(model, form=form, bits=4, block_size=128)
    codes, scales = 512 * 1024 // 2, 4 * 1024 * 4
    assert len(result.to_bytes()) < codes + scales + 600
    assert_close(model, result, {"x": drawn(3, 512, seed=9)}, 0.2)


@pytest.mark.parametrize("depth", [100, 36, 130])
@pytest.mark.parametrize("symmetric", [True, False])
def test_a_depth_that_is_no_whole_number_of_blocks_is_filled_up(depth: int, symmetric: bool) -> None:
    model = model_of(f"g (float[M,{depth}] x) => (float[M,24] y) {{ y = MatMul(x, W) }}", W=drawn(depth, 24))
    for bits, share in ((8, 0.02), (4, 0.2)):
        result, outcome = stored(model, bits=bits, symmetric=symmetric, form="nbits")
        assert outcome.changed
        assert_close(model, result, {"x": drawn(5, depth, seed=9)}, share)


def test_two_bits_never_get_the_blocks_that_are_slow() -> None:
    text = "g (float[M,512] x) => (float[M,8] y) { y = MatMul(x, W) }"
    for block, expected in ((16, (4, 16)), (256, (2, 128)), (64, (2, 64))):
        model = rounded(model_of(text, W=drawn(512, 8)), bits=2, granularity="block", block_size=block)
        result, _ = stored(model)
        attributes = {each.name: each.i for each in result.proto.graph.node[0].attribute}
        assert (attributes["bits"], attributes["block_size"]) == expected


# --- tables ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["nbits", "dequantize"])
@pytest.mark.parametrize("opset", [9, 17, 21])
@pytest.mark.parametrize(
    "fields",
    [
        {"bits": 8},
        {"bits": 8, "granularity": "tensor"},
        {"bits": 6, "symmetric": False},
        {"bits": 8, "granularity": "block", "block_size": 16},
        {"bits": 4, "granularity": "block", "block_size": 16},
        {"bits": 4, "granularity": "block", "block_size": 16, "symmetric": False},
        {"bits": 4, "symmetric": False},
        {"bits": 2},
    ],
)
def test_rows_of_a_table_are_decoded_to_the_bit(fields: dict[str, Any], opset: int, form: str) -> None:
    model = rounded(
        model_of("g (int64[N,M] ids) => (float[N,M,48] y) { y = Gather(W, ids) }", opset, W=drawn(40, 48)), **fields
    )
    result, outcome = stored(model, form=form)
    assert outcome.changed and result.opset == opset
    ids = np.array([[0, 39, 5], [-1, 7, -40]])
    np.testing.assert_array_equal(*outputs(model, {"ids": ids}), *outputs(result, {"ids": ids}))
    codes = [each for each in held(result).values() if each.data_type in (TensorProto.UINT8, TensorProto.INT8)]
    assert sum(len(each.raw_data) for each in codes) <= 40 * 48 * max(2, fields["bits"] + 3) // 8
    for shape in ((0, 3), (2, 0)):
        assert outputs(result, {"ids": np.zeros(shape, np.int64)})[0].shape == (*shape, 48)
    if form == "dequantize":
        assert {each.domain for each in result.proto.opset_import} == {""}


@pytest.mark.parametrize("width", [50, 33, 72])
@pytest.mark.parametrize("form", ["nbits", "dequantize"])
def test_tables_of_any_width_keep_it(width: int, form: str) -> None:
    model = model_of(f"g (int64[N] ids) => (float[N,{width}] y) {{ y = Gather(W, ids) }}", W=drawn(40, width))
    for bits, share in ((8, 0.01), (4, 0.2), (2, 0.8)):
        result, outcome = stored(model, form=form, table_bits=bits)
        assert outcome.changed
        assert_close(model, result, {"ids": np.array([3, 0, 39])}, share)


def test_ids_of_unknown_rank_are_looked_up_too() -> None:
    text = """g (int64[K] form, int64[N] flat) => (float[N,48] y) {
        ids = Reshape(flat, form) rows = Gather(W, ids)
        two = Constant<value_ints=[-1, 48]>() y = Reshape(rows, two) }"""
    model = rounded(model_of(text, W=drawn(40, 48)), bits=4, granularity="block", block_size=16)
    result, _ = stored(model, form="dequantize")
    feeds = {"form": np.array([2, 1, 3]), "flat": np.arange(6)}
    np.testing.assert_array_equal(*outputs(model, feeds), *outputs(result, feeds))


@pytest.mark.parametrize("form", ["nbits", "dequantize"])
@pytest.mark.parametrize("bits", [8, 4])
def test_a_table_that_scores_too_is_stored_once(form: str, bits: int) -> None:
    text = """g (int64[N] ids) => (float[N,40] y) {
        h = Gather(W, ids) r = Relu(h) t = Transpose(W) y = MatMul(r, t) }"""
    model = model_of(text, W=drawn(40, 64))
    result, outcome = stored(model, form=form, bits=bits, block_size=64 if form == "dequantize" else 32)
    assert outcome.changed[0].details["nodes"] == ["MatMul", "Gather"]
    assert_close(model, result, {"ids": np.array([3, 0, 39])}, 0.02 if bits == 8 else 0.2)
    if form == "nbits" or bits == 8:
        assert sum(len(each.raw_data) for each in held(result).values()) < 40 * 64 * bits / 8 + 1000


# --- where, and where not ----------------------------------------------------------------------------------


def test_small_tensors_of_float16_stay_float16() -> None:
    text = """g (float16[M,64] x, int64[M] ids) => (float16[M,24] y, float16[M,64] z) {
        y = MatMul(x, W) z = Gather(V, ids) }"""
    model = model_of(text, W=drawn(64, 24).astype(np.float16), V=drawn(40, 64).astype(np.float16))
    for form in "nbits", "dequantize":
        result, outcome = stored(model, form=form, bits=8)
        assert len(outcome.changed) == 2
        feeds = {"x": drawn(3, 64, seed=9).astype(np.float16), "ids": np.array([1, 2, 3])}
        assert_close(model, result, feeds, 0.03)


@pytest.mark.parametrize("form", ["nbits", "dequantize"])
def test_subgraphs_read_weights_of_the_graph_around_them(form: str) -> None:
    model = model_of(
        """g (bool c, float[N,64] x) => (float[N,64] y) { h = MatMul(x, W) y = If(c) <
            then_branch = t () => (float[N,64] a) { a = MatMul(h, W) },
            else_branch = e () => (float[N,64] b) { b = MatMul(h, V) }> }""",
        W=drawn(64, 64) / 8, V=drawn(64, 64, seed=8) / 8,
    )  # fmt: skip
    result, outcome = stored(model, form=form, bits=8)
    assert len(outcome.changed) == 2
    for condition in True, False:
        assert_close(model, result, {"x": drawn(4, 64, seed=9), "c": np.array(condition)}, 0.03)


def test_functions_import_the_domain_of_the_kernels() -> None:
    values = ", ".join(f"{each:.4f}" for each in drawn(64 * 8).reshape(-1))
    function = f"""<domain: "f", opset_import: ["" : 21]> dense (x) => (y) {{
        W = Constant<value=float[64,8] {{ {values} }}>() y = MatMul(x, W) }}"""
    model = model_of("g (float[N,64] x) => (float[N,8] y) { y = f.dense(x) }", functions=function)
    for form in "nbits", "dequantize":
        result, outcome = stored(model, form=form, bits=8)
        assert len(outcome.changed) == 1
        domains = {each.domain for each in result.proto.functions[0].opset_import}
        assert domains == ({"", "com.microsoft"} if form == "nbits" else {""})
        assert_close(model, result, {"x": drawn(3, 64, seed=9)}, 0.03)


def test_decoders_raise_the_opset_as_far_as_they_may() -> None:
    model = model_of("g (float[M,64] x) => (float[M,24] y) { y = MatMul(x, W) }", 13, W=drawn(64, 24))
    assert stored(model, form="dequantize")[0].opset == 21
    assert stored(model, form="dequantize", bits=2)[0].opset == 25
    assert stored(model)[0].opset == 13
    same, outcome = stored(model, context={"max_opset": 20}, form="dequantize")
    assert "opset 21" in outcome.skipped[0].reason
    assert same.proto.SerializeToString() == model.proto.SerializeToString()
    result, outcome = stored(model, context={"max_opset": 20}, form="dequantize", bits=8)
    assert result.opset == 13 and "a row" in outcome.changed[0].what


def targeted(name: str, min_ort: tuple[int, int] | None = None) -> dict[str, Any]:
    target = Target(name=name, provider="CPUExecutionProvider", style=QuantizationStyle(), min_ort=min_ort)
    return {"target": target}


def test_the_target_chooses_the_form() -> None:
    model = model_of("g (float[M,64] x) => (float[M,24] y) { y = MatMul(x, W) }", W=drawn(64, 24))
    for context, op in (
        (targeted("cpu"), "MatMulNBits"),
        (targeted("openvino"), "DequantizeLinear"),
        (targeted("cpu", (1, 16)), "DequantizeLinear"),
        (targeted("cpu", (1, 20)), "MatMulNBits"),
    ):
        result, _ = stored(model, context=context)
        assert result.proto.graph.node[0].op_type == op
    _, outcome = stored(model, context=targeted("cpu", (1, 20)), bits=8)
    assert "ONNX Runtime 1.22" in outcome.skipped[0].reason


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ("y = Gemm(W, x)", "on the left"),
        ("s = Sigmoid(W) y = MatMul(x, s)", "needs it decoded"),
        ("a = MatMul(x, W) y = Mul(a, W)", "needs it decoded"),
        ("a = MatMul(x, W) y = Gemm<transB=1>(a, W)", "different axes"),
        ("y = MatMul(x, E)", "not finite"),
        ("h = MatMul(x, B) y = Squeeze(h)", "more than two dimensions"),
        ("d = Cast<to=11>(x) e = MatMul(d, D) y = Cast<to=1>(e)", "float64"),
        ("i = Constant<value_ints=[0]>() y = Gather<axis=1>(W, i)", "another axis"),
    ],
)
def test_says_why_it_leaves_a_weight(body: str, reason: str) -> None:
    constants = {
        "W": drawn(48, 48), "E": np.full((48, 48), np.inf, np.float32), "B": drawn(1, 48, 48),
        "D": drawn(48, 48).astype(np.float64),
    }  # fmt: skip
    used = {name: each for name, each in constants.items() if f"{name})" in body or f"{name}," in body}
    _, outcome = stored(model_of(f"g (float[48,48] x) => (float[A,B] y) {{ {body} }}", **used))
    assert not outcome.changed
    assert [reason in each.reason for each in outcome.skipped] == [True], outcome.skipped


def test_weights_on_no_grid_are_left_on_request() -> None:
    text = "g (float[M,64] x) => (float[M,64] y) { h = MatMul(x, W) y = MatMul(h, V) }"
    model = rounded(model_of(text, W=drawn(64, 64)), bits=4, granularity="block")
    proto = model.proto
    proto.graph.initializer.append(numpy_helper.from_array(drawn(64, 64, seed=8), "V"))
    _, outcome = stored(model.with_proto(proto, model.encodings), fit=False)
    assert [each.name for each in outcome.changed] == ["W"]
    assert [(each.name, "no grid" in each.reason) for each in outcome.skipped] == [("V", True)]


def test_a_codebook_is_left_alone() -> None:
    model = model_of("g (float[M,64] x) => (float[M,64] y) { y = MatMul(x, W) }", W=drawn(64, 64))
    graph = open_graph(model)
    get_pass("cluster-weights")(bits=3).apply(graph, Context())
    _, outcome = stored(close_graph(graph))
    assert not outcome.changed and "codebook" in outcome.skipped[0].reason


def test_roles_limit_what_is_stored() -> None:
    text = "g (int64[N] ids) => (float[N,40] y) { h = Gather(V, ids) y = MatMul(h, W) }"
    model = model_of(text, V=drawn(40, 64), W=drawn(64, 40))
    for roles, name in (("products", "W"), ("tables", "V")):
        _, outcome = stored(model, roles=roles)
        assert [each.name for each in outcome.changed] == [name]
        assert roles in outcome.skipped[0].reason


def test_composes_with_the_passes_that_make_and_follow_it() -> None:
    Recipe.of(QuantizeWeights(bits=4, granularity="block"), StoreIntegers(), get_pass("quantize-dynamic")())
    Recipe.of(get_pass("prune-weights")(), QuantizeWeights(), StoreIntegers())
    Recipe.of(get_pass("quantize-dynamic")(), StoreIntegers(roles="tables"), get_pass("drop-unused")())
