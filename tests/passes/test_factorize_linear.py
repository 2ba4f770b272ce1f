"""factorize-linear against W multiplied out: matrices of known rank must come through to float rounding."""

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import numpy_helper, parser

from onnxcomp.calibration import CalibrationData
from onnxcomp.contract import Context, Outcome, Quantity
from onnxcomp.errors import ParameterError
from onnxcomp.graph.ir.reader import close_graph, open_graph
from onnxcomp.graph.report.macs import count_macs
from onnxcomp.graph.weights.roles import weights
from onnxcomp.model import Model, load
from onnxcomp.registry import get_pass
from onnxcomp.runtime import Session

Array = NDArray[Any]
FactorizeLinear = get_pass("factorize-linear")


def low_rank(rows: int, columns: int, rank: int, seed: int = 0, dtype: Any = np.float32) -> Array:
    random = np.random.default_rng(seed)
    return (random.standard_normal((rows, rank)) @ random.standard_normal((rank, columns))).astype(dtype)


def model_of(text: str, opset: int = 17, **constants: Array) -> Model:
    """``text`` is the graph, ``constants`` are its initializers."""
    proto = parser.parse_model(f'<ir_version: 8, opset_import: ["" : {opset}]>\n{text}')
    for name, values in constants.items():
        proto.graph.initializer.append(numpy_helper.from_array(values, name))
    onnx.checker.check_model(proto)
    return load(proto)


def factorized(model: Model, context: Context | None = None, **fields: Any) -> tuple[Model, Outcome]:
    graph = open_graph(model)
    outcome = FactorizeLinear(**fields).apply(graph, context or Context())
    result = close_graph(graph)
    onnx.checker.check_model(result.proto, full_check=True)
    return result, outcome


def assert_same(model: Model, result: Model, **feeds: Array) -> None:
    """Rank-exact factors differ from the matrix by rounding of sums of at most 64 terms of size 10."""
    before, after = (Session(each.to_bytes()).run(feeds) for each in (model, result))
    for name, value in before.items():
        np.testing.assert_allclose(after[name], value, rtol=1e-4, atol=1e-3 * np.abs(value).max())


def operators(model: Model) -> list[str]:
    return [node.op_type for node in model.proto.graph.node]


def drawn(*shape: int) -> Array:
    return np.random.default_rng(7).standard_normal(shape).astype(np.float32)


def test_splits_a_matmul_of_low_rank_without_loss() -> None:
    model = model_of("g (float[B,S,40] x) => (float[B,S,50] y) { y = MatMul(x, W) }", W=low_rank(40, 50, 3))
    result, outcome = factorized(model, rank=3)
    assert operators(result) == ["MatMul", "MatMul"]
    assert sorted(tuple(each.dims) for each in result.proto.graph.initializer) == [(3, 50), (40, 3)]
    assert_same(model, result, x=drawn(2, 3, 40))
    assert outcome.changed[0].name == "W"
    assert outcome.changed[0].details["relative_error"] < 1e-5
    assert result.size_bytes < model.size_bytes / 3


def test_error_is_that_of_the_best_approximation() -> None:
    matrix = drawn(30, 20)
    model = model_of("g (float[N,30] x) => (float[N,20] y) { y = MatMul(x, W) }", W=matrix)
    result, outcome = factorized(model, rank=5)
    values = np.linalg.svd(matrix.astype(np.float64), compute_uv=False)
    best = np.sqrt(np.sum(values[5:] ** 2) / np.sum(values**2))  # Eckart and Young
    assert outcome.changed[0].details["relative_error"] == pytest.approx(best, rel=1e-4)
    product = Session(result.to_bytes()).run({"x": np.eye(30, dtype=np.float32)})["y"]
    assert np.linalg.norm(product - matrix) / np.linalg.norm(matrix) == pytest.approx(best, rel=1e-4)


def test_splits_a_constant_left_operand() -> None:
    model = model_of("g (float[B,40,6] x) => (float[B,50,6] y) { y = MatMul(W, x) }", W=low_rank(50, 40, 3))
    result, _ = factorized(model, rank=3)
    assert operators(result) == ["MatMul", "MatMul"]
    assert_same(model, result, x=drawn(2, 40, 6))


def test_splits_a_matmul_of_a_vector() -> None:
    model = model_of("g (float[40] x) => (float[50] y) { y = MatMul(x, W) }", W=low_rank(40, 50, 3))
    result, _ = factorized(model, rank=3)
    assert operators(result) == ["MatMul", "MatMul"]
    assert_same(model, result, x=drawn(40))


