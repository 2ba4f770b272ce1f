"""factorize-linear beyond products: 1 x 1 convolutions, embeddings, recurrent inputs; and shares of a whole model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from onnxcomp.calibration import CalibrationData
from onnxcomp.contract import Context, Outcome, Quantity
from onnxcomp.graph.ir.reader import close_graph, open_graph
from onnxcomp.graph.report.macs import count_macs
from onnxcomp.model import Model, load
from onnxcomp.registry import get_pass
from onnxcomp.runtime import Session
from tests.passes.test_factorize_linear import assert_same, drawn, low_rank, model_of, operators

Array = NDArray[Any]
FactorizeLinear = get_pass("factorize-linear")


def factorized(model: Model, context: Context | None = None, **fields: Any) -> tuple[Model, Outcome]:
    graph = open_graph(model)
    outcome = FactorizeLinear(**fields).apply(graph, context or Context())
    result = close_graph(graph)
    onnx.checker.check_model(result.proto, full_check=True)
    return result, outcome


def calibrated(model: Model, folder: Path, **inputs: Array) -> Context:
    np.savez(folder / "inputs.npz", **inputs)
    session = Session(model.to_bytes())
    return Context(calibration=CalibrationData.open(folder / "inputs.npz", session.inputs, run=session.run))


@pytest.mark.parametrize(
    ("said", "spatial"),
    [
        ("", (9, 8)),
        ("strides=[2,3]", (9, 8)),
        ("pads=[1,0,2,1]", (9, 8)),
        ("group=2", (9, 8)),
        ('group=2, strides=[2,2], auto_pad="SAME_UPPER"', (9, 8)),
    ],
)
@pytest.mark.parametrize("biased", [False, True])
def test_splits_pointwise_convolutions(said: str, spatial: tuple[int, int], biased: bool) -> None:
    groups = 2 if "group" in said else 1
    parts = [low_rank(48, 40, 3, seed=seed) for seed in range(groups)]
    weight = np.concatenate(parts)[:, :, None, None]
    held = {"W": weight} | ({"b": drawn(48 * groups)} if biased else {})
    text = f"g (float[N,{40 * groups},9,8] x) => (float[N,C,H,V] y) {{ y = Conv<{said}>(x, {', '.join(held)}) }}"
    model = model_of(text.replace("<>", ""), **held)
    result, _ = factorized(model, rank=3)
    assert operators(result) == ["Conv", "Conv"]
    assert_same(model, result, x=drawn(2, 40 * groups, *spatial))


@pytest.mark.parametrize("ids", [np.array([[1, 5, 99], [0, -1, 7]]), np.array([4, 9])])
def test_splits_tables(ids: Array) -> None:
    dims = ",".join(map(str, ids.shape))
    wide = ",".join([*map(str, ids.shape), "40"])
    model = model_of(f"g (int64[{dims}] i) => (float[{wide}] y) {{ y = Gather(W, i) }}", W=low_rank(100, 40, 3))
    result, outcome = factorized(model, rank=3)
    assert operators(result) == ["Gather", "MatMul"]
    assert outcome.changed[0].name == "W"
    assert_same(model, result, i=ids)


def test_a_table_that_is_a_head_too_stays() -> None:
    text = """g (int64[3] i) => (float[3,100] z) { y = Gather(W, i) t = Transpose<perm=[1,0]>(W) z = MatMul(y, t) }"""
    _, outcome = factorized(model_of(text, W=low_rank(100, 40, 3)), rank=3)
    assert "Gather" in outcome.skipped[0].reason


def recurrent(op: str, gates: int, directions: int) -> Model:
    weight = low_rank(directions * gates * 10, 40, 3).reshape(directions, gates * 10, 40)
    state = drawn(directions, gates * 10, 10) / 4
    way = "bidirectional" if directions == 2 else "forward"
    graph = helper.make_graph(
        [helper.make_node(op, ["x", "W", "R"], ["y"], "cell", hidden_size=10, direction=way)],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["S", "B", 40])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["S", directions, "B", 10])],
        [numpy_helper.from_array(weight / 8, "W"), numpy_helper.from_array(state, "R")],
    )
    return load(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8))


@pytest.mark.parametrize(("op", "gates"), [("LSTM", 4), ("GRU", 3), ("RNN", 1)])
@pytest.mark.parametrize("directions", [1, 2])
def test_moves_the_inner_factor_before_recurrent_nodes(op: str, gates: int, directions: int) -> None:
    model = recurrent(op, gates, directions)
    result, outcome = factorized(model, rank=3)
    assert operators(result) == ["MatMul", op]
    assert [each.name for each in outcome.changed] == ["W"]
    assert any("state" in each.reason for each in outcome.skipped)  # R meets no input
    assert_same(model, result, x=drawn(5, 2, 40))


@pytest.mark.parametrize("kind", ["pointwise", "table", "recurrent", "stack"])
def test_sites_say_what_ranks_take(kind: str) -> None:
    """Bytes as in the file but for names; multiply-accumulates as they are counted."""
    model = {
        "pointwise": lambda: model_of(
            "g (float[1,48,9,8] x) => (float[1,64,9,8] y) { y = Conv(x, W) }", W=drawn(64, 48, 1, 1)
        ),
        "table": lambda: model_of("g (int64[1,7] i) => (float[1,7,40] y) { y = Gather(W, i) }", W=drawn(100, 40)),
        "recurrent": lambda: recurrent("LSTM", 4, 1),
        "stack": lambda: model_of("g (float[2,4,40] x) => (float[2,4,50] y) { y = MatMul(x, W) }", W=drawn(2, 40, 50)),
    }[kind]()
    [site] = FactorizeLinear().sites(open_graph(model), Context()).sites
    before = sum(each.count for each in count_macs(open_graph(model)).values() if each)
    for option in site.options:
        graph = open_graph(model)
        FactorizeLinear().rewrite(graph, {"W": option.fields}, Context())
        result = close_graph(graph)
        after = sum(each.count for each in count_macs(open_graph(result)).values() if each)
        macs = option.costs[Quantity.MACS] - site.costs[Quantity.MACS]
        assert macs == pytest.approx(after - before, rel=1e-6, abs=1e-6)
        size = result.size_bytes - model.size_bytes + site.costs[Quantity.BYTES]
        assert abs(option.costs[Quantity.BYTES] - size) < 120


def test_weighed_factors_lose_less_on_inputs_not_seen(tmp_path: Path) -> None:
    """Inputs of uneven directions and a mean: far better than the plain ones at the same rank, on fresh inputs too."""
    random = np.random.default_rng(0)
    turn = np.linalg.qr(random.standard_normal((40, 40)))[0]

    def inputs(count: int) -> Array:
        return ((random.standard_normal((count, 40)) * 0.8 ** np.arange(40) + 0.5) @ turn).astype(np.float32)

    held = {"W": drawn(40, 50), "b": drawn(50)}
    model = model_of("g (float[N,40] x) => (float[N,50] y) { p = MatMul(x, W) y = Add(p, b) }", **held)
    context = calibrated(model, tmp_path, x=inputs(200))
    fresh = inputs(500)
    wanted = Session(model.to_bytes()).run({"x": fresh})["y"]
    errors = []
    for weighted in (True, False):
        made, _ = factorized(model, context, rank=8, weighted=weighted)
        errors.append(float(np.linalg.norm(Session(made.to_bytes()).run({"x": fresh})["y"] - wanted)))
    assert errors[0] < 0.5 * errors[1]


def test_a_bias_makes_up_for_the_means(tmp_path: Path) -> None:
    held = {"W": drawn(40, 50), "b": drawn(50)}
    model = model_of("g (float[N,40] x) => (float[N,50] y) { y = Gemm(x, W, b) }", **held)
    x = drawn(300, 40) + 3
    made, _ = factorized(model, calibrated(model, tmp_path, x=x), rank=4)
    before, after = (Session(each.to_bytes()).run({"x": x})["y"].mean(axis=0) for each in (model, made))
    np.testing.assert_allclose(after, before, atol=1e-3)


def test_rows_that_are_looked_up_count_more(tmp_path: Path) -> None:
    table = drawn(100, 40)
    model = model_of("g (int64[N,7] i) => (float[N,7,40] y) { y = Gather(W, i) }", W=table)
    ids = np.random.default_rng(0).integers(0, 12, (60, 7))
    context = calibrated(model, tmp_path, i=ids)
    errors = []
    for weighted in (True, False):
        made, _ = factorized(model, context, rank=14, weighted=weighted)
        errors.append(float(np.linalg.norm(Session(made.to_bytes()).run({"i": ids})["y"] - table[ids])))
    assert errors[0] < 0.1 * errors[1]


TWO = "g (float[N,64] x) => (float[N,64] y) { h = MatMul(x, A) r = Relu(h) y = MatMul(r, B) }"


def test_a_share_is_met_with_ranks_where_they_serve() -> None:
    """A is of low rank and B is not: A alone is split."""
    model = model_of(TWO, A=low_rank(64, 64, 4) + 0.01 * drawn(64, 64), B=drawn(64, 64))
    result, outcome = factorized(model, weights=0.75)
    assert [each.name for each in outcome.changed] == ["A"]
    assert outcome.changed[0].details["rank"] >= 4
    kept = sum(int(np.prod(each.dims)) for each in result.proto.graph.initializer)
    assert kept <= 0.75 * 2 * 64 * 64
    assert any("less harm" in each.reason for each in outcome.skipped)


def test_a_share_is_spent_on_what_the_model_minds() -> None:
    """Both alike by themselves, but the divergence sees A only: B pays."""
    model = model_of(TWO, A=drawn(64, 64), B=drawn(64, 64))

    def divergence(candidate: Model) -> float:
        whole = {each.name for each in candidate.proto.graph.initializer}
        return 1e-3 if "A" in whole else 1.0

    _, outcome = factorized(model, Context(divergence=divergence), weights=0.75)
    assert [each.name for each in outcome.changed] == ["B"]


def test_parts_of_a_shared_out_choice_become_what_they_become_together() -> None:
    model = model_of(TWO, A=drawn(64, 64), B=drawn(64, 64))
    rewrite = FactorizeLinear(weights=0.5)
    whole, _ = factorized(model, weights=0.5)
    graph = open_graph(model)
    rewrite.rewrite(graph, {"B": {}}, Context())
    names = {each.name: numpy_helper.to_array(each) for each in whole.proto.graph.initializer}
    part = {each.name: numpy_helper.to_array(each) for each in close_graph(graph).proto.graph.initializer}
    assert "A" in part
    for name in part.keys() - {"A"}:
        np.testing.assert_array_equal(part[name], names[name])


@pytest.mark.parametrize("after", ["cluster-weights", "quantize-weights", "prune-weights", "store-compact"])
def test_factors_take_what_other_passes_do(after: str) -> None:
    model = model_of(TWO, A=low_rank(64, 64, 4), B=low_rank(64, 64, 4))
    made, _ = factorized(model, rank=4)
    graph = open_graph(made)
    outcome = get_pass(after)().apply(graph, Context())
    result = close_graph(graph)
    assert outcome.changed or after == "store-compact"
    assert Session(result.to_bytes()).run({"x": drawn(2, 64)})["y"].shape == (2, 64)


def test_pruned_weights_can_be_factored() -> None:
    model = model_of(TWO, A=drawn(64, 64), B=drawn(64, 64))
    graph = open_graph(model)
    get_pass("prune-weights")().apply(graph, Context())
    _, outcome = factorized(close_graph(graph), rank=4)
    assert [each.name for each in outcome.changed] == ["A", "B"]
