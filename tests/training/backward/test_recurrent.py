"""Recurrent operators and bodies: gradients held to finite differences, with shapes known and open."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from onnx import ModelProto, numpy_helper, parser

from onnxcomp.model import load
from onnxcomp.training.backward.engine import BackwardEngine
from tests.training.backward.drawn import Array, normal
from tests.training.backward.finite_differences import check_model, check_rule

STEPS, BATCH, WIDTH, HIDDEN = 3, 2, 4, 5
GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}
LENGTHS = np.array([3, 2], np.int32)


def check_recurrent(op: str, directions: int, beside: list[Array | None], **attrs: Any) -> None:
    """The reference is ONNX Runtime's own operator; the kernels' shapes are known."""
    rows = GATES[op] * HIDDEN
    weights = [normal(directions, rows, WIDTH), normal(directions, rows, HIDDEN), normal(directions, 2 * rows)]
    outputs = 3 if op == "LSTM" else 2
    check_rule(
        op,
        [normal(STEPS, BATCH, WIDTH), *weights, *beside],
        outputs=outputs,
        known=[1, 2],
        by_runtime=1e-2,
        tolerance=1e-2,
        hidden_size=HIDDEN,
        **attrs,
    )


@pytest.mark.parametrize("op", ["LSTM", "GRU", "RNN"])
@pytest.mark.parametrize(("direction", "count"), [("reverse", 1), ("bidirectional", 2)])
def test_directions(op: str, direction: str, count: int) -> None:
    check_recurrent(op, count, [], direction=direction)


def test_gru_that_resets_after_the_product() -> None:
    check_recurrent("GRU", 1, [], linear_before_reset=1)


def test_lstm_with_states_and_peepholes() -> None:
    check_recurrent("LSTM", 1, [None, normal(1, BATCH, HIDDEN), normal(1, BATCH, HIDDEN), normal(1, 3 * HIDDEN)])


@pytest.mark.parametrize(("op", "direction", "count"), [("LSTM", "bidirectional", 2), ("GRU", "reverse", 1)])
def test_samples_of_unequal_lengths(op: str, direction: str, count: int) -> None:
    check_recurrent(op, count, [LENGTHS], direction=direction)


def test_activations_that_take_numbers_are_refused() -> None:
    held = {"w": normal(1, HIDDEN, WIDTH), "r": normal(1, HIDDEN, HIDDEN)}
    model = written(
        """g (float[T,B,4] x) => (float loss) {
            y, last = RNN<hidden_size=5, activations=["Affine"]>(x, w, r)  loss = ReduceSum<keepdims=0>(last) }""",
        held,
    )
    assert set(BackwardEngine.unsupported(load(model), "loss", ["w"])) == {"RNN"}


def written(text: str, values: dict[str, Array]) -> ModelProto:
    proto = parser.parse_model(f'<ir_version: 10, opset_import: ["": 18]> {text}')
    proto.graph.initializer.extend(numpy_helper.from_array(each, name) for name, each in values.items())
    return proto


def test_a_scan_over_states_elements_and_what_its_body_reads_from_outside() -> None:
    values = {"w": normal(2), "v": normal(2), "u": normal(2)}
    model = written(
        """g (float[T,2] x, float[2] start) => (float loss) {
            scaled = Mul(x, u)
            last, shown = Scan<num_scan_inputs=1, scan_input_directions=[1], body = turn (float[2] h, float[2] e)
                => (float[2] next, float[2] y) { a = Mul(h, w) s = Add(a, e) next = Tanh(s) y = Mul(next, v) }
            >(start, scaled)
            a = ReduceSum<keepdims=0>(last)  q = Mul(shown, shown)  b = ReduceSum<keepdims=0>(q)  loss = Add(a, b) }""",
        values,
    )
    feeds = {"x": normal(4, 2), "start": normal(2)}
    check_model(model, values, feeds, by_runtime=1e-2, tolerance=1e-2)  # onnx scans forward only


@pytest.mark.parametrize("condition", [True, False])
def test_branches_within_branches(condition: bool) -> None:
    values = {"w": normal(3, 3), "v": normal(3), "u": normal(3)}
    model = written(
        """g (float[N,3] x, bool c) => (float loss) {
            a = MatMul(x, w)
            b = If (c) <
                then_branch = one () => (float[N,3] o) { p = Mul(a, v)  o = Tanh(p) },
                else_branch = other () => (float[N,3] o) {
                    k = Constant<value = float {2.0}>()  q = Mul(a, k)
                    r = If (c) <then_branch = three () => (float[N,3] s) { s = Identity(q) },
                                else_branch = four () => (float[N,3] s) { s = Mul(q, u) }>
                    o = Sigmoid(r) }>
            z = Mul(b, b)  loss = ReduceSum<keepdims=0>(z) }""",
        values,
    )
    found = check_model(model, values, {"x": normal(4, 3), "c": np.array(condition)})
    assert bool(found["v"].any()) == condition
    assert bool(found["u"].any()) != condition