@pytest.mark.parametrize("opset", [9, 13])
@pytest.mark.parametrize("turn_x", [0, 1])
@pytest.mark.parametrize("turn_w", [0, 1])
@pytest.mark.parametrize("left", [False, True])
def test_keeps_transpositions_scales_and_bias_of_gemm(opset: int, turn_x: int, turn_w: int, left: bool) -> None:
    own, other = ("transA", "transB") if left else ("transB", "transA")
    matrix = low_rank(40, 40, 3)
    rows = "40,N" if left != bool(turn_x) else "N,40"
    operands, bias, out = ("W, x", (40, 1), "40,N") if left else ("x, W", (40,), "N,40")
    gemm = f"Gemm<{own}={turn_w}, {other}={turn_x}, alpha=0.5, beta=2.0>({operands}, b)"
    model = model_of(f"g (float[{rows}] x) => (float[{out}] y) {{ y = {gemm} }}", opset, W=matrix, b=drawn(*bias))
    result, outcome = factorized(model, rank=3)
    assert [each.name for each in outcome.changed] == ["W"]
    assert operators(result)[-1] == "Gemm" and len(operators(result)) == 2
    assert_same(model, result, x=drawn(40, 6) if rows == "40,N" else drawn(6, 40))


def test_keeps_the_node_name_and_its_output() -> None:
    model = model_of("g (float[N,40] x) => (float[N,50] y) { [first] y = MatMul(x, W) }", W=low_rank(40, 50, 3))
    result, _ = factorized(model, rank=3)
    node = result.proto.graph.node[-1]
    assert (node.name, list(node.output)) == ("first", ["y"])


def test_factors_a_shared_weight_once() -> None:
    text = "g (float[N,40] x) => (float[N,40] y) { h = MatMul(x, W) r = Relu(h) y = MatMul(r, W) }"
    model = model_of(text, W=low_rank(40, 40, 3))
    result, outcome = factorized(model, rank=3)
    assert len(outcome.changed) == 1
    assert len(result.proto.graph.initializer) == 2
    assert_same(model, result, x=drawn(5, 40))


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ("h = MatMul(x, W) y = Gemm<transB=1>(h, W)", "orientations"),
        ("h = MatMul(x, W) y = Add(h, W)", "Add"),
        ("h = MatMul(W, W) y = MatMul(x, h)", "constant"),
        ("s = Constant<value=int64[2]{40,40}>() r = Reshape(W, s) y = MatMul(x, r)", "Reshape"),
    ],
)
def test_says_why_it_leaves_a_weight(body: str, reason: str) -> None:
    model = model_of(f"g (float[40,40] x) => (float[40,40] y) {{ {body} }}", W=low_rank(40, 40, 3))
    _, outcome = factorized(model, rank=3)
    assert not outcome.changed
    assert reason in outcome.skipped[0].reason


def test_splits_stacked_matrices_at_one_rank() -> None:
    stack = np.stack([low_rank(40, 50, 3, seed=seed) for seed in range(2)])
    model = model_of("g (float[5,2,4,40] x) => (float[5,2,4,50] y) { y = MatMul(x, W) }", W=stack)
    result, _ = factorized(model, rank=3)
    assert sorted(tuple(each.dims) for each in result.proto.graph.initializer) == [(2, 3, 50), (2, 40, 3)]
    assert_same(model, result, x=drawn(5, 2, 4, 40))


def test_leaves_what_would_not_shrink() -> None:
    model = model_of("g (float[N,40] x) => (float[N,40] y) { y = MatMul(x, W) }", W=drawn(40, 40))
    result, outcome = factorized(model, ratio=0.5)
    assert "not smaller" in outcome.skipped[0].reason
    assert result.proto.SerializeToString() == model.proto.SerializeToString()


def test_leaves_values_that_are_not_finite() -> None:
    matrix = drawn(40, 40)
    matrix[3, 3] = np.nan
    model = model_of("g (float[N,40] x) => (float[N,40] y) { y = MatMul(x, W) }", W=matrix)
    _, outcome = factorized(model, rank=3)
    assert "not finite" in outcome.skipped[0].reason


def test_follows_a_weight_through_transpose_and_cast() -> None:
    text = "g (float[N,40] x) => (float[N,50] y) { t = Transpose(W) c = Cast<to=1>(t) y = MatMul(x, c) }"
    model = model_of(text, W=low_rank(50, 40, 3, dtype=np.float16))
    result, _ = factorized(model, rank=3)
    assert sorted(operators(result)) == ["Cast", "Cast", "MatMul", "MatMul"]
    assert {each.data_type for each in result.proto.graph.initializer} == {onnx.TensorProto.FLOAT16}
    before, after = (Session(each.to_bytes()).run({"x": drawn(5, 40)})["y"] for each in (model, result))
    np.testing.assert_allclose(after, before, atol=0.02 * np.abs(before).max())  # factors in float16


