"""match-outputs: what comes out of two nodes in a row, what stays, and what is left alone."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from onnx import numpy_helper, parser

from onnxcomp.calibration import CalibrationData
from onnxcomp.contract import Context, Outcome
from onnxcomp.graph.ir.reader import close_graph, open_graph
from onnxcomp.graph.provenance import Reference
from onnxcomp.graph.weights.roles import compose, weights
from onnxcomp.model import Model, load
from onnxcomp.pipeline.apply import apply_pass
from onnxcomp.registry import get_pass
from onnxcomp.runtime import Session

TEXT = """<ir_version: 8, opset_import: ["" : 17]>
g (float[N,24] x) => (float[N,8] y) {
  a = MatMul(x, w0)
  b = Relu(a)
  y = MatMul(b, w1)
}"""


def model_of(seed: int = 0) -> Model:
    proto = parser.parse_model(TEXT)
    rng = np.random.default_rng(seed)
    for name, shape in (("w0", (24, 16)), ("w1", (16, 8))):
        proto.graph.initializer.append(numpy_helper.from_array(rng.standard_normal(shape).astype(np.float32), name))
    return load(proto)


def inputs(seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    mixed = rng.standard_normal((400, 8)) @ np.random.default_rng(9).standard_normal((8, 24))
    return (mixed + 0.3 * rng.standard_normal((400, 24))).astype(np.float32)


def data_of(model: Model, folder: Path) -> CalibrationData:
    np.savez(folder / "calib.npz", x=inputs(1))
    return CalibrationData.open(folder / "calib.npz", Session(model.to_bytes()).inputs)


def outputs(model: Model, values: np.ndarray) -> np.ndarray:
    return np.asarray(Session(model.to_bytes()).run({"x": values})["y"])


def distance(left: Model, right: Model, values: np.ndarray) -> float:
    wanted = outputs(left, values)
    return float(np.square(outputs(right, values) - wanted).sum() / np.square(wanted).sum())


def clustered(model: Model, **fields: object) -> Model:
    fields = {"bits": 2.0, "granularity": "tensor", "algorithm": "nearest"} | fields
    return apply_pass(model, get_pass("cluster-weights")(**fields), Context())[0]


def matched(model: Model, **context: object) -> tuple[Model, Outcome]:
    fields = context.pop("fields", {})
    return apply_pass(model, get_pass("match-outputs")(**fields), Context(**context))  # type: ignore[arg-type]


def values_of(model: Model) -> dict[str, np.ndarray]:
    return {each.name: np.asarray(each.values) for each in weights(open_graph(model))}


def test_brings_outputs_nearer_on_inputs_it_never_saw(tmp_path: Path) -> None:
    original = model_of()
    rough = clustered(original)
    better, outcome = matched(rough, calibration=data_of(original, tmp_path), reference=Reference(original))
    assert [each.name for each in outcome.changed] == ["w0", "w1"]
    unseen = inputs(2)
    assert distance(original, better, unseen) < 0.5 * distance(original, rough, unseen)


def test_second_node_makes_up_for_the_first(tmp_path: Path) -> None:
    """With w0 left as it was rounded, w1 alone is fitted to the inputs that it then has; numpy's least squares, on
    inputs as they are, is the best that any w1 can do."""
    original = model_of()
    rough = clustered(original)
    data = data_of(original, tmp_path)
    alone = {"calibration": data, "reference": Reference(original), "include": frozenset({"w1"})}
    freed, _ = apply_pass(rough, get_pass("match-outputs")(), Context(**alone))  # type: ignore[arg-type]
    assert np.array_equal(values_of(freed)["w0"], values_of(rough)["w0"])
    x = inputs(1)
    hidden = np.maximum(x @ values_of(rough)["w0"], 0)
    best, *_ = np.linalg.lstsq(hidden, outputs(original, x), rcond=None)
    graph = open_graph(rough)
    next(each for each in weights(graph) if each.name == "w1").set(best.astype(np.float32))
    limit = distance(original, close_graph(graph), x)
    before, after = distance(original, rough, x), distance(original, freed, x)
    assert limit < after < before


def test_towards_weights_makes_up_for_nothing(tmp_path: Path) -> None:
    """With w0 zero nothing of the original's outputs is left to be matched; w1 is rounded to its own old values."""
    original = model_of()
    rough = clustered(original)
    data = data_of(original, tmp_path)
    context = {"calibration": data, "reference": Reference(original), "include": frozenset({"w1"})}
    found = {}
    for towards in ("outputs", "weights"):
        graph = open_graph(rough)
        moved = next(each for each in weights(graph) if each.name == "w0")
        moved.set((np.asarray(moved.values) * 0.5).astype(np.float32))
        halved = close_graph(graph)
        after, _ = matched(halved, fields={"towards": towards}, **context)
        found[towards] = values_of(after)["w1"]
    before = values_of(original)["w1"]
    scale = {name: float(np.sum(each * before) / np.sum(before**2)) for name, each in found.items()}
    assert scale["outputs"] > 1.6 and 0.9 < scale["weights"] < 1.1


