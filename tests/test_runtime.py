"""onnxcomp.runtime: feeds in, outputs out, ONNX Runtime's errors as ours."""

import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import pytest
from onnx import helper

from onnxcomp.errors import TargetError, VerificationError
from onnxcomp.runtime import (
    Load,
    Session,
    available_providers,
    evaluate,
    isolated,
    loads,
    measure_latency,
    measure_load,
    measure_loads,
    profile_nodes,
    profile_operators,
    run_isolated,
)
from onnxcomp.runtime.isolated import read_values, write_values
from onnxcomp.runtime.measure import LONG_RUNS, LONG_S, WARM_UP_RUNS, in_turns
from onnxcomp.runtime.profile import events_in, node_seconds, operator_seconds


def model_bytes(text: str) -> bytes:
    return onnx.parser.parse_model(text).SerializeToString()


ADD = model_bytes(
    '<ir_version: 8, opset_import: ["" : 17]> g (float[N, 2] x) => (float[N, 2] y)'
    " <float[2] b = {1, 2}> { y = Add(x, b) }"
)
CAST = model_bytes(
    '<ir_version: 9, opset_import: ["" : 19]> g (bfloat16[N] x) => (bfloat16[N] y, float8e4m3fn[N] z)'
    " { y = Identity(x) z = Cast<to = 17>(x) }"
)


def test_runs_and_names_outputs() -> None:
    session = Session(ADD)
    assert [(item.name, item.type, item.shape) for item in session.inputs] == [("x", "tensor(float)", ("N", 2))]
    assert session.inputs[0].dtype == np.float32
    result = session.run({"x": np.array([[1, 2], [3, 4]], np.float32)})
    assert result["y"].tolist() == [[2, 4], [4, 6]]


def test_feeds_and_returns_types_that_numpy_lacks() -> None:
    x = np.array([1.5, -2.0, 0.25], ml_dtypes.bfloat16)
    result = Session(CAST).run({"x": x})
    assert result["y"].dtype == ml_dtypes.bfloat16
    assert result["z"].dtype == ml_dtypes.float8_e4m3fn
    assert result["y"].astype(float).tolist() == result["z"].astype(float).tolist() == [1.5, -2.0, 0.25]


def test_feeds_and_returns_sequences() -> None:
    text = (
        '<ir_version: 8, opset_import: ["" : 17]> g (seq(float[N]) x, int64 i)'
        " => (float[N] y, seq(float[N]) s) { y = SequenceAt(x, i) s = SequenceErase(x, i) }"
    )
    session = Session(model_bytes(text))
    assert session.inputs[0].is_sequence
    result = session.run({"x": [np.ones(2, np.float32), np.zeros(3, np.float32)], "i": np.int64(1)})
    assert result["y"].shape == (3,)
    assert [len(item) for item in result["s"]] == [2]


def elsewhere(kind: int, shape: Sequence[int] = (2, 3)) -> bytes:
    """y = w, whose data are said to lie in another file."""
    held = onnx.TensorProto(name="w", dims=shape, data_type=kind, data_location=onnx.TensorProto.EXTERNAL)
    held.external_data.add(key="location", value="memory")
    y = helper.make_tensor_value_info("y", kind, shape)
    graph = helper.make_graph([helper.make_node("Identity", ["w"], ["y"])], "g", [], [y], [held])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8).SerializeToString()


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.float16, ml_dtypes.bfloat16, np.int8, np.uint8, np.int64])
def test_initializers_come_from_memory(dtype: Any) -> None:
    values = np.arange(6).reshape(2, 3).astype(dtype)
    kind = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    given = {"turned": np.ascontiguousarray(values.T).T, "read-only": values.copy(), "moved": moved(values)}
    given["read-only"].flags.writeable = False
    for held in given.values():
        session = Session(elsewhere(kind), initializers={"w": held})
        expected = values.copy()
        del held
        np.testing.assert_array_equal(session.run({})["y"], expected)


def moved(values: np.ndarray) -> np.ndarray:
    """The same, an odd number of bytes from where its type wants it."""
    raw = np.frombuffer(b"." + values.tobytes(), np.uint8)[1:]
    return raw.view(values.dtype).reshape(values.shape)