def test_works_inside_subgraphs() -> None:
    model = model_of(
        """g (bool c, float[N,40] x) => (float[N,50] y) {
          y = If(c) <
            then_branch = t () => (float[N,50] a) { a = MatMul(x, W) },
            else_branch = e () => (float[N,50] b) { V = Constant<value_float=0.0>() b = MatMul(x, V) }>
        }""",
        W=low_rank(40, 50, 3),
    )
    constant = model.proto.graph.node[0].attribute[1].g.node[0].attribute[0]
    values = numpy_helper.from_array(low_rank(40, 50, 2, seed=1))
    constant.CopyFrom(onnx.helper.make_attribute("value", values))
    result, outcome = factorized(model, rank=3)
    assert len(outcome.changed) == 2
    assert_same(model, result, x=drawn(5, 40), c=np.array(True))
    assert_same(model, result, x=drawn(5, 40), c=np.array(False))


def test_works_inside_functions() -> None:
    proto = parser.parse_model("""<ir_version: 8, opset_import: ["" : 17, "f" : 1]>
        g (float[N,40] x) => (float[N,40] y) { y = f.Layer(x) }
        <opset_import: ["" : 17], domain: "f">
        Layer (a) => (b) { W = Constant<value_float=0.0>() b = MatMul(a, W) }""")
    constant = proto.functions[0].node[0].attribute[0]
    constant.CopyFrom(onnx.helper.make_attribute("value", numpy_helper.from_array(low_rank(40, 40, 3))))
    model = load(proto)
    result, outcome = factorized(model, rank=3)
    assert len(outcome.changed) == 1
    assert_same(model, result, x=drawn(5, 40))


def test_rounds_ranks_to_multiples_of_sixteen() -> None:
    text = "g (float[N,100] x) => (float[N,100] y) { y = MatMul(x, W) }"
    model = model_of(text, W=low_rank(100, 100, 17))
    for fields, rank in ({"ratio": 0.25}, 32), ({"energy": 0.9999}, 32), ({"rank": 17}, 17):
        _, outcome = factorized(model, **fields)
        assert outcome.changed[0].details["rank"] == rank


def test_energy_takes_the_least_rank_that_keeps_it() -> None:
    matrix = np.zeros((40, 40), np.float32)
    matrix[range(3), range(3)] = 3, 2, 1  # squared 9, 4, 1 of 14: two values keep 13/14
    model = model_of("g (float[N,40] x) => (float[N,40] y) { y = MatMul(x, W) }", W=matrix)
    for energy, rank in (0.6, 1), (0.9, 2), (0.95, 3):
        _, outcome = factorized(model, energy=energy)
        assert outcome.changed[0].details["rank"] == rank


def test_leaves_excluded_nodes() -> None:
    model = model_of("g (float[N,40] x) => (float[N,40] y) { [first] y = MatMul(x, W) }", W=low_rank(40, 40, 3))
    for context in Context(exclude=("W",)), Context(exclude=("fir*",)), Context(include=frozenset({"V"})):
        assert not factorized(model, context, rank=3)[1].changed


def test_refuses_rank_and_energy_together() -> None:
    with pytest.raises(ParameterError, match="energy"):
        FactorizeLinear(rank=3, energy=0.9)


def test_sites_say_what_each_rank_takes_and_leaves() -> None:
    """Bytes as in the file but for names, multiply-accumulates as they are counted, errors as they come out."""
    model = model_of("g (float[N,96] x) => (float[N,40] y) { y = MatMul(x, W) }", W=drawn(96, 40))
    [site] = FactorizeLinear().sites(open_graph(model), Context()).sites
    assert (site.name, site.costs) == ("W", {Quantity.BYTES: 96 * 40 * 4, Quantity.MACS: 96 * 40})
    ranks = [each.fields["rank"] for each in site.options]
    assert ranks == sorted(ranks, reverse=True) and ranks[0] <= 96 * 40 // (96 + 40)
    for option in site.options:
        graph = open_graph(model)
        outcome = FactorizeLinear().rewrite(graph, {"W": option.fields}, Context())
        result = close_graph(graph)
        assert option.error == pytest.approx(outcome.changed[0].details["relative_error"] ** 2, rel=1e-3)
        counted = count_macs(open_graph(result)).values()
        assert option.costs[Quantity.MACS] == sum(each.count for each in counted if each)
        assert abs(option.costs[Quantity.BYTES] - (result.size_bytes - model.size_bytes + 96 * 40 * 4)) < 100


def test_the_decomposition_that_a_survey_keeps_changes_no_bit() -> None:
    text = "g (float[N,96] x) => (float[N,40] y) { y = MatMul(x, W) }"
    fresh, surveyed = (model_of(text, W=drawn(96, 40)) for _ in range(2))
    FactorizeLinear().sites(open_graph(surveyed), Context())
    assert surveyed.memo and not fresh.memo
    assert factorized(fresh, rank=9)[0].to_bytes() == factorized(surveyed, rank=9)[0].to_bytes()


