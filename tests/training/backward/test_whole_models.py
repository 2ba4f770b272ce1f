"""The project's own models: the slope of a loss along its gradient is the gradient's squared length."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, helper

from onnxcomp.graph.ir.reader import open_graph
from onnxcomp.model import Model, load
from onnxcomp.training.backward.engine import BackwardEngine
from tests.training.backward.drawn import THOROUGH

MODELS = Path(__file__).parents[3] / "models"
RNG = np.random.default_rng(0)
LONG = [pytest.mark.slow, pytest.mark.skipif(not THOROUGH, reason="takes long: make test-thorough")]


def noise(*shape: int) -> Any:
    return RNG.normal(size=shape).astype(np.float32)


FEEDS = {
    "lenet5": {"input": noise(4, 1, 28, 28)},
    "resnet8": {"input_1": noise(4, 32, 32, 3)},
    "ppocr_cls": {"x": noise(2, 3, 48, 192)},
    "silero_vad": {"input": 0.1 * noise(2, 576), "state": 0.1 * noise(2, 2, 128), "sr": np.array(16000)},
}


def with_loss(model: Model) -> Model:
    """The mean square of the float outputs as a further output."""
    proto = type(model.proto)()
    proto.CopyFrom(model.proto)
    graph, terms = proto.graph, []
    for name in [each.name for each in graph.output if each.type.tensor_type.elem_type == TensorProto.FLOAT]:
        graph.node.append(helper.make_node("Mul", [name, name], [f"{name}_squared"]))
        graph.node.append(helper.make_node("ReduceMean", [f"{name}_squared"], [f"{name}_mean"], keepdims=0))
        terms.append(f"{name}_mean")
    graph.node.append(helper.make_node("Sum", terms, ["the_loss"]))
    graph.output.append(helper.make_tensor_value_info("the_loss", TensorProto.FLOAT, ()))
    return model.with_proto(proto)


@pytest.mark.parametrize(
    "name", ["lenet5", "resnet8", *(pytest.param(name, marks=LONG) for name in ("ppocr_cls", "silero_vad"))]
)
def test_slope_along_the_gradient(name: str) -> None:
    model = with_loss(load(MODELS / f"{name}.onnx"))
    constants = [each for each in open_graph(model).main.constants if each.dtype == np.float32 and each.size > 1]
    values = {each.name: np.array(each.values) for each in constants}
    feeds = {each: FEEDS[name][each] for each in FEEDS[name]}
    engine = BackwardEngine(model, "the_loss", list(values), threads=1)
    loss, gradients = engine.loss_and_gradients(feeds, values)
    length = sum(float(np.sum(each.astype(np.float64) ** 2)) for each in gradients.values())
    step = 1e-3 * abs(loss) / length  # far enough for float32, near enough for a line
    ends = [
        engine.forward(feeds, {key: value + np.float32(sign * step) * gradients[key] for key, value in values.items()})
        for sign in (1, -1)
    ]
    slope = (float(ends[0]["the_loss"]) - float(ends[1]["the_loss"])) / (2 * step)
    assert length > 0
    assert abs(slope / length - 1.0) < 0.02
