"""onnxcomp.verify.reading.outputs: how outputs lie, what of them is compared, and what each is taken for."""

from pathlib import Path

import numpy as np
import pytest

from onnxcomp.calibration import CalibrationData
from onnxcomp.model import Model
from onnxcomp.numerics.metrics.lenses import RelativeError
from onnxcomp.verify.limits import NOISE_FLOOR
from onnxcomp.verify.reading.copies import Copy
from onnxcomp.verify.reading.padding import Padding
from tests.verify.models import CPU, WEIGHT, X, classifier, opened, parsed, read

RNG = np.random.default_rng(6)
ONE = np.ones(1, np.float32)


def identical(shapes: str) -> Model:
    return parsed(f"g (float{shapes} x) => (float{shapes} y) {{ y = Neg(x) }}")


@pytest.mark.parametrize(
    ("shapes", "array", "axis"),
    [
        ("[N, 3]", (40, 3), 0),
        ("[3, N]", (3, 40), 1),
        ("[T, N, 3]", (5, 40, 3), 1),
    ],
)
def test_samples_are_found_on_any_axis_and_brought_first(
    tmp_path: Path, shapes: str, array: tuple[int, ...], axis: int
) -> None:
    values = RNG.normal(size=array).astype(np.float32)
    outputs = read(identical(shapes), opened(identical(shapes), tmp_path, x=values))
    assert outputs.axes == {"y": axis}
    reference = next(iter(outputs.store))["y"]
    pair = outputs.pair(0, "y", {"y": reference}, 2 * reference)
    np.testing.assert_array_equal(pair.reference, np.moveaxis(reference, axis, 0))
    np.testing.assert_array_equal(pair.candidate, 2 * pair.reference)
    assert pair.reference.dtype == np.float64 and pair.weights is None


def test_channels_that_the_model_declares_are_looked_along(tmp_path: Path) -> None:
    """(N, 3, H, W) of open height and width: along the three channels only."""
    values = RNG.normal(size=(40, 3, 6, 6)).astype(np.float32)
    declared = read(identical("[N, 3, H, W]"), opened(identical("[N, 3, H, W]"), tmp_path, x=values))
    assert {each.axis for each in declared.described["y"].lenses if isinstance(each, RelativeError)} == {0}
    (tmp_path / "open").mkdir()
    unknown = read(identical("[N, C, H, W]"), opened(identical("[N, C, H, W]"), tmp_path / "open", x=values))
    assert {each.axis for each in unknown.described["y"].lenses if isinstance(each, RelativeError)} == {0, 2}


@pytest.mark.parametrize("operator", ["Neg", "Softmax", "Sigmoid"])
@pytest.mark.parametrize("rest", [(0,), (0, 4), (4, 0), (0, 3, 3)])
def test_outputs_without_elements_are_not_compared(tmp_path: Path, operator: str, rest: tuple[int, ...]) -> None:
    shape = ", ".join(map(str, rest))
    model = parsed(
        f"g (float[N, {shape}] nothing, float[N, 3] x) => (float[N, {shape}] none, float[N, 3] y)"
        f" {{ none = {operator}(nothing) y = Neg(x) }}"
    )
    x = RNG.normal(size=(40, 3)).astype(np.float32)
    found = read(model, opened(model, tmp_path, nothing=np.zeros((40, *rest), np.float32), x=x)).evidence()
    assert found.compared == ("y",) and found.silent == {"none": "no values"}


def cache() -> Model:
    return parsed(
        "g (float[N, 6, 4] past, float[N, 1, 4] x) => (float[N, 7, 4] present, float[N, 6, 4] same)"
        " { n = Neg(x) present = Concat<axis = 1>(past, n) same = Identity(past) }"
    )


def drawn_steps(folder: Path) -> CalibrationData:
    past, x = RNG.normal(size=(40, 6, 4)), RNG.normal(size=(40, 1, 4))
    return opened(cache(), folder, past=past.astype(np.float32), x=x.astype(np.float32))


def test_copies_are_left_out_and_said(tmp_path: Path) -> None:
    outputs = read(cache(), drawn_steps(tmp_path))
    assert outputs.copies == {"present": Copy("past", 1, None), "same": Copy("past", 0, 0)}
    assert outputs.evidence().compared == ("present",)
    assert outputs.evidence().silent == {"same": "a copy of input past"}
    reference = next(iter(outputs.store))
    pair = outputs.pair(0, "present", reference, reference["present"])
    np.testing.assert_array_equal(pair.reference, reference["present"][:, 6:])
    whole = outputs.pair(0, "same", reference, reference["same"])
    np.testing.assert_array_equal(whole.reference, reference["same"])  # broken, it must still show


@pytest.mark.parametrize("unit", [1.0, 1e-25])
def test_the_error_of_copied_rows_is_over_the_power_of_the_new_ones(tmp_path: Path, unit: float) -> None:
    outputs = read(cache(), drawn_steps(tmp_path))
    reference = next(iter(outputs.store))["present"] * np.float32(unit)
    new, old = reference.copy(), reference.copy()
    new[:, 6:] += np.float32(unit)
    old[2, 5] += np.float32(unit)
    assert outputs.kept_error(0, "present", reference, new) is None
    got = outputs.kept_error(0, "present", reference, old)
    expected = np.zeros(len(reference))
    expected[2] = unit**2 * 4 / 24 / np.square(reference[:, 6:].astype(np.float64)).mean()
    np.testing.assert_allclose(got, expected, rtol=1e-5)
    assert outputs.kept_error(0, "present", reference, reference[:, 1:]) is None
    assert outputs.kept_error(0, "same", reference, old) is None