def test_after_the_deadline_nothing_is_decomposed() -> None:
    model = model_of("g (float[N,40] x) => (float[N,40] y) { y = MatMul(x, W) }", W=low_rank(40, 40, 3))
    survey = FactorizeLinear().sites(open_graph(model), Context(deadline=0.0))
    assert not survey.sites and [each.reason for each in survey.skipped] == ["the time budget was used up"]
    assert not model.memo


# --- factors of few bits ---


@pytest.mark.parametrize(
    ("text", "shape"),
    [
        ("g (float[N,96] x) => (float[N,80] y) { y = MatMul(x, w) }", (96, 80)),
        ("g (float[N,96] x) => (float[N,80] y) { y = Gemm<transB = 1>(x, w) }", (80, 96)),
        ("g (float[N,96,4,4] x) => (float[N,80,4,4] y) { y = Conv(x, w) }", (80, 96, 1, 1)),
        ("g (int64[N] x) => (float[N,80] y) { y = Gather(w, x) }", (96, 80)),
    ],
)
def test_factors_of_few_bits_keep_their_codes_whatever_reads_them(text: str, shape: tuple[int, ...]) -> None:
    values = low_rank(shape[0], shape[1], 6).reshape(shape)
    model = model_of(text, w=values)
    result, outcome = factorized(model, rank=6, bits=6)
    assert "in 6 and 8 bits" in outcome.changed[0].what
    graph = open_graph(result)
    held = [each for each in weights(graph) if each.size > 300]
    assert len(held) == 2 and all(each.encoding is not None for each in held)
    levels = sorted(each.encoding.level_count for each in held if each.encoding is not None)
    assert levels == [2**6, 2**8]
    ids = np.arange(96) % 96
    feeds = {"x": ids if "int64" in text else drawn(5, 96, *shape[2:] and (4, 4))}
    before, after = (Session(each.to_bytes()).run(feeds)["y"] for each in (model, result))
    # Six bits leave an error of a thousandth, squared, eight next to nothing.
    assert np.square(after - before).sum() < 5e-3 * np.square(before).sum()


def test_options_of_few_bits_count_codes_and_what_rounding_adds() -> None:
    model = model_of("g (float[N,96] x) => (float[N,96] y) { y = MatMul(x, w) }", w=drawn(96, 96))
    surveys = [FactorizeLinear(bits=bits).sites(open_graph(model), Context()) for bits in (None, 4)]
    plain, coded = ({each.fields["rank"]: each for each in found.sites[0].options} for found in surveys)
    both = plain.keys() & coded.keys()
    assert both
    for rank in both:
        assert coded[rank].costs[Quantity.BYTES] < 0.4 * plain[rank].costs[Quantity.BYTES]
        assert (coded[rank].error or 0) > (plain[rank].error or 0)


def test_stacked_factors_stay_floats() -> None:
    stack = np.stack([low_rank(64, 64, 4, seed) for seed in range(3)])
    model = model_of("g (float[3,N,64] x) => (float[3,N,64] y) { y = MatMul(x, w) }", w=stack)
    result, outcome = factorized(model, rank=4, bits=3)
    assert outcome.changed and "bits" not in outcome.changed[0].what
    assert_same(model, result, x=drawn(3, 5, 64))


# --- by gradients ---

TWO = "g (float[N,24] x) => (float[N,4] y) { h = MatMul(x, w) y = MatMul(h, v) }"


def seeing_half(outputs: str, folder: Path) -> tuple[Outcome, float]:
    """Factors of a weight of whose outputs only every second one is read; the error of the model's outputs."""
    read = drawn(24, 4) * (np.arange(24) % 2)[:, None].astype(np.float32)
    model = model_of(TWO, w=np.random.default_rng(1).standard_normal((24, 24)).astype(np.float32), v=read)
    inputs = np.random.default_rng(2).standard_normal((64, 24)).astype(np.float32)
    np.savez(folder / "c.npz", x=inputs)
    session = Session(model.to_bytes())
    data = CalibrationData.open(folder / "c.npz", session.inputs, run=session.run)
    context = Context(calibration=data, exclude=("v",))
    result, outcome = factorized(model, context, rank=8, output_weighting=outputs)
    before, after = (Session(each.to_bytes()).run({"x": inputs})["y"] for each in (model, result))
    return outcome, float(np.square(after - before).sum() / np.square(before).sum())


def test_what_nothing_reads_needs_no_rank_by_gradients(tmp_path: Path) -> None:
    told, alike = seeing_half("fisher", tmp_path), seeing_half("alike", tmp_path)
    assert "as gradients weigh it" in told[0].changed[0].what
    # v has rank 4: eight directions of the outputs could hold all that is read, but what is not read counts a little.
    assert told[1] < 0.4 * alike[1]
