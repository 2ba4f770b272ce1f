"""Gradients of random directions against J^T H J by differences of the outputs, in float64, for small models."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import numpy_helper

from onnxcomp.calibration import CalibrationData
from onnxcomp.contract import Context
from onnxcomp.contract.influence import fisher
from onnxcomp.graph.ir.reader import open_graph
from onnxcomp.graph.weights.roles import weights
from onnxcomp.model import Model, load
from onnxcomp.runtime import Session
from onnxcomp.training.backward.rule import RULES
from onnxcomp.training.influence import GradientDraws, squared_gradients
from onnxcomp.training.setup import TrainingSetup
from tests.passes.exactly import floats, model

Array = np.ndarray[Any, Any]
MLP = """g (float[N, 3] x) => (float[N, 4] y) {{ a = MatMul(x, w0) h = Tanh(a) z = MatMul(h, w1) y = {end}(z) }}"""
STEP = 1e-5
SAMPLES = floats(24, 3, seed=3)
W0, W1 = floats(3, 5, seed=1), floats(5, 4, seed=2)


def mlp(end: str, w1: Array = W1) -> Model:
    return built(MLP.format(end=end), w1)


def built(text: str, w1: Array = W1) -> Model:
    proto = model(text)
    proto.graph.initializer.extend(numpy_helper.from_array(each, name) for name, each in (("w0", W0), ("w1", w1)))
    return load(proto)


def data(of: Model, folder: Path, samples: Array = SAMPLES) -> CalibrationData:
    np.savez(folder / "calib.npz", x=samples)
    return CalibrationData.open(folder / "calib.npz", Session(of.to_bytes()).inputs)


def scores(w0: Array, w1: Array) -> Array:
    return np.tanh(SAMPLES.astype(np.float64) @ w0) @ w1


def softmax(z: Array) -> Array:
    e = np.exp(z - z.max(axis=-1, keepdims=True))
    return e / e.sum(axis=-1, keepdims=True)


def exact(metric: Any) -> dict[str, Array]:
    """The diagonal of the mean of J_b^T H_b J_b. metric: H of each sample (N, 4, 4)."""
    start = {"w0": W0.astype(np.float64), "w1": W1.astype(np.float64)}
    found = {}
    for name, value in start.items():
        own = np.zeros(value.shape)
        for index in np.ndindex(value.shape):
            moved = []
            for sign in (1, -1):
                changed = {key: each.copy() for key, each in start.items()}
                changed[name][index] += sign * STEP
                moved.append(scores(**changed))
            slope = (moved[0] - moved[1]) / (2 * STEP)
            own[index] = np.einsum("ni,nij,nj->n", slope, metric, slope).mean()
        found[name] = own
    return found


def estimated(of: Model, folder: Path, **options: Any) -> dict[str, Array]:
    return squared_gradients(GradientDraws(of, ["w0", "w1"], data(of, folder), Session, engine="ort", **options))


def assert_proportional(found: dict[str, Array], wanted: dict[str, Array]) -> None:
    joined = [np.concatenate([each[name].ravel() for name in ("w0", "w1")]) for each in (found, wanted)]
    # 1500 draws: a value is off by the square root of 2 / 1500, that is 3.7%, and by four times that in 1 of 10,000.
    np.testing.assert_allclose(joined[0] / joined[0].sum(), joined[1] / joined[1].sum(), rtol=0.15)


def test_of_classes_it_converges_to_the_fisher_matrix(tmp_path: Path) -> None:
    p = softmax(scores(W0, W1))
    metric = np.einsum("ni,ij->nij", p, np.eye(4)) - np.einsum("ni,nj->nij", p, p)
    assert_proportional(estimated(mlp("Softmax"), tmp_path, passes=1500), exact(metric))


def test_of_values_it_converges_to_the_gauss_newton_matrix(tmp_path: Path) -> None:
    found = estimated(mlp("Identity"), tmp_path, passes=1500, asked={"y": "values"})
    variance = scores(W0, W1).var(axis=0)
    wanted = [exact(np.broadcast_to(np.diag(each), (24, 4, 4))) for each in (1 / variance, np.ones(4))]
    try:  # in units of each column's spread, or of all columns', as verification reads this output
        assert_proportional(found, wanted[0])
    except AssertionError:
        assert_proportional(found, wanted[1])


def test_half_of_it_tells_what_a_small_change_costs(tmp_path: Path) -> None:
    p = softmax(scores(W0, W1))
    entropy = float(-(p * np.log(p)).sum(axis=-1).mean())
    found = estimated(mlp("Softmax"), tmp_path, passes=1500)["w1"]
    for index in ((0, 0), (2, 1), (4, 3)):
        changed = W1.astype(np.float64)
        changed[index] += 0.01
        divergence = (p * np.log(p / softmax(scores(W0.astype(np.float64), changed)))).sum(axis=-1).mean() / entropy
        assert 0.5 * 0.01**2 * found[index] == pytest.approx(divergence, rel=0.15)


def test_the_same_seed_gives_the_same_and_another_does_not(tmp_path: Path) -> None:
    runs = [estimated(mlp("Softmax"), tmp_path, passes=4, seed=seed) for seed in (1, 1, 2)]
    assert np.array_equal(runs[0]["w0"], runs[1]["w0"])
    assert not np.array_equal(runs[0]["w0"], runs[2]["w0"])


def test_weights_that_no_output_depends_on_have_zeros(tmp_path: Path) -> None:
    dead = W1.copy()
    dead[1] = 0
    found = estimated(mlp("Softmax", dead), tmp_path, passes=8)
    assert (found["w0"][:, 1] == 0).all()
    assert (found["w0"][:, 0] > 0).all()


def test_nothing_is_told_where_time_is_up(tmp_path: Path) -> None:
    assert estimated(mlp("Softmax"), tmp_path, is_over=lambda: True) == {}


def context(of: Model, folder: Path, **options: Any) -> Context:
    return Context(calibration=data(of, folder), training=TrainingSetup(engine="ort"), **options)


def test_the_model_remembers_what_was_drawn(tmp_path: Path) -> None:
    own = mlp("Softmax")
    told = []
    given = context(own, tmp_path, progress=lambda done, total, what: told.append(what))
    first = fisher(open_graph(own), given)
    count = len(told)
    assert count > 0
    assert fisher(open_graph(own), given) is first
    assert len(told) == count


def test_an_operator_without_a_derivative_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(RULES, ("", "Tanh"))
    own = built("""g (float[N, 3] x) => (float[N, 4] y) { a = MatMul(x, w0) h = Tanh(a) y = MatMul(h, w1) }""")
    found = fisher(open_graph(own), context(own, tmp_path))
    assert "Tanh" in found.lack
    assert not found.squares


def test_without_data_it_says_so() -> None:
    own = mlp("Softmax")
    assert "no data" in fisher(open_graph(own), Context()).lack
    assert len(weights(open_graph(own))) == 2
