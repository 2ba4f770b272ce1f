"""observe inside If, Loop and Scan bodies, against the bodies run by hand in numpy."""

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, parser

from onnxcomp.calibration import CalibrationData
from onnxcomp.calibration.statistics.observe import Observation, observe
from onnxcomp.calibration.statistics.subgraph_sketches import SAMPLES
from onnxcomp.graph.ir.reader import open_graph
from onnxcomp.model import load
from onnxcomp.runtime import Session
from onnxcomp.testing.applying import calibration_of
from onnxcomp.testing.models.feeding import feeds_for
from tests.graphs import draw_models

Array = np.ndarray[Any, Any]

IF = """<ir_version: 8, opset_import: ["" : %d]>
    g (float[N,4] x, bool c) => (float[N,4] y) {
      y = If (c) <
        then_branch = yes () => (float[A,B] t) { a = Neg(x) t = Relu(a) },
        else_branch = no () => (float[A,B] e) { b = Add(x, x) e = Identity(b) }
      > }"""

LOOP = """<ir_version: 8, opset_import: ["" : %d]>
    g (float[N,4] x, int64 trips) => (float[N,4] y) {
      yes = Constant<value = bool {1}>()
      y = Loop (trips, yes, x) <
        body = step (int64 i, bool go, float[A,B] s) => (bool on, float[A,B] after) {
          on = Identity(go) f = Cast<to=1>(i) m = Add(s, f) after = Add(m, x) }
      > }"""

NESTED = """<ir_version: 8, opset_import: ["" : %d]>
    g (float[N,4] x, int64 trips, int64 more) => (float[N,4] y) {
      yes = Constant<value = bool {1}>()
      one = Constant<value = int64 {1}>()
      y = Loop (trips, yes, x) <
        body = outer (int64 i, bool go, float[A,B] s) => (bool on, float[A,B] after) {
          on = Identity(go)
          late = Greater(i, one)
          after = If (late) <
            then_branch = yes_ () => (float[A,B] t) {
              t = Loop (more, go, s) <
                body = inner (int64 j, bool g2, float[A,B] u) => (bool o2, float[A,B] v) {
                  o2 = Identity(g2) w = Add(u, x) v = Add(w, x) }
              > },
            else_branch = no_ () => (float[A,B] e) { e = Add(s, x) }
          > }
      > }"""

SCAN = """<ir_version: 8, opset_import: ["" : %d]>
    g (float[T,4] x, float[4] start) => (float[4] last, float[T,4] y) {
      last, y = Scan <num_scan_inputs = 1,
        body = step (float[A] s, float[A] piece) => (float[A] after, float[A] shown) {
          after = Add(s, piece) shown = Neg(after) }> (start, x) }"""


def seen(text: str, keys: list[str], **feeds: Array) -> dict[str, Observation]:
    return seen_in(parser.parse_model(text), keys, **feeds)


def seen_in(proto: onnx.ModelProto, keys: list[str], **feeds: Array) -> dict[str, Observation]:
    """One batch of feeds, cut nowhere."""
    data = calibration_of(proto, feeds).first(1)
    return dict(observe(load(proto), keys, data))


def assert_holds(found: Observation, *parts: Array) -> None:
    """The observation is that of these values: ends to the bit, quantiles as the sample allows."""
    values = np.concatenate([np.ravel(each) for each in parts])
    assert found.fault is None
    assert found.dtypes == {"float32"}
    assert (found.histogram.low, found.histogram.high) == (values.min(), values.max())
    assert found.histogram.count == values.size
    assert found.ranks == {each.ndim for each in parts}
    spread = float(values.max() - values.min())
    for share in (0.1, 0.3, 0.5, 0.7, 0.9):
        low, high = (float(np.quantile(values, min(1, max(0, share + way)))) for way in (-0.04, 0.04))
        assert low - 0.002 * spread <= found.histogram.quantile(share) <= high + 0.002 * spread


