"""Passes do no more to weights that no sample reaches than is safe without data."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from onnx import numpy_helper, parser

from onnxcomp.budget import Budget
from onnxcomp.contract import Context, Pass
from onnxcomp.model import Model, load
from onnxcomp.pipeline import optimize, replay
from onnxcomp.pipeline.safety.reach import Reach
from onnxcomp.pipeline.safety.safe_changes import apply_safely
from onnxcomp.recipe import Choose, Recipe
from onnxcomp.registry import get_pass
from onnxcomp.runtime import Session
from onnxcomp.testing.applying import calibration_of

TEXT = """<ir_version: 8, opset_import: ["" : 17]> g (float[N,32] x, float[N,40] z) => (float[N,48] y) {
    a = MatMul(x, wx) b = MatMul(z, wz) y = Add(a, b) }"""
LOOKUP = """<ir_version: 8, opset_import: ["" : 17]> g (int64[N] i) => (float[N,16] y) {
    e = Gather(t, i) y = MatMul(e, w) }"""
LOOSE = Budget.parse(max_drop="9")
RNG = np.random.default_rng(0)


def stream() -> Model:
    proto = parser.parse_model(TEXT)
    for name, rows in (("wx", 32), ("wz", 40)):
        values = (0.15 * RNG.standard_normal((rows, 48))).astype(np.float32)
        proto.graph.initializer.append(numpy_helper.from_array(values, name))
    return load(proto)


class Known(Reach):
    """Some weights are unreached; says which were asked for."""

    def __init__(self, *unreached: str, few: bool = False) -> None:
        super().__init__(None, few)
        self.silent = set(unreached)
        self.asked: list[str] = []

    def unreached(self, model: Model, names: object, is_over: object = None) -> set[str]:
        self.asked += names  # type: ignore[operator]
        return self.silent.intersection(names)  # type: ignore[call-overload,no-any-return]


def changed(rewrite: Pass, reach: Reach, context: Context | None = None) -> set[str]:
    found = apply_safely(stream(), rewrite, context or Context(), reach)
    return {each.name for each in found.outcome.changed}


def test_what_ruins_an_unreached_weight_leaves_it_out() -> None:
    model = stream()
    found = apply_safely(model, get_pass("binarize-weights")(), Context(), Known("wz"))
    assert {each.name for each in found.outcome.changed} == {"wx"}
    assert found.left == ("wz",) and found.entries()[0].what == "no sample reaches it"
    assert found.notes() == ["wz: no sample reaches it; left as before"]
    assert np.array_equal(values(found.model, "wz"), values(model, "wz"))


def values(model: Model, name: str) -> np.ndarray:
    return next(numpy_helper.to_array(each) for each in model.proto.graph.initializer if each.name == name)


def test_eight_bits_are_safe_and_ask_for_no_sample() -> None:
    reach = Known("wz")
    assert changed(get_pass("quantize-weights")(bits=8), reach) == {"wx", "wz"}
    assert not reach.asked
    stored = get_pass("store-integers")(bits=8, min_elements=2)
    assert changed(stored, reach) == {"wx", "wz"}
    assert changed(get_pass("store-integers")(bits=4, min_elements=2), reach) == {"wx"}


RECURRENT = """<ir_version: 8, opset_import: ["" : 17]> g (float[5,1,6] x) => (float[1,1,3] y) {
    h, last = RNN<hidden_size = 8>(x, w, r, , , state) y = MatMul(last, v) }"""


def test_a_recurrent_node_that_starts_from_zeros_is_cut_with_data(tmp_path: Path) -> None:
    """As torch exports one: without the hidden units the model computes what it does when they are not read."""
    rng, proto = np.random.default_rng(0), parser.parse_model(RECURRENT)
    held = {name: (0.4 * rng.standard_normal(shape)).astype(np.float32)
            for name, shape in {"w": (1, 8, 6), "r": (1, 8, 8), "v": (8, 3)}.items()}  # fmt: skip
    held["state"] = np.zeros((1, 1, 8), np.float32)
    proto.graph.initializer.extend(numpy_helper.from_array(each, name) for name, each in held.items())
    x = rng.standard_normal((96, 5, 1, 6)).astype(np.float32)
    np.savez(tmp_path / "c.npz", x=x)
    recipe = Recipe.of(get_pass("prune-channels")(repair=False, ratio=0.5))
    budget = Budget.parse(max_drop="1e9")
    made = optimize(proto, recipe=recipe, calibration=str(tmp_path / "c.npz"), budget=budget, measure=False)
    assert [each.name for each in made.receipt.steps[-1].changed] == ["h"]
    kept = [row in values(made.model, "w")[0].tolist() for row in held["w"][0].tolist()]
    assert sum(kept) == 4 and values(made.model, "state").shape == (1, 1, 4)
    for sample in x[:8]:
        state = np.zeros(8)
        for step in sample[:, 0].astype(np.float64):
            state = np.tanh(held["w"][0] @ step + held["r"][0] @ (state * kept))
        (got,) = Session(made.model.to_bytes()).run({"x": sample}).values()
        np.testing.assert_allclose(got[0, 0], (state * kept) @ held["v"], atol=1e-5)


def test_a_run_without_data_is_left_to_its_user() -> None:
    assert changed(get_pass("binarize-weights")(), None) == {"wx", "wz"}  # type: ignore[arg-type]


def test_ranges_of_activations_that_were_not_seen_are_none() -> None:
    """The Add reads what the unreached weight makes: its range is as unknown."""
    feeds = {"x": RNG.standard_normal((40, 32)).astype(np.float32), "z": np.zeros((40, 40), np.float32)}
    context = Context(calibration=calibration_of(stream().proto, feeds))
    rewrite = get_pass("quantize-static")(all_nodes=True)
    everything, rest = changed(rewrite, Known(), context), changed(rewrite, Known("wz"), context)
    assert {"a", "b"} <= everything and "a" in rest and "b" not in rest


@pytest.mark.parametrize(("bits", "names"), [(8, {"wx", "wz"}), (7, {"wx", "wz"}), (6, set()), (3, set())])
def test_few_samples_license_little_more_than_none(bits: int, names: set[str]) -> None:
    """A bit less is four times the squared error."""
    assert changed(get_pass("quantize-weights")(bits=bits, algorithm="nearest"), Known(few=True)) == names


def test_few_samples_keep_a_search_near_eight_bits(tmp_path: Path) -> None:
    model = stream()
    choose = Recipe.of(Choose((get_pass("cluster-weights")(),)))
    errors = {}
    for count in (8, 60):
        np.savez(tmp_path / "c.npz", x=RNG.standard_normal((count, 32)).astype(np.float32),
                 z=RNG.standard_normal((count, 40)).astype(np.float32))  # fmt: skip
        result = optimize(model, recipe=choose, calibration=str(tmp_path / "c.npz"), budget=LOOSE, measure=False)
        difference = values(result.model, "wz") - values(model, "wz")
        errors[count] = np.square(difference).sum() / np.square(values(model, "wz")).sum()
        assert any("at least 32 are wanted" in note for note in result.receipt.notes) == (count == 8)
    eight_bits = np.square(np.abs(values(model, "wz")).max(axis=0) / 127).mean() / 12 / np.var(values(model, "wz"))
    assert errors[8] < 6 * eight_bits < errors[60]


def test_a_run_says_what_it_left_and_replays(tmp_path: Path) -> None:
    model = stream()
    np.savez(tmp_path / "c.npz", x=RNG.standard_normal((60, 32)).astype(np.float32), z=np.zeros((60, 40), np.float32))
    result = optimize(
        model, recipe=Recipe.of(get_pass("ternarize-weights")()), calibration=str(tmp_path / "c.npz"),
        budget=LOOSE, measure=False,
    )  # fmt: skip
    [step] = result.receipt.steps
    assert step.decision == "kept in part", step.reason
    assert [each.name for each in step.taken_back] == ["wz"]
    assert "wz: no sample reaches it; left as before" in result.receipt.notes
    assert replay(model, result.receipt).model.to_bytes() == result.model.to_bytes()


def test_a_search_keeps_an_unreached_weight_at_eight_bits(tmp_path: Path) -> None:
    model = stream()
    np.savez(tmp_path / "c.npz", x=RNG.standard_normal((60, 32)).astype(np.float32), z=np.zeros((60, 40), np.float32))
    choose = Recipe.from_dict({"step": [{"choose": ["quantize-weights", "cluster-weights"]}]}, name="r")
    result = optimize(model, recipe=choose, calibration=str(tmp_path / "c.npz"), budget=LOOSE, measure=False)
    assert "wz: no sample reaches it; kept at 8 bits" in result.receipt.notes
    details = {each.name: each.details for each in result.receipt.steps[0].changed}
    assert details["wz"]["bits"] == 8 > details["wx"]["bits"]
    again = replay(model, result.receipt, calibration=str(tmp_path / "c.npz"))
    assert again.model.to_bytes() == result.model.to_bytes()


def test_a_search_by_coded_bytes_holds_unreached_weights_to_eight_bits_too(tmp_path: Path) -> None:
    """A small one that has no option worth its bytes is left as it is: it is in no assignment."""
    proto = parser.parse_model(TEXT.replace("y = Add(a, b)", "c = Add(a, b) d = MatMul(z, ws) y = Add(c, d)"))
    for name, shape in (("wx", (32, 48)), ("wz", (40, 48)), ("ws", (40, 1))):
        proto.graph.initializer.append(numpy_helper.from_array(RNG.standard_normal(shape).astype(np.float32), name))
    np.savez(tmp_path / "c.npz", x=RNG.standard_normal((60, 32)).astype(np.float32), z=np.zeros((60, 40), np.float32))
    step = {"choose": ["quantize-rate-distortion"], "then": [{"pass": "match-outputs", "trade": 4.0}]}
    choose = Recipe.from_dict({"goal": "packed", "step": [step]}, name="r")
    result = optimize(proto, recipe=choose, calibration=str(tmp_path / "c.npz"), budget=LOOSE, measure=False)
    notes = result.receipt.notes
    assert "wz: no sample reaches it; kept at 8 bits" in notes and "ws: no sample reaches it; left as before" in notes
    before = values(load(proto), "wz")
    eight_bits = np.square(np.abs(before).max(axis=0) / 127).mean() / 12
    assert 0 < np.square(values(result.model, "wz") - before).mean() < 6 * eight_bits


def test_rows_of_a_table_that_no_sample_looks_up_fare_no_worse(tmp_path: Path) -> None:
    proto = parser.parse_model(LOOKUP)
    for name, shape in (("t", (200, 32)), ("w", (32, 16))):
        values_of = RNG.standard_normal(shape).astype(np.float32)
        proto.graph.initializer.append(numpy_helper.from_array(values_of, name))
    np.savez(tmp_path / "c.npz", i=RNG.integers(0, 40, 200))
    choose = Recipe.from_dict(
        {"step": [{"choose": ["quantize-weights", "cluster-weights"], "then": ["match-outputs"]}]}, name="r"
    )
    result = optimize(proto, recipe=choose, calibration=str(tmp_path / "c.npz"), measure=False)
    before, after = values(load(proto), "t"), values(result.model, "t")
    errors = np.square(after - before).sum(axis=1) / np.square(before).sum(axis=1)
    assert errors[:40].mean() > 0 and errors[40:].mean() <= 1.5 * errors[:40].mean()
