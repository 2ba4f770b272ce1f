"""Importances by gradients: taylor where units are cut, fisher where values become zero or get levels."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from onnxcomp.calibration import CalibrationData
from onnxcomp.contract import Context
from onnxcomp.model import load
from onnxcomp.runtime import Session
from onnxcomp.training.backward.rule import RULES
from onnxcomp.training.setup import TrainingSetup
from tests.passes.exactly import floats, model, rewrite

Array = np.ndarray[Any, Any]
ONE_BY_TAYLOR: dict[str, Any] = {"importance": "taylor", "ratio": 0.125, "repair": False}
BODY = "g (float[N, 6] x) => (float[N, 3] y) {{ a = Gemm(x, w0, b0) h = {op}(a) y = Gemm(h, w1, b1) }}"


def mlp(w1: Array, op: str = "Relu") -> onnx.ModelProto:
    proto = model(BODY.format(op=op))
    held = {"w0": floats(6, 8, seed=1), "b0": floats(8, seed=2), "w1": w1, "b1": floats(3, seed=4)}
    proto.graph.initializer.extend(numpy_helper.from_array(each, name) for name, each in held.items())
    return proto


def context(proto: onnx.ModelProto, folder: Path) -> Context:
    np.savez(folder / "calib.npz", x=floats(64, 6, seed=5))
    data = CalibrationData.open(folder / "calib.npz", Session(load(proto).to_bytes()).inputs)
    return Context(calibration=data, training=TrainingSetup(engine="ort"))


def with_dead(unit: int, size: float = 0.0) -> Array:
    w1 = floats(8, 3, seed=3)
    w1[unit] *= size
    return w1


def test_by_taylor_units_go_first_whose_outgoing_weights_are_zero(tmp_path: Path) -> None:
    proto = mlp(with_dead(5))
    done = rewrite(proto, "prune-channels", context=context(proto, tmp_path), **ONE_BY_TAYLOR)
    kept = numpy_helper.to_array(next(each for each in done.graph.initializer if each.name == "w1"))
    np.testing.assert_array_equal(kept, np.delete(with_dead(5), 5, axis=0))


def test_by_taylor_a_large_unit_of_no_effect_goes_before_a_small_one_of_some(tmp_path: Path) -> None:
    w1 = with_dead(2, 1e-4)
    proto = mlp(w1)
    done = rewrite(proto, "prune-channels", context=context(proto, tmp_path), **ONE_BY_TAYLOR)
    kept = numpy_helper.to_array(next(each for each in done.graph.initializer if each.name == "w1"))
    np.testing.assert_array_equal(kept, np.delete(w1, 2, axis=0))


def test_by_fisher_outputs_that_count_little_lose_their_values_first(tmp_path: Path) -> None:
    proto = mlp(with_dead(5, 1e-4))
    done = rewrite(
        proto, "prune-weights", context=context(proto, tmp_path), importance="fisher", sparsity=0.125, compensate=False
    )
    w0 = done.initializer("w0")
    assert (w0[:, 5] == 0).all()
    assert np.count_nonzero(w0) == 42


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("prune-weights", {"importance": "fisher", "scope": "model"}),
        ("prune-nm", {"importance": "fisher"}),
        ("cluster-weights", {"algorithm": "fisher", "bits": 2.0}),
        ("cluster-weights", {"algorithm": "fisher", "bits": 2.0, "sparsity": 0.5}),
        ("prune-channels", {"importance": "taylor"}),
    ],
)
def test_without_derivatives_a_pass_names_the_operator_and_does_without(
    name: str, options: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delitem(RULES, ("", "Tanh"))
    proto = mlp(with_dead(5, 0.5), "Tanh" if name != "prune-channels" else "Relu")
    if name == "prune-channels":
        proto.graph.node[-1].output[0] = "z"
        proto.graph.node.append(onnx.helper.make_node("Tanh", ["z"], ["y"]))
    done = rewrite(proto, name, context=context(proto, tmp_path), **options)
    assert done.outcome.changed
    assert any("without gradients" in each.what and "Tanh" in each.what for each in done.outcome.changed)


def test_by_fisher_is_the_same_again(tmp_path: Path) -> None:
    proto = mlp(with_dead(5, 0.5))
    runs = [
        rewrite(proto, "cluster-weights", context=context(proto, tmp_path), algorithm="fisher", bits=2.0)
        for _ in range(2)
    ]
    made = [each.initializer("w0") for each in runs]
    assert np.array_equal(*made)
    assert np.unique(made[0]).size <= 4