@pytest.mark.parametrize(
    ("name", "values"),
    [("v", np.zeros((2, 3), np.float32)), ("w", np.zeros((3, 2), np.float32)), ("w", np.zeros((2, 3)))],
)
def test_initializers_that_do_not_fit_are_a_target_error(name: str, values: np.ndarray) -> None:
    with pytest.raises(TargetError, match="cannot load the model"):
        Session(elsewhere(onnx.TensorProto.FLOAT), initializers={name: values})


@pytest.mark.parametrize(
    ("model", "said"),
    [(b"not a model", "protobuf parsing failed"), (Path("/nowhere/m.onnx"), "doesn't exist")],
)
def test_model_that_does_not_load_is_a_target_error_on_one_line(model: bytes | Path, said: str) -> None:
    with pytest.raises(TargetError, match=said) as caught:
        Session(model)
    assert "\n" not in str(caught.value)
    assert not loads(model)


@pytest.mark.parametrize(
    ("feeds", "said"),
    [
        ({}, "missing"),
        ({"x": np.ones((1, 3), np.float32)}, "Got: 3 Expected: 2"),
        ({"x": np.ones((1, 2))}, "Unexpected input data type"),
    ],
)
def test_feeds_that_do_not_fit_are_a_verification_error(feeds: dict[str, object], said: str) -> None:
    with pytest.raises(VerificationError, match=said):
        Session(ADD).run(feeds)


def test_provider_that_is_not_installed_is_named_with_those_that_are() -> None:
    assert "CUDAExecutionProvider" not in available_providers()
    with pytest.raises(TargetError, match=r"CUDAExecutionProvider is not installed.*CPUExecutionProvider"):
        Session(ADD, provider="CUDAExecutionProvider")


def test_stays_silent_when_the_model_is_odd(capfd: pytest.CaptureFixture[str]) -> None:
    text = (
        '<ir_version: 8, opset_import: ["" : 17]> g (float[2] x) => (float[3] y)'
        " <float[1] unused = {1}> { y = Identity(x) }"
    )
    proto = onnx.parser.parse_model(text)
    Session(proto.SerializeToString()).run({"x": np.ones(2, np.float32)})
    assert capfd.readouterr() == ("", "")


def test_evaluates_a_constant_model() -> None:
    text = (
        '<ir_version: 8, opset_import: ["" : 17]> g () => (float[2] y)'
        " <float[2] a = {1, 2}, float[2] b = {3, 4}> { y = Mul(a, b) }"
    )
    assert evaluate(model_bytes(text))["y"].tolist() == [3, 8]


