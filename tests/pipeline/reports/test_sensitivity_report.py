"""The table of sensitivities: of a net whose one weight the outputs hardly depend on."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from onnxcomp.errors import CalibrationError
from onnxcomp.model import Model, load
from onnxcomp.pipeline.reports.sensitivity_report import measure_sensitivity

# Both products have 32 x 32 weights; the second one's output is added with a hundredth of the first one's weight.
TEXT = """<ir_version: 8, opset_import: ["" : 17]> g (float[N, 32] x) => (float[N, 32] y) {
    loud = MatMul(x, W)
    soft = MatMul(x, V)
    less = Mul(soft, c)
    y = Add(loud, less)
}"""


def net() -> Model:
    proto = onnx.parser.parse_model(TEXT)
    rng = np.random.default_rng(1)
    for name in ("W", "V"):
        proto.graph.initializer.append(numpy_helper.from_array(rng.standard_normal((32, 32)).astype(np.float32), name))
    proto.graph.initializer.append(numpy_helper.from_array(np.float32([0.01]), "c"))
    return load(proto)


@pytest.fixture
def calib(tmp_path: Path) -> str:
    np.savez(tmp_path / "c.npz", x=np.random.default_rng(3).standard_normal((200, 32)).astype(np.float32))
    return str(tmp_path / "c.npz")


def test_the_weight_that_the_outputs_depend_on_comes_first_and_gets_more_bits(calib: str) -> None:
    loud, soft = measure_sensitivity(net(), calibration=calib).weights
    assert (loud.name, soft.name) == ("W", "V")
    # The output is W x + V x / 100, so a change of V counts a ten-thousandth.
    assert soft.influence / loud.influence == pytest.approx(1e-4, rel=0.8)
    assert loud.bits is not None and soft.bits is not None and 8 >= loud.bits > soft.bits >= 2


def test_excluded_weights_are_not_listed(calib: str) -> None:
    assert [each.name for each in measure_sensitivity(net(), calibration=calib, exclude=("W",)).weights] == ["V"]


def test_it_is_measured_on_data() -> None:
    with pytest.raises(CalibrationError, match="--calib-data"):
        measure_sensitivity(net(), calibration=None)
