"""Entries: what enters the last selecting or rounding operator on the way to an output, in every form of a model."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import numpy_helper, parser

from onnxcomp.calibration import CalibrationData
from onnxcomp.contract import Context
from onnxcomp.model import Model, load
from onnxcomp.pipeline.apply import apply_pass
from onnxcomp.registry import get_pass
from onnxcomp.runtime import Session
from onnxcomp.verify.reading.entries import MOST_ENTRIES, expose, find_entries, numbers_not_labels, varies_in_length

RNG = np.random.default_rng(0)
WEIGHTS = {
    "w": RNG.standard_normal((16, 16)).astype(np.float32),
    "v": RNG.standard_normal((16, 16)).astype(np.float32),
    "one": np.float32(1),
    "half": np.float32(0.5),
    "loud": np.float32(20_000),
    "most": np.int64([5]),
    "first": np.int64([0]),
    "front": np.int64([0, 2]),
    "boxed": np.int64([-1, 4, 4]),
    "scored": np.int64([-1, 4, 4]),
    "over": np.float32([0.5]),
}


def model_of(body: str, outputs: str, x: str = "float[N,16] x", functions: str = "", opset: int = 17) -> Model:
    text = f'<ir_version: 8, opset_import: ["" : {opset}, "own" : 1]> g ({x}) => ({outputs}) {{ {body} }} {functions}'
    proto = parser.parse_model(text)
    proto.graph.initializer.extend(
        numpy_helper.from_array(np.asarray(values), name) for name, values in WEIGHTS.items() if name in body
    )
    return load(proto)


def entering(model: Model) -> dict[str, str]:
    return {each.tensor: each.operator for each in find_entries(model) if each.is_direct}


CLASSES = "h = MatMul(x, w) r = Relu(h) z = MatMul(r, v) y = ArgMax<axis = 1>(z)"
DETECTIONS = """h = MatMul(x, w) r = Relu(h) a = MatMul(r, v) b = Reshape(a, boxed) c = MatMul(r, w) d = Sigmoid(c)
    s = Reshape(d, scored) idx = NonMaxSuppression(b, s, most, over, over) rows = Gather<axis = 1>(idx, front)
    boxes = GatherND(b, rows) scores = GatherND(s, idx)"""
SOUND = "h = MatMul(x, w) r = Tanh(h) l = Mul(r, loud) y = Cast<to = 5>(l)"
BEST = "h = MatMul(x, w) r = Relu(h) z = MatMul(r, v) y, i = TopK<axis = 1>(z, most)"
FOUND = "h = MatMul(x, w) z = Sigmoid(h) g = Greater(z, half) y = NonZero(g)"
KINDS: dict[str, tuple[str, str, dict[str, str]]] = {
    "labels": (CLASSES, "int64[N,1] y", {"z": "ArgMax"}),
    "detections": (
        DETECTIONS,
        "int64[K,3] idx, float[K,4] boxes, float[K] scores",
        {"b": "NonMaxSuppression", "s": "NonMaxSuppression"},
    ),
    "sound": (SOUND, "int16[N,16] y", {"l": "Cast"}),
    "best": (BEST, "float[N,5] y, int64[N,5] i", {"z": "TopK"}),
    "found": (FOUND, "int64[2,K] y", {"z": "Greater"}),
}


def kind(name: str) -> Model:
    body, outputs, _ = KINDS[name]
    return model_of(body, outputs)


@pytest.mark.parametrize("name", KINDS)
def test_what_enters_the_last_selecting_or_rounding_operator(name: str) -> None:
    assert entering(kind(name)) == KINDS[name][2]


@pytest.mark.parametrize(
    ("body", "outputs", "expected"),
    [
        ("z = MatMul(x, w) p = Softmax(z) y = MatMul(p, v)", "float[N,16] y", {}),
        ("y = ArgMax(x)", "int64[1,16] y", {}),  # a copy of an input enters: the same in every form
        ("t = Transpose(x) y = ArgMax(t)", "int64[1,N] y", {}),
        (
            "z = MatMul(x, w) g = Greater(z, half) q = Where(g, z, half) y = ArgMax(q)",
            "int64[1,16] y",
            {"z": "Greater"},
        ),
        ("z = MatMul(x, w) c = Clip(z) y = Round(c)", "float[N,16] y", {"c": "Round"}),
        ("z = MatMul(x, w) f = Floor(z) y = MatMul(f, v)", "float[N,16] y", {}),  # products are numbers again
        ("z = MatMul(x, w) q = QuantizeLinear(z, half) y = DequantizeLinear(q, half)", "float[N,16] y", {}),
        ("z = MatMul(x, w) y = QuantizeLinear(z, half)", "uint8[N,16] y", {"z": "QuantizeLinear"}),
        ("s = Shape(x) f = Cast<to = 1>(s) m = Mul(f, half) y = Floor(m)", "float[2] y", {}),  # of the shape only
        (
            "z = MatMul(x, w) i = ArgMax(z) h = Relu(z) y = Gather(h, i)",
            "float[1,16,16] y",
            {"z": "ArgMax", "h": "Gather"},
        ),
        (
            "z = MatMul(x, w) m = MaxPool<kernel_shape=[1]>(z) e = Equal(z, m) y = Cast<to = 6>(e)",
            "int32[1,16,16] y",
            {"z": "Equal", "m": "Equal"},
        ),
    ],
)
def test_entries_are_continuous_computed_and_not_far_away(body: str, outputs: str, expected: dict[str, str]) -> None:
    x = "float[1,16,16] x" if "MaxPool" in body else "float[N,16] x"
    assert entering(model_of(body, outputs, x)) == expected


def test_selecting_far_from_the_output_is_indirect() -> None:
    body = """z = MatMul(x, w) t, i = TopK<axis = 1>(z, most)
        a = ScatterElements<axis = 1>(x, i, t) y = MatMul(a, v)"""
    found = find_entries(model_of(body, "float[N,16] y"))
    assert [(each.tensor, each.operator, each.is_direct) for each in found] == [("z", "TopK", False)]


def test_one_entry_stands_for_all_outputs_that_it_reaches() -> None:
    by_tensor = {each.tensor: each.outputs for each in find_entries(kind("detections"))}
    assert by_tensor == {"b": ("idx", "boxes", "scores"), "s": ("idx", "boxes", "scores")}


def test_what_enters_a_loop_stands_for_what_is_selected_inside() -> None:
    body = """h = MatMul(x, w) yes = Constant<value = bool {1}>() n = Constant<value = int64 {3}>()
        y = Loop(n, yes) <body = b (int64 i, bool c) => (bool d, int64[1,16] k) {
          d = Identity(c) m = MatMul(h, v) k = ArgMax(m) }>"""
    model = model_of(body, "int64[3,1,16] y")
    assert entering(model) == {"h": "Loop"}
    assert not varies_in_length(model, "y")


def test_local_functions_are_seen_through() -> None:
    functions = '<domain: "own", opset_import: ["" : 17]> best (a) => (b) { t = Relu(a) b = ArgMax(t) }'
    model = model_of("z = MatMul(x, w) y = own.best(z)", "int64[1,16] y", functions=functions)
    (entry,) = find_entries(model)
    assert entry.operator == "ArgMax"
    shown, names = expose(model, [entry])
    x = RNG.standard_normal((5, 16)).astype(np.float32)
    values = Session(shown.to_bytes()).run({"x": x})
    np.testing.assert_allclose(values[next(iter(names))], np.maximum(x @ WEIGHTS["w"], 0), rtol=1e-4, atol=1e-5)


def test_at_most_sixteen_the_direct_ones_of_every_output_first() -> None:
    parts = [f"z{i} = Mul(h, half) y{i} = Floor(z{i})" for i in range(20)]
    model = model_of(f"h = MatMul(x, w) {' '.join(parts)}", ", ".join(f"float[N,16] y{i}" for i in range(20)))
    assert [each.tensor for each in find_entries(model)] == [f"z{i}" for i in range(MOST_ENTRIES)]


# --- in other forms ---


def calibration(model: Model, folder: Path) -> CalibrationData:
    np.savez(folder / "c.npz", x=RNG.standard_normal((64, 16)).astype(np.float32))
    return CalibrationData.open(folder / "c.npz", Session(model.to_bytes()).inputs)


REWRITES: dict[str, list[tuple[str, dict[str, Any]]]] = {
    "static": [("quantize-static", {})],
    "stored": [("quantize-weights", {"bits": 8}), ("store-compact", {})],
    "short": [("cast-float16", {})],
    "whole-short": [("cast-float16", {"scope": "all"})],
    "renamed": [("strip-metadata", {"shorten_names": True})],
    "duplicates": [("lift-constants", {}), ("remove-noops", {}), ("merge-duplicates", {})],
}


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("rewrite", REWRITES)
def test_entries_are_found_in_what_passes_make_of_the_model(name: str, rewrite: str, tmp_path: Path) -> None:
    model = kind(name)
    data = calibration(model, tmp_path)
    current, changed = model, []
    for each, parameters in REWRITES[rewrite]:
        current, outcome = apply_pass(current, get_pass(each)(**parameters), Context(seed=0, calibration=data))
        changed += outcome.changed
    assert changed or rewrite == "duplicates"
    entries = find_entries(model)
    before, names = expose(model, entries)
    after, others = expose(current, entries)
    assert set(names.values()) == set(others.values()) == {each.tensor for each in entries}
    feeds = data.first_sample()
    wanted, found = (Session(each.to_bytes()).run(feeds) for each in (before, after))
    theirs = {tensor: output for output, tensor in others.items()}
    for output, tensor in names.items():
        left, right = wanted[output], found[theirs[tensor]]
        assert left.dtype == right.dtype and left.shape == right.shape
        assert np.abs(left - right).max() < 0.1 * np.abs(left).max()


def test_the_entry_behind_a_folded_normalization_is_found(tmp_path: Path) -> None:
    body = """c = Conv(x, k) z = BatchNormalization(c, s, b, m, s) y = ArgMax<axis = 1>(z)"""
    proto = parser.parse_model(
        f"""<ir_version: 8, opset_import: ["" : 17]> g (float[N,2,3,3] x) => (int64[N,1,3,3] y)
        <float[2] s = {{2, 3}}, float[2] b = {{1, -1}}, float[2] m = {{0.5, 0.25}}> {{ {body} }}"""
    )
    kernel = RNG.standard_normal((2, 2, 1, 1)).astype(np.float32)
    proto.graph.initializer.append(numpy_helper.from_array(kernel, "k"))
    model = load(proto)
    folded, outcome = apply_pass(model, get_pass("fuse-batch-norm")(), Context(seed=0))
    assert outcome.changed
    entries = find_entries(model)
    assert [each.tensor for each in entries] == ["z"]
    feeds = {"x": RNG.standard_normal((4, 2, 3, 3)).astype(np.float32)}
    before, after = (Session(expose(each, entries)[0].to_bytes()).run(feeds)["entry_0"] for each in (model, folded))
    np.testing.assert_allclose(before, after, rtol=1e-4, atol=1e-5)


def test_an_entry_that_is_gone_is_left_out() -> None:
    entries = find_entries(kind("detections"))
    other = model_of("h = MatMul(x, w) idx = ArgMax(h)", "int64[1,16] idx")
    assert expose(other, entries)[1] == {}


# --- lengths and numbers ---


@pytest.mark.parametrize(
    ("body", "outputs", "expected"),
    [
        (DETECTIONS, KINDS["detections"][1], {"idx", "boxes", "scores"}),
        (FOUND, KINDS["found"][1], {"y"}),
        ("g = Greater(x, half) y = NonZero(g)", "int64[2,K] y", set()),  # of inputs only: the same in every form
        ("z = MatMul(x, w) n = NonZero(z) s = Shape(n) y = ReduceSum(s)", "int64[1] y", set()),
        ("z = MatMul(x, w) n = NonZero(z) s = Shape(n) f = ConstantOfShape(s) y = Relu(f)", "float[A,B] y", {"y"}),
        ("z = MatMul(x, w) n = NonZero(z) y = ReduceSum<keepdims = 0>(n)", "int64 y", set()),
        ("s = Shape(x) y = ConstantOfShape(s)", "float[N,16] y", set()),
        (BEST, KINDS["best"][1], set()),
        (CLASSES, "int64[N,1] y", set()),
    ],
)
def test_which_outputs_vary_in_length(body: str, outputs: str, expected: set[str]) -> None:
    model = model_of(body, outputs)
    assert {each.name for each in model.proto.graph.output if varies_in_length(model, each.name)} == expected


def test_a_loop_that_counts_does_not_vary_in_length() -> None:
    body = """h = MatMul(x, w) u = own.what(h) yes = Constant<value = bool {1}>() n = Constant<value = int64 {3}>()
        e, y = Loop(n, yes, u) <body = b (int64 i, bool c, float s) => (bool d, float t, float k) {
          t = MatMul(s, v) k = Identity(t) d = Identity(c) }>"""
    model = model_of(body, "float[N,16] e, float[T,N,16] y")  # of what nobody knows the shape of
    assert not varies_in_length(model, "y") and not varies_in_length(model, "e")


def test_a_loop_that_stops_by_what_it_computes_varies_in_length() -> None:
    body = """h = MatMul(x, w) yes = Constant<value = bool {1}>() n = Constant<value = int64 {30}>()
        e, y = Loop(n, yes, h) <body = b (int64 i, bool c, float[N,16] s) => (bool d, float[N,16] t, float[N,16] k) {
          t = MatMul(s, v) k = Identity(t) m = ReduceMax<keepdims = 0>(t) d = Less(m, loud) }>"""
    assert varies_in_length(model_of(body, "float[N,16] e, float[T,N,16] y"), "y")


@pytest.mark.parametrize(
    ("body", "mark", "expected"),
    [
        (SOUND, "5", True),
        ("z = MatMul(x, w) r = Round(z) c = Clip(r) t = Transpose(c) y = Cast<to = 6>(t)", "6", True),
        ("z = MatMul(x, w) p = Sigmoid(z) m = Mul(p, loud) y = Cast<to = 5>(m)", "5", True),
        ("z = MatMul(x, w) y = QuantizeLinear(z, half)", "Q", True),
        ("z = MatMul(x, w) p = Sigmoid(z) r = Round(p) y = Cast<to = 6>(r)", "6", False),
        ("z = MatMul(x, w) g = Greater(z, half) y = Cast<to = 6>(g)", "6", False),
        (CLASSES, "", False),
        ("z = MatMul(x, w) i = ArgMax(z) f = Cast<to = 1>(i) m = Mul(f, loud) y = Cast<to = 6>(m)", "6", False),
        ("z = MatMul(x, w) v1, y = TopK(z, most)", "", False),
        ("z = MatMul(x, w) y = NonZero(z)", "", False),
        ("y = Cast<to = 6>(ids)", "6", False),
        ("y = MatMul(x, w)", "M", False),  # floats
    ],
)
def test_integers_that_are_numbers(body: str, mark: str, expected: bool) -> None:
    element = {"Q": "uint8", "5": "int16", "6": "int32", "M": "float"}.get(mark, "int64")
    inputs = "float[N,16] x, int64[N] ids" if "ids" in body else "float[N,16] x"
    rank = "" if "ids" in body else ",16"
    assert numbers_not_labels(model_of(body, f"{element}[N{rank}] y", inputs), "y") is expected
