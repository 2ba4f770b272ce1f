"""Small models and their data, for the tests of verification."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import numpy_helper

from onnxcomp.calibration import CalibrationData
from onnxcomp.model import Model, load
from onnxcomp.target import Target

CPU = Target.of("cpu")
RNG = np.random.default_rng(3)
WEIGHT = (RNG.normal(size=(8, 5)) * 2).astype(np.float32)
X = RNG.normal(size=(120, 8)).astype(np.float32)


def parsed(text: str, **values: np.ndarray) -> Model:
    proto = onnx.parser.parse_model(f'<ir_version: 8, opset_import: ["" : 17]> {text}')
    proto.graph.initializer.extend(numpy_helper.from_array(value, name) for name, value in values.items())
    return load(proto)


def classifier(weight: np.ndarray = WEIGHT, text: str = "") -> Model:
    return parsed(text or "g (float[N, 8] x) => (float[N, 5] y) { z = MatMul(x, w) y = Softmax(z) }", w=weight)


def opened(model: Model, folder: Path, **arrays: np.ndarray) -> CalibrationData:
    np.savez(folder / "c.npz", **arrays)
    with model.opened_on(CPU.session) as session:
        return CalibrationData.open(folder / "c.npz", session.inputs, run=session.run)


def noisy(weight: np.ndarray, share: float) -> np.ndarray:
    return (weight * (1 + share * np.random.default_rng(1).normal(size=weight.shape))).astype(np.float32)
