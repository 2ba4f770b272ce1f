"""Small models and their data, for the tests of verification."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import numpy_helper

from onnxcomp.calibration import CalibrationData
from onnxcomp.model import Model, load
from onnxcomp.target import Target
from onnxcomp.verify.reading.outputs import Outputs
from onnxcomp.verify.reference import OutputStore, flatten, layout_of

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


def ran(model: Model, data: CalibrationData) -> list[dict[str, np.ndarray]]:
    """The model's outputs in each batch."""
    with model.opened_on(CPU.session) as session:
        return [flatten(session.run(feeds)) for feeds in data.batches()]


def read(model: Model, data: CalibrationData, **options: Any) -> Outputs:
    """The model's outputs as a verifier reads them."""
    store = OutputStore()
    store.extend(ran(model, data))
    with model.opened_on(CPU.session) as session:
        specs = {spec.name: spec for spec in session.outputs}
    return Outputs(data, [layout_of(batch) for batch in data.labelled_batches()], store, specs, **options)