def test_towards_weights_leaves_what_has_no_levels(tmp_path: Path) -> None:
    original = model_of()
    rough = compose(original, {"w0": clustered(original)})
    context = {"calibration": data_of(original, tmp_path), "reference": Reference(original)}
    after, outcome = matched(rough, fields={"towards": "weights"}, **context)
    assert [each.name for each in outcome.changed] == ["w0"]
    assert np.array_equal(values_of(after)["w1"], values_of(original)["w1"])


def test_of_both_ways_a_search_tries_the_one_that_makes_up_first() -> None:
    kind = get_pass("match-outputs")
    assert [each.towards for each in kind().ways()] == ["outputs", "weights"]  # type: ignore[attr-defined]
    assert [each.towards for each in kind(towards="weights").ways()] == ["weights"]  # type: ignore[attr-defined]


def test_weights_keep_their_number_of_levels_and_encoding(tmp_path: Path) -> None:
    original = model_of()
    rough = clustered(original)
    better, _ = matched(rough, calibration=data_of(original, tmp_path), reference=Reference(original))
    for name, values in values_of(better).items():
        assert np.unique(values).size <= 4
        assert better.encodings[name].encode(values) is not None


def test_zeros_of_a_mask_stay(tmp_path: Path) -> None:
    original = model_of()
    rough = clustered(original, bits=3.0, sparsity=0.6)
    better, outcome = matched(rough, calibration=data_of(original, tmp_path), reference=Reference(original))
    assert outcome.changed
    for name, values in values_of(better).items():
        assert not values[values_of(rough)[name] == 0].any()


def test_vectors_stay_vectors(tmp_path: Path) -> None:
    original = model_of()
    rough = clustered(original, bits=4.0, vector_size=2, granularity="auto")
    better, outcome = matched(rough, calibration=data_of(original, tmp_path), reference=Reference(original))
    assert outcome.changed
    values = values_of(better)["w0"]
    assert len(np.unique(np.moveaxis(values, 0, -1).reshape(-1, 2), axis=0)) <= 16
    assert distance(original, better, inputs(2)) < distance(original, rough, inputs(2))


def test_a_weight_without_levels_takes_the_least_squares_solution(tmp_path: Path) -> None:
    original = model_of()
    halves = get_pass("cluster-weights")(bits=1.0, algorithm="nearest")
    rough = apply_pass(original, halves, Context(exclude=("w1",)))[0]
    data = data_of(original, tmp_path)
    better, _ = matched(rough, calibration=data, reference=Reference(original), include=frozenset({"w1"}))
    assert distance(original, better, inputs(2)) < 0.8 * distance(original, rough, inputs(2))
    given = {"calibration": data, "reference": Reference(original), "include": frozenset({"w1"})}
    kept, outcome = matched(rough, fields={"free": False}, **given)
    assert not outcome.changed and [each.reason for each in outcome.skipped] == ["it has no levels"]
    assert np.array_equal(values_of(kept)["w1"], values_of(rough)["w1"])