def test_random_inputs_have_no_copies_and_a_floor_of_their_size() -> None:
    narrow = parsed("g (float[2, 3] x) => (float[2, 3] y) { s = Mul(x, by) y = Add(s, one) }", by=1e-3 * ONE, one=ONE)
    lens = read(narrow, drawn(narrow)).described["y"].lenses[0]
    assert isinstance(lens, RelativeError)
    assert lens.variance == pytest.approx(NOISE_FLOOR**2, rel=0.1)
    assert not read(cache(), drawn(cache())).copies


def drawn(model: Model) -> CalibrationData:
    with model.opened_on(CPU.session) as session:
        return CalibrationData.random(session.inputs, run=session.run)


TOKENS = (
    "g (int64[N, T] ids, int64[N, T] mask) => (float[N, T, 4] tokens, float[N, 4] pooled, float[N, T, 2] spans) {"
    " e = Gather(table, ids) tokens = Neg(e) pooled = ReduceMean<axes = [1], keepdims = 0>(e)"
    " spans = Slice(e, start, stop, last) f = Cast<to = 1>(mask) }"
)


def test_weights_are_of_outputs_that_have_the_masks_positions(tmp_path: Path) -> None:
    bounds = {"start": np.array([0]), "stop": np.array([2]), "last": np.array([2])}
    model = parsed(TOKENS, table=RNG.normal(size=(50, 4)).astype(np.float32), **bounds)
    mask = (np.arange(6)[None] < RNG.integers(1, 7, (40, 1))).astype(np.int64)
    data = opened(model, tmp_path, ids=RNG.integers(0, 50, (40, 6)), mask=mask)
    outputs = read(model, data, padding=Padding("mask", 0))
    for i, (found, batch) in enumerate(zip(outputs.store, data.labelled_batches(), strict=True)):
        for name in ("tokens", "spans"):
            got = outputs.pair(i, name, found, found[name]).weights
            np.testing.assert_array_equal(got, batch.feeds["mask"] == 1)
        assert outputs.pair(i, "pooled", found, found["pooled"]).weights is None
    assert read(model, data).pair(0, "tokens", found, found["tokens"]).weights is None


def denoiser(amount: float = 0.1) -> Model:
    text = "g (float[N, 1, 64] x) => (float[N, 1, 64] y) { t = Tanh(x) n = Mul(t, by) y = Sub(x, n) }"
    return parsed(text, by=amount * ONE)


def test_outputs_of_an_inputs_shape_have_the_lens_of_corrections(tmp_path: Path) -> None:
    data = opened(denoiser(), tmp_path, x=RNG.normal(size=(40, 1, 64)).astype(np.float32))
    lenses = read(denoiser(), data).described["y"].lenses
    assert "correction" in [each.name for each in lenses if isinstance(each, RelativeError)]


def test_vectors_of_an_inputs_length_are_no_corrections(tmp_path: Path) -> None:
    model = parsed("g (float[N] x) => (float[N] y) { n = Mul(x, by) y = Sub(x, n) }", by=0.1 * ONE)
    data = opened(model, tmp_path, x=RNG.normal(size=40).astype(np.float32))
    names = [each.name for each in read(model, data).described["y"].lenses if isinstance(each, RelativeError)]
    assert names == ["values"]


def test_the_users_word_and_what_the_graph_says_reach_each_output(tmp_path: Path) -> None:
    model = parsed("g (float[N, 8] x) => (float[N, 8] a, float[N, 8] b) { a = Neg(x) b = Mul(x, by) }", by=3 * ONE)
    data = opened(model, tmp_path, x=X)
    asked = read(model, data, asked={"a": "labels"}, left_out={"b": "of another kind"}.get)
    assert asked.described["a"].kind == "labels" and not asked.described["b"].lenses
    assert asked.evidence().silent == {"b": "of another kind"}
    assert asked.evidence().distinct == 120


def test_integers_made_by_rounding_are_values(tmp_path: Path) -> None:
    text = "g (float[N, 8] x) => (int32[N, 8] y) { s = Mul(x, by) r = Round(s) y = Cast<to = 6>(r) }"
    model = parsed(text, by=1000 * ONE)
    data = opened(model, tmp_path, x=X)
    assert read(model, data).described["y"].kind == "labels"
    outputs = read(model, data, numbers=lambda name: name == "y")
    assert outputs.described["y"].kind == "values"
    reference = next(iter(outputs.store))["y"]
    pair = outputs.pair(0, "y", {"y": reference}, reference)
    assert pair.reference.dtype == np.float64


def test_labels_are_compared_as_they_are(tmp_path: Path) -> None:
    text = "g (float[N, 8] x) => (int64[N] y) { z = MatMul(x, w) y = ArgMax<axis = 1, keepdims = 0>(z) }"
    model = parsed(text, w=WEIGHT)
    outputs = read(model, opened(model, tmp_path, x=X))
    large = np.full(32, 2**53 + 1)
    pair = outputs.pair(0, "y", {"y": large}, large - 1)
    assert (pair.reference != pair.candidate).all()


def test_text_is_compared(tmp_path: Path) -> None:
    text = "g (string[N] x) => (string[N] y, string[N] z) { y = Identity(x) s = Shape(x) z = Expand(c, s) }"
    model = parsed(text, c=np.array(["b"], object))
    data = opened(model, tmp_path, x=np.array(["a", "b", "c"] * 10))
    outputs = read(model, data)
    assert outputs.described["y"].kind == outputs.described["z"].kind == "labels"
    assert outputs.evidence().silent == {"y": "a copy of input x", "z": "constant"}


def test_evidence_counts_what_is_compared(tmp_path: Path) -> None:
    evidence = read(classifier(), opened(classifier(), tmp_path, x=X)).evidence()
    assert evidence.compared == ("y",) and not evidence.silent and evidence.is_enough
