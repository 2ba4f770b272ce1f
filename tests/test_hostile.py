"""Whatever a file holds, it is read, or refused in one line: no traceback, nothing that reaches a terminal."""

from __future__ import annotations

import json
import random
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import parser

import onnxcomp
from onnxcomp.calibration import CalibrationData
from onnxcomp.errors import OnnxcompError
from onnxcomp.model import load
from onnxcomp.receipt import Receipt
from onnxcomp.runtime import ValueSpec

from .hostile import FLOATS, TEXTS, WHOLE, changed_bytes, changed_fields, structure_of
from .test_receipt import receipt

MODELS = Path(__file__).parents[1] / "models"
TEXT = """
<ir_version: 8, opset_import: ["" : 17]>
net (float[N,3,8,8] x) => (float[N,4] y) {
  c = Conv <pads = [1, 1, 1, 1]> (x, W1)
  n = BatchNormalization (c, scale, bias, mean, var)
  r = Relu (n)
  p = GlobalAveragePool (r)
  f = Flatten (p)
  y = Gemm <transB = 1> (f, W2, B2)
}
"""
SHAPES = {"W1": (8, 3, 3, 3), "scale": (8,), "bias": (8,), "mean": (8,), "var": (8,), "W2": (4, 8), "B2": (4,)}


def small_network() -> bytes:
    model = parser.parse_model(TEXT)
    rng = np.random.default_rng(0)
    for name, shape in SHAPES.items():
        values = np.abs(rng.standard_normal(shape)).astype(np.float32)
        model.graph.initializer.append(onnx.numpy_helper.from_array(values, name))
    return model.SerializeToString()


def compact_network() -> bytes:
    """The small network as onnxcomp stores it, with encodings in its metadata."""
    return onnxcomp.optimize(load(small_network()), recipe="small", measure=False).model.to_bytes()


def outlive(content: bytes) -> str:
    """Optimize what a file holds; how it ended, where that is as it should."""
    try:
        onnxcomp.optimize(load(content), recipe="lossless", measure=False)
    except OnnxcompError as error:
        assert "\n" not in str(error)
        return "refused"
    except MemoryError:
        return "refused"
    return "optimized"


def outlive_changes(content: bytes, rng: random.Random, count: int) -> set[str]:
    places = structure_of(content)
    found = set()
    for _ in range(count):
        changed = changed_fields(content, rng) if rng.random() < 0.5 else changed_bytes(content, places, rng)
        try:
            found.add(outlive(changed))
        except Exception as error:
            error.add_note(f"the model, in hexadecimal: {changed.hex()[:20_000]}")
            raise
    return found


def test_changed_models_are_refused_in_one_line() -> None:
    assert outlive_changes(small_network(), random.Random(0), 50) == {"refused", "optimized"}


@pytest.mark.slow
@pytest.mark.parametrize("name", ["small", "compact", "silero_vad", "ppocr_cls", "resnet8"])
def test_many_changed_models_are_refused_in_one_line(name: str) -> None:
    made = {"small": small_network, "compact": compact_network}
    content = made[name]() if name in made else (MODELS / f"{name}.onnx").read_bytes()
    count = 150 if name in made else 12
    assert outlive_changes(content, random.Random(name), count) == {"refused", "optimized"}


@pytest.mark.parametrize("packed", [False, True])
def test_changed_calibration_data_are_refused_in_one_line(packed: bool, tmp_path: Path) -> None:
    path = tmp_path / "c.npz"
    values = np.random.default_rng(0).standard_normal((64, 4)).astype(np.float32)
    (np.savez_compressed if packed else np.savez)(path, x=values)
    content, rng = path.read_bytes(), random.Random(0)
    headers = [*range(200), *range(len(content) - 120, len(content))]
    inputs = [ValueSpec("x", "tensor(float)", ("N", 4))]
    for _ in range(300):
        path.write_bytes(changed_bytes(content, headers, rng))
        try:
            next(CalibrationData.open(path, inputs).batches())
        except OnnxcompError as error:
            assert "\n" not in str(error)


def test_changed_receipts_are_refused_in_one_line(tmp_path: Path) -> None:
    path, rng = tmp_path / "receipt.json", random.Random(0)
    for _ in range(500):
        content = json.loads(receipt().to_json())
        part = rng.choice([content, content["steps"][0], content["applied"][0], content["metric"], content["data"]])
        part[rng.choice(list(part))] = rng.choice([None, [], {}, [[]], {"a": []}, True, *TEXTS, *FLOATS, *WHOLE])
        path.write_text(json.dumps(content))
        try:
            Receipt.read(path).to_json()
        except OnnxcompError as error:
            assert "\n" not in str(error)