def drawn(*shape: int) -> Array:
    return np.random.default_rng(0).standard_normal(shape).astype(np.float32)


@pytest.mark.parametrize("opset", [7, 10, 11, 13, 18, 21])
@pytest.mark.parametrize("taken", [True, False])
def test_the_branch_that_ran_shows_its_tensors_and_the_other_none(opset: int, taken: bool) -> None:
    x = drawn(300, 4)
    found = seen(IF % opset, ["y/then_branch/a", "y/else_branch/b", "y"], x=x, c=np.array(taken))
    ran, idle = ("y/then_branch/a", "y/else_branch/b") if taken else ("y/else_branch/b", "y/then_branch/a")
    assert_holds(found[ran], -x if taken else x + x)
    assert "no values" in (found[idle].fault or "") and found[idle].rank is None
    assert found["y"].histogram.count == x.size


@pytest.mark.parametrize("opset", [7, 11, 13, 17, 21, 23])
def test_a_loop_shows_all_its_iterations(opset: int) -> None:
    x, trips = drawn(50, 4), 9
    found = seen(LOOP % opset, ["y/body/m", "y/body/s"], x=x, trips=np.int64(trips))
    state, sums, states = x, [], []
    for i in range(trips):
        states.append(state)
        sums.append(state + np.float32(i))
        state = sums[-1] + x
    assert_holds(found["y/body/m"], *sums)
    assert_holds(found["y/body/s"], *states)


def test_a_loop_that_never_runs_shows_nothing() -> None:
    found = seen(LOOP % 17, ["y/body/m"], x=drawn(5, 4), trips=np.int64(0))
    assert "no values" in (found["y/body/m"].fault or "")


@pytest.mark.parametrize("opset", [9, 13, 21])
def test_loops_and_branches_inside_each_other(opset: int) -> None:
    x, trips, more = drawn(40, 4), 6, 3
    key = "y/body/after/then_branch/t/body/w"
    found = seen(NESTED % opset, [key, "y/body/s"], x=x, trips=np.int64(trips), more=np.int64(more))
    state, shown, states = x, [], []
    for i in range(trips):
        states.append(state)
        if i <= 1:
            state = state + x
            continue
        for _ in range(more):
            shown.append(state + x)
            state = shown[-1] + x
    assert_holds(found[key], *shown)
    assert_holds(found["y/body/s"], *states)


@pytest.mark.parametrize("opset", [9, 11, 16, 23])
def test_a_scan_shows_all_its_steps(opset: int) -> None:
    x, start = drawn(200, 4), drawn(4)
    found = seen(SCAN % opset, ["last/body/after", "last/body/piece"], x=x, start=start)
    states = [start]
    for piece in x:
        states.append(states[-1] + piece)
    assert_holds(found["last/body/after"], *states[1:])
    assert_holds(found["last/body/piece"], *x)


def test_a_scan_over_batches_says_that_it_shows_nothing() -> None:
    body = helper.make_graph(
        [helper.make_node("Add", ["s", "p"], ["after"]), helper.make_node("Identity", ["after"], ["shown"])], "step",
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, [4]) for name in ("s", "p")],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, [4]) for name in ("after", "shown")],
    )  # fmt: skip
    node = helper.make_node("Scan", ["", "start", "x"], ["last", "y"], body=body, num_scan_inputs=1)
    infos = {"start": [1, 4], "x": [1, 5, 4], "last": [1, 4], "y": [1, 5, 4]}
    made = {name: helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in infos.items()}
    graph = helper.make_graph([node], "g", [made["start"], made["x"]], [made["last"], made["y"]])
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 8)], ir_version=4)
    found = seen_in(proto, ["last/body/after"], x=drawn(1, 5, 4), start=drawn(1, 4))
    assert "before opset 9" in (found["last/body/after"].fault or "")


