"""align-channels: what is filled with zeros, that nothing changes, and what is left alone."""

from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from onnxcomp.contract import Context, Outcome
from onnxcomp.graph.ir.reader import close_graph, open_graph
from onnxcomp.model import Model
from onnxcomp.registry import get_pass
from onnxcomp.runtime import Session, optimized
from tests.passes.statically import drawn, model_of

AlignChannels = get_pass("align-channels")
WEIGHTS = {
    "W": drawn(10, 3, 1, 1), "b": drawn(10), "V": drawn(10, 1, 3, 3, seed=8), "c": drawn(10, seed=9),
    "U": drawn(4, 10, 1, 1, seed=10), "u": drawn(4, seed=11),
}  # fmt: skip
BLOCK = "e = Conv(x, W, b) h = HardSwish(e) [deep] d = Conv<group=10, pads=[1,1,1,1]>(h, V, c) {} y = Conv(g, U, u)"


def aligned(model: Model, context: dict[str, Any] | None = None, **fields: Any) -> tuple[Model, Outcome]:
    graph = open_graph(model)
    outcome = AlignChannels(**fields).apply(graph, Context(**(context or {})))
    result = close_graph(graph)
    onnx.checker.check_model(result.proto, full_check=True)
    return result, outcome


def block(between: str, outputs: str = "float[N,4,6,6] y", **more: Any) -> Model:
    used = {**WEIGHTS, **more}
    text = f"g (float[N,3,6,6] x) => ({outputs}) {{ {BLOCK.format(between)} }}"
    return model_of(text, **{name: each for name, each in used.items() if f"{name}" in text})


def assert_same(model: Model, result: Model) -> None:
    feeds = {"x": drawn(2, 3, 6, 6)}
    before, after = (Session(each.to_bytes()).run(feeds) for each in (model, result))
    for name, value in before.items():
        np.testing.assert_allclose(after[name], value, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    "between",
    [
        "g = Relu(d)",
        "six = Constant<value_float=6.0>() q = Div(d, six) g = Tanh(q)",
        "k = Mul(d, s) g = Add(m, k)",
        "p = GlobalAveragePool(d) t = Conv(p, D, c) i = HardSigmoid(t) g = Mul(d, i)",
        "g = Add(d, h)",
    ],
)
def test_channels_become_a_multiple_and_nothing_changes(between: str) -> None:
    more = {"s": drawn(10, 1, 1, seed=3), "m": drawn(1, 10, 1, 1, seed=4), "D": drawn(10, 10, 1, 1, seed=5)}
    model = block(
        between, **{name: each for name, each in more.items() if f"{name})" in between or f"{name}," in between}
    )
    result, outcome = aligned(model)
    assert [(each.name, each.what) for each in outcome.changed] == [("deep", "10 channels become 16")]
    shapes = {each.name.rstrip("_1"): each.dims for each in result.proto.graph.initializer}
    assert shapes["W"] == [16, 3, 1, 1] and shapes["V"] == [16, 1, 3, 3] and shapes["U"] == [4, 16, 1, 1]
    deep = next(each for each in result.proto.graph.node if each.name == "deep")
    assert [each.i for each in deep.attribute if each.name == "group"] == [16]
    assert_same(model, result)


def test_branches_that_are_added_are_filled_together() -> None:
    text = """g (float[N,3,6,6] x) => (float[N,4,6,6] y) {
        e = Conv(x, W, b) [one] d = Conv<group=10, pads=[1,1,1,1]>(e, V, c) f = Conv(x, X)
        [two] k = Conv<group=10, pads=[1,1,1,1]>(f, Z) h = Add(d, k) y = Conv(h, U, u) }"""
    model = model_of(text, **WEIGHTS, X=drawn(10, 3, 1, 1, seed=2), Z=drawn(10, 1, 3, 3, seed=3))
    result, outcome = aligned(model)
    assert [(each.name, each.what) for each in outcome.changed] == [
        ("one", "10 channels become 16"), ("two", "10 channels become 16"),
    ]  # fmt: skip
    assert_same(model, result)


def test_new_rows_and_columns_are_zeros() -> None:
    result, _ = aligned(block("g = Relu(d)"))
    arrays = {each.name: numpy_helper.to_array(each) for each in result.proto.graph.initializer}
    nodes = {each.output[0]: each for each in result.proto.graph.node}
    assert not arrays[nodes["e"].input[1]][10:].any() and not arrays[nodes["e"].input[2]][10:].any()
    assert not arrays[nodes["y"].input[1]][:, 10:].any()


@pytest.mark.parametrize(
    ("between", "outputs"),
    [
        ("g = Relu(d)", "float[N,4,6,6] y, float[N,10,6,6] d"),
        ("g = Softmax<axis=1>(d)", "float[N,4,6,6] y"),
        ("one = Constant<value_ints=[1]>() r = ReduceMax<keepdims=1>(d) g = Mul(d, r)", "float[N,4,6,6] y"),
        ("g = Add(d, x10)", "float[N,4,6,6] y"),
    ],
)
def test_channels_that_something_else_reads_stay(between: str, outputs: str) -> None:
    more = {"x10": drawn(1, 1, 6, 6)} if "x10" in between else {}
    _, outcome = aligned(block(between, outputs, **more))
    assert not outcome.changed


def test_shared_weights_multiples_and_few_channels_stay() -> None:
    shared = "d2 = Conv<group=10, pads=[1,1,1,1]>(d, V, c) g = Relu(d2)"
    assert not aligned(block(shared))[1].changed
    assert not aligned(block("g = Relu(d)"), multiple=10)[1].changed
    assert not aligned(block("g = Relu(d)"), multiple=32)[1].changed


def test_excluded_families_stay() -> None:
    for context in {"exclude": ("deep",)}, {"exclude": ("U",)}, {"include": frozenset({"other"})}:
        _, outcome = aligned(block("g = Relu(d)"), context)
        assert not outcome.changed and outcome.skipped[0].reason == "excluded"


def test_branches_are_aligned_on_their_own() -> None:
    model = model_of(
        """g (float[N,3,6,6] x, bool k) => (float[N,4,6,6] y) { y = If(k) <
            then_branch = t () => (float[N,4,6,6] a) {
                e = Conv(x, W, b) [deep] d = Conv<group=10, pads=[1,1,1,1]>(e, V, c) a = Conv(d, U, u) },
            else_branch = f () => (float[N,4,6,6] z) { z = Conv(x, Z) }> }""",
        **WEIGHTS, Z=drawn(4, 3, 1, 1),
    )  # fmt: skip
    result, outcome = aligned(model)
    assert [each.name for each in outcome.changed] == ["y/then_branch/deep"]
    feeds = {"x": drawn(2, 3, 6, 6), "k": np.array(True)}
    before, after = (Session(each.to_bytes()).run(feeds)["y"] for each in (model, result))
    np.testing.assert_allclose(after, before, rtol=1e-5, atol=1e-5)
    assert optimized(result.to_bytes()).graph.node