def test_isolated_run_equals_the_run_in_this_process(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    path.write_bytes(ADD)
    batches = [{"x": np.full((n, 2), n, np.float32)} for n in (1, 2)]
    run = run_isolated(path, batches, folder=tmp_path / "job")
    session = Session(ADD)
    for feeds, outputs in zip(batches, run.outputs(), strict=True):
        np.testing.assert_array_equal(outputs["y"], session.run(feeds)["y"])
    assert run.load.peak_bytes > 0


DECODED = model_bytes(
    '<ir_version: 8, opset_import: ["" : 17]> g (float[N, 2] x) => (float[N, 2] y)'
    " <uint8[2, 2] codes = {1, 2, 3, 4}, float scale = {0.5}>"
    " { wide = Cast<to = 1>(codes) w = Mul(wide, scale) y = MatMul(x, w) }"
)


@pytest.mark.parametrize("frugal", [False, True])
def test_a_frugal_session_decodes_weights_in_each_run(tmp_path: Path, frugal: bool) -> None:
    session = Session(DECODED, frugal=frugal, profile=tmp_path)
    y = session.run({"x": np.array([[2, 4]], np.float32)})["y"]
    assert y.tolist() == [[7, 10]]
    ran = {event["args"]["op_name"] for event in json.loads(session.end_profile().read_text())
           if "op_name" in event.get("args", {})}  # fmt: skip
    assert ("Cast" in ran) == frugal


def test_isolated_run_hands_errors_back(tmp_path: Path) -> None:
    with pytest.raises(TargetError, match="Protobuf"):
        run_isolated(b"nonsense", [], folder=tmp_path / "a")
    with pytest.raises(VerificationError, match="Expected: 2"):
        run_isolated(ADD, [{"x": np.ones((1, 3), np.float32)}], folder=tmp_path / "b")


def test_isolated_memory_is_the_childs_own(tmp_path: Path) -> None:
    held = np.ones(50_000_000, np.float32)
    assert held.nbytes > 100e6
    assert measure_load(ADD, runs=1).peak_bytes < 100e6


def test_loads_take_turns_and_the_shortest_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    took = {"a": iter([0.3, 0.1, 0.2]), "b": iter([0.05, 0.4, 0.05])}
    turns: list[str] = []

    def run(model: Any, batches: Any, **_: Any) -> Any:
        turns.append(model)
        return SimpleNamespace(load=Load(next(took[model]), 10 * len(turns)))

    monkeypatch.setattr(isolated, "run_isolated", run)
    found = measure_loads({"a": "a", "b": "b"}, runs=3)
    assert turns == ["a", "b", "a", "b", "a", "b"]
    assert found["a"] == Load(0.1, 30, pytest.approx(0.1)) and found["b"] == Load(0.05, 40, 0.0)
    assert found["a"].noise == pytest.approx(1.0)


def test_models_that_load_slowly_are_not_loaded_again(monkeypatch: pytest.MonkeyPatch) -> None:
    run = SimpleNamespace(load=Load(1.5, 1))
    monkeypatch.setattr(isolated, "run_isolated", lambda *_, **__: turns.append(1) or run)
    turns: list[int] = []
    measure_loads({"a": b"", "b": b""}, runs=3)
    assert len(turns) == 2


def test_values_survive_the_folder(tmp_path: Path) -> None:
    values = {
        "a": np.arange(6, dtype=np.int64).reshape(2, 3),
        "b": np.array([1.5], ml_dtypes.bfloat16),
        "s": np.array([["x", "y"]], object),
        "q": [np.zeros((0, 2), np.float32), np.ones(2, bool)],
        "m": [{1: 0.5}],
        "none": None,
        "scalar": np.array(3, np.float32),
    }
    write_values(tmp_path / "v", values)
    back = read_values(tmp_path / "v")
    assert back["a"].tolist() == [[0, 1, 2], [3, 4, 5]]
    assert back["b"].dtype == ml_dtypes.bfloat16
    assert back["s"].tolist() == [["x", "y"]]
    assert [item.shape for item in back["q"]] == [(0, 2), (2,)]
    assert back["m"] == [{1: 0.5}]
    assert back["none"] is None
    assert back["scalar"].shape == () and back["scalar"] == 3


def test_latency_is_measured_for_each_model() -> None:
    took = measure_latency({"a": ADD, "b": ADD}, {"x": np.ones((1, 2), np.float32)}, runs=5)
    assert set(took) == {"a", "b"}
    assert all(0 < item.best_ms <= item.median_ms and item.runs == 5 for item in took.values())


def test_models_take_turns_for_as_long_as_asked() -> None:
    took = measure_latency({"a": ADD, "b": ADD}, {"x": np.zeros((1, 2), np.float32)}, runs=3, seconds=0.05)
    assert took["a"].runs == took["b"].runs > 3
    assert measure_latency({"a": ADD}, {"x": np.zeros((1, 2), np.float32)}, runs=3)["a"].runs == 3


class Slow:
    """A session whose runs move a clock by some seconds."""

    def __init__(self, seconds: float) -> None:
        self.seconds, self.now, self.runs = seconds, 0.0, 0

    def run(self, feeds: object = None) -> None:
        self.runs += 1
        self.now += self.seconds

    def prepared(self, feeds: object) -> Callable[[], None]:
        return self.run


@pytest.mark.parametrize(
    ("seconds", "counted", "whole"),
    [
        (LONG_S / 2, 7, WARM_UP_RUNS + 2 * 7),
        (LONG_S * 2, LONG_RUNS, 1 + LONG_RUNS),  # each fills the caches for itself
    ],
)
def test_long_runs_are_repeated_less(seconds: float, counted: int, whole: int) -> None:
    slow = Slow(seconds)
    took = in_turns({"a": slow}, {}, runs=7, warm=True, clock=lambda: slow.now)["a"]  # type: ignore[dict-item]
    assert (took.runs, slow.runs) == (counted, whole) and took.median_ms == pytest.approx(1e3 * seconds)


def test_profile_names_the_nodes_that_ran() -> None:
    named = onnx.load_from_string(ADD)
    named.graph.node[0].name = "sum"
    found = profile_nodes(named.SerializeToString(), {"x": np.zeros((1, 2), np.float32)}, runs=3)
    assert set(found) == {"sum"} and found["sum"] >= 0


def test_a_profile_by_operator_adds_up_the_nodes_of_each() -> None:
    found = profile_operators(ADD, {"x": np.zeros((1, 2), np.float32)}, runs=3)
    assert list(found) == ["Add"]
    events = [
        {"cat": "Node", "name": f"{name}_kernel_time", "dur": took, "args": {"op_name": operator}}
        for name, operator, took in (("a", "Conv", 30), ("b", "Relu", 50), ("c", "Conv", 25))
    ]
    found = operator_seconds(events, 1)
    assert list(found) == ["Conv", "Relu"], "most first"
    assert found == pytest.approx({"Conv": 55e-6, "Relu": 50e-6})


def test_seconds_of_a_node_are_the_median_of_its_runs() -> None:
    events = [
        {"cat": "Node", "name": "conv_kernel_time", "dur": 30},
        {"cat": "Node", "name": "conv_kernel_time", "dur": 10},
        {"cat": "Node", "name": "conv_kernel_time", "dur": 900},
        {"cat": "Node", "name": "conv_fence_before", "dur": 7},
        {"cat": "Session", "name": "model_run", "dur": 99},
        *[{"cat": "Node", "name": "inner_kernel_time", "dur": 4}] * 6,  # twice a run, in a loop
    ]
    assert node_seconds(events, 3) == pytest.approx({"conv": 30e-6, "inner": 8e-6})


def test_prepared_runs_are_runs() -> None:
    add, x = Session(ADD), np.array([[1, 2]], np.float32)
    assert np.array_equal(add.prepared({"x": x})()[0], [[2, 4]])  # type: ignore[index]
    cast = Session(CAST)
    assert set(cast.prepared({"x": np.zeros(1, ml_dtypes.bfloat16)})()) == {"y", "z"}  # type: ignore[call-overload]


def test_a_run_ends_at_its_limit_of_seconds() -> None:
    loop = onnx.parser.parse_model("""
        <ir_version: 8, opset_import: ["" : 17]>
        endless (float x, int64 trips, bool go) => (float y) {
          y = Loop (trips, go, x) <body = turn (int64 i, bool on, float a) => (bool again, float b) {
            again = Identity (on)
            b = Add (a, a)
          }>
        }
    """)
    session = Session(loop.SerializeToString())
    feeds = {"x": np.float32(1), "go": np.array(True)}
    assert session.run({**feeds, "trips": np.int64(3)}, limit_s=60)["y"] == 8
    started = time.monotonic()
    with pytest.raises(VerificationError, match=r"took more than 0\.2 s"):
        session.run({**feeds, "trips": np.int64(2**62)}, limit_s=0.2)
    assert time.monotonic() - started < 30


def test_events_of_a_profile_whose_names_are_written_as_they_are() -> None:
    """As ONNX Runtime 1.24 writes them: a quote breaks one line, a control character none."""
    lines = ['{"cat":"Node","name":"a\x1b[31m_kernel_time","dur":3}', '{"cat":"Node","name":"b"c_kernel_time","dur":4}',
             '{"cat":"Node","name":"d_kernel_time","dur":5}']  # fmt: skip
    text = "[\n" + ",\n".join(lines) + "\n]\n"
    assert [each["name"] for each in events_in(text)] == ["a\x1b[31m_kernel_time", "d_kernel_time"]
    whole = "[\n" + ",\n".join(lines[::2]) + "\n]\n"
    assert [each["dur"] for each in events_in(whole)] == [3, 5]