def test_nothing_to_match_where_nothing_was_lost(tmp_path: Path) -> None:
    original = model_of()
    _, outcome = matched(original, calibration=data_of(original, tmp_path), reference=Reference(original))
    assert not outcome.changed


def test_says_that_the_original_is_not_known(tmp_path: Path) -> None:
    original = model_of()
    _, outcome = matched(clustered(original), calibration=data_of(original, tmp_path))
    assert [each.reason for each in outcome.skipped] == [
        "the model from before its weights were rounded is not known"
    ]


DEEP = """<ir_version: 8, opset_import: ["" : 17]>
g (float[N,24] x) => (float[N,8] y) {
  a = MatMul(x, w0)
  b = Relu(a)
  c = MatMul(b, w2)
  d = Tanh(c)
  e = Add(d, b)
  y = MatMul(e, w1)
}"""


def deep_model() -> Model:
    proto = parser.parse_model(DEEP)
    rng = np.random.default_rng(0)
    for name, shape in (("w0", (24, 16)), ("w2", (16, 16)), ("w1", (16, 8))):
        proto.graph.initializer.append(numpy_helper.from_array(rng.standard_normal(shape).astype(np.float32), name))
    return load(proto)


@pytest.mark.parametrize("changed", ["w0", "w1", "w2"])
@pytest.mark.parametrize("rounds", [1, 2])
def test_a_trial_after_another_on_the_same_original_makes_the_same_bytes(
    changed: str, rounds: int, tmp_path: Path
) -> None:
    made = []
    for is_second in (True, False):
        original = deep_model()
        data = data_of(original, tmp_path)
        context = {"calibration": data, "reference": Reference(original), "fields": {"rounds": rounds}}
        first = clustered(original)
        if is_second:
            matched(first, **context)
        trial = compose(first, {changed: clustered(original, bits=3.0)})
        made.append(matched(trial, **context)[0])
    assert made[0].to_bytes() == made[1].to_bytes()
    assert {name: each.to_dict() for name, each in made[0].encodings.items()} == {
        name: each.to_dict() for name, each in made[1].encodings.items()
    }


def test_which_weights_may_move_makes_no_difference_to_those_that_do(tmp_path: Path) -> None:
    """A receipt repeats what was changed alone."""
    original = deep_model()
    context = {"calibration": data_of(original, tmp_path), "reference": Reference(original)}
    whole, outcome = matched(clustered(original), **context)
    names = frozenset(each.name for each in outcome.changed)
    again, _ = matched(clustered(deep_model()), include=names, **context | {"reference": Reference(deep_model())})
    assert whole.to_bytes() == again.to_bytes()
    last = clustered(original)
    settled = compose(last, {"w0": whole, "w2": whole})
    alone, _ = matched(settled, include=frozenset({"w1"}), **context)
    assert np.array_equal(values_of(alone)["w1"], values_of(whole)["w1"])


def test_weights_in_branches_are_left_alone(tmp_path: Path) -> None:
    text = """<ir_version: 8, opset_import: ["" : 17]>
    g (float[N,24] x) => (float[N,8] y) {
      a = MatMul(x, w0)
      sum = ReduceSum<keepdims = 0>(x)
      zero = Constant<value_float = 0.0>()
      some = Greater(sum, zero)
      y = If (some) <then_branch = one () => (float[N,8] u) { u = MatMul(a, w1) },
                     else_branch = two () => (float[N,8] v) { m = MatMul(a, w1)  v = Neg(m) }>
    }"""
    proto = parser.parse_model(text)
    proto.graph.initializer.extend(model_of().proto.graph.initializer)
    original = load(proto)
    rough = clustered(original)
    better, outcome = matched(rough, calibration=data_of(original, tmp_path), reference=Reference(original))
    assert [each.name for each in outcome.changed] == ["w0"]
    assert [each.name for each in outcome.skipped] == ["w1"]
    assert np.array_equal(values_of(better)["w1"], values_of(rough)["w1"])
