"""cluster-weights with calibration data: what the outputs lose, and what stays as it was promised."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from onnxcomp.contract import Context
from onnxcomp.errors import CalibrationError
from onnxcomp.graph.ir.reader import open_graph
from onnxcomp.graph.weights.roles import weights
from onnxcomp.model import Model
from onnxcomp.pipeline.apply import apply_pass
from onnxcomp.registry import get_pass
from onnxcomp.runtime import Session
from tests.passes.test_round_weights import data_for, model_of


def clustered(model: Model, folder: Path | None, **fields: Any) -> Model:
    data = None if folder is None else data_for(model, folder)
    return apply_pass(model, get_pass("cluster-weights")(**fields), Context(calibration=data))[0]


def lost(model: Model, other: Model, folder: Path) -> float:
    """The squared error of the outputs on samples that calibration did not see, relative to their power."""
    error = power = 0.0
    for feeds in data_for(model, folder, seed=7).batches():
        wanted, got = (Session(each.to_bytes()).run(feeds)["y"] for each in (model, other))
        error += float(np.square(np.asarray(got) - np.asarray(wanted)).sum())
        power += float(np.square(np.asarray(wanted)).sum())
    return error / power


def values_of(model: Model) -> np.ndarray:
    return np.asarray(next(each for each in weights(open_graph(model)) if each.name == "w").values)


@pytest.mark.parametrize("op", ["MatMul", "Gemm", "Conv", "grouped", "ConvTranspose"])
@pytest.mark.parametrize("fields", [{"bits": 2.0}, {"bits": 2.0, "granularity": "tensor"}])
def test_outputs_lose_less_than_by_nearest_levels(op: str, fields: dict[str, Any], tmp_path: Path) -> None:
    model = model_of(op)
    near = clustered(model, tmp_path, algorithm="nearest", **fields)
    better = clustered(model, tmp_path, algorithm="output", **fields)
    assert lost(model, better, tmp_path) < 0.8 * lost(model, near, tmp_path)
    assert np.unique(values_of(better)).size <= 4 * (values_of(better).shape[0] + values_of(better).shape[1])
    assert better.encodings["w"].encode(values_of(better)) is not None


def test_zeros_are_as_many_as_asked(tmp_path: Path) -> None:
    model = model_of("MatMul")
    values = values_of(clustered(model, tmp_path, bits=2.0, sparsity=0.5))
    assert 0.5 <= np.mean(values == 0) < 0.6


def test_without_data_the_nearest_level_is_taken(tmp_path: Path) -> None:
    model = model_of("MatMul")
    plain, nearest = clustered(model, None, bits=3.0), clustered(model, tmp_path, bits=3.0, algorithm="nearest")
    np.testing.assert_array_equal(values_of(plain), values_of(nearest))


def test_output_error_needs_data() -> None:
    with pytest.raises(CalibrationError, match="needs calibration data"):
        clustered(model_of("MatMul"), None, algorithm="output")
