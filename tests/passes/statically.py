"""Apply quantize-static to a model written as text, and hold the result's outputs near the original's."""

import functools
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper, parser

from onnxcomp.calibration import CalibrationData, Group
from onnxcomp.calibration.data.sample_axes import WHOLE
from onnxcomp.contract import Context, Outcome
from onnxcomp.graph.ir.reader import close_graph, open_graph
from onnxcomp.model import Model, load
from onnxcomp.registry import get_pass
from onnxcomp.runtime import Session
from onnxcomp.target import QuantizationStyle, Target

Array = NDArray[Any]
QuantizeStatic = get_pass("quantize-static")


def drawn(*shape: int, seed: int = 7) -> Array:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def model_of(text: str, opset: int = 17, **constants: Array) -> Model:
    """``text`` is the graph, ``constants`` are its initializers."""
    proto = parser.parse_model(f'<ir_version: 8, opset_import: ["" : {opset}]>\n{text}')
    for name, values in constants.items():
        proto.graph.initializer.append(numpy_helper.from_array(values, name))
    return load(proto)


def calibration(model: Model, *feeds: dict[str, Array]) -> CalibrationData:
    groups = tuple(Group(f"{i}", functools.partial(dict, each), WHOLE) for i, each in enumerate(feeds))
    order = np.array([[i, 0] for i in range(len(feeds))], np.int64)
    return CalibrationData(source="test", inputs=Session(model.to_bytes()).inputs, groups=groups, order=order)


def quantized(
    model: Model, *feeds: dict[str, Array], context: dict[str, Any] | None = None, **fields: Any
) -> tuple[Model, Outcome]:
    graph = open_graph(model)
    data = calibration(model, *feeds)
    outcome = QuantizeStatic(**fields).apply(graph, Context(calibration=data, **(context or {})))
    result = close_graph(graph)
    onnx.checker.check_model(result.proto, full_check=True)
    return result, outcome


def assert_close(model: Model, result: Model, feeds: dict[str, Array], share: float = 0.03) -> None:
    """8 bits keep a few layers within some hundredths of the outputs' range."""
    before, after = (Session(each.to_bytes()).run(feeds) for each in (model, result))
    assert list(before) == list(after)
    for name, value in before.items():
        assert after[name].dtype == value.dtype and after[name].shape == value.shape
        assert np.abs(after[name] - value).max() <= share * np.ptp(value)


def styled(**style: Any) -> Target:
    return Target(name="other", provider="CPUExecutionProvider", style=QuantizationStyle(**style))