@pytest.mark.parametrize(
    ("make", "fault"),
    [
        ("Cast<to=7>", "int64"), ("Cast<to=9>", "bool"), ("Cast<to=11>", "float64"), ("Cast<to=10>", "float16"),
        ("Cast<to=8>", ""), ("Log", "not finite"), ("SequenceConstruct", ""),
    ],
)  # fmt: skip
def test_what_has_no_range_in_a_body_says_why(make: str, fault: str) -> None:
    text = """<ir_version: 8, opset_import: ["" : 17]>
        g (float[N,4] x, bool c) => (float[N,4] y) {
          y = If (c) <
            then_branch = yes () => (float[A,B] t) { z = %s(x) t = Relu(x) },
            else_branch = no () => (float[A,B] e) { e = Identity(x) }
          > }"""
    found = seen(text % make, ["y/then_branch/z"], x=drawn(30, 4), c=np.array(True))
    assert fault in (found["y/then_branch/z"].fault or "nothing")
    assert found["y/then_branch/z"].fault is not None


@pytest.mark.parametrize("shape", [(0, 4), (1, 4), (3, 4)])
def test_empty_and_small_tensors(shape: tuple[int, ...]) -> None:
    x = drawn(*shape)
    found = seen(IF % 17, ["y/then_branch/a"], x=x, c=np.array(True))["y/then_branch/a"]
    assert found.histogram.count == x.size
    if x.size:
        assert (found.histogram.low, found.histogram.high) == (-x.max(), -x.min())
    else:
        assert "no values" in (found.fault or "")


def test_channels_last_of_any_length_are_all_drawn_from() -> None:
    values = np.repeat(np.float32([[0, 1, 2, 3]]), 4 * SAMPLES, axis=0)
    found = seen(IF % 17, ["y/then_branch/a"], x=values, c=np.array(True))["y/then_branch/a"].histogram
    inside = found.counts[found.counts > 0]
    assert len(inside) == 4 and inside == pytest.approx(values.size / 4, rel=0.1)


def test_functions_and_unknown_names_say_why() -> None:
    text = """<ir_version: 8, opset_import: ["" : 17, "local" : 1]>
        g (float[N,4] x) => (float[N,4] y) { y = local.f(x) }
        <opset_import: ["" : 17], domain: "local"> f (a) => (b) { h = Neg(a) b = Relu(h) }"""
    found = seen(text, ["function local:f/h", "nowhere"], x=drawn(3, 4))
    assert "inline-functions" in (found["function local:f/h"].fault or "")
    assert "not in the model" in (found["nowhere"].fault or "")


def test_every_batch_counts(tmp_path: Path) -> None:
    proto = parser.parse_model(LOOP % 17)
    x = drawn(100, 4)
    folder = tmp_path / "data"
    folder.mkdir()
    for i in range(3):
        np.savez(folder / f"{i}.npz", x=x[i : i + 1], trips=np.int64(i))
    data = CalibrationData.open(folder, Session(proto.SerializeToString()).inputs)
    found = observe(load(proto), ["y/body/s"], data)["y/body/s"].histogram
    parts = [x[1:2], x[2:3], x[2:3] * 2]
    assert found.count == 12
    assert (found.low, found.high) == (np.min(parts), np.max(parts))


def test_whatever_stands_in_the_bodies_of_drawn_models_is_seen_or_says_why() -> None:
    seen_keys = 0
    for proto in draw_models(60, seed=3):
        graph = open_graph(load(proto))
        bodies = [each for each in graph.scopes if each.kind == "subgraph"]
        keys = [
            scope.key(out.name) for scope in bodies for node in scope.graph.nodes for out in node.outputs if out.name
        ]
        for key, found in seen_in(proto, keys, **feeds_for(proto)).items():
            assert "cannot be watched" not in (found.fault or ""), (key, found.fault)
            assert "known type" not in (found.fault or ""), key
            seen_keys += found.fault is None
    assert seen_keys > 20
