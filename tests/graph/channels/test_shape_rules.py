"""What moves elements moves channels alike: held against ONNX's reference, run on each element's channel.

a[n, c, h, w] = c + 1  ->  the operator  ->  the channel of each element of y, 0 for what is of none
"""

from __future__ import annotations

import re

import numpy as np
import onnx
import pytest
from onnx.reference import ReferenceEvaluator

from onnxcomp.graph.channels.groups import Channels
from onnxcomp.graph.channels.ids import padded
from onnxcomp.graph.channels.trace import trace_channels
from onnxcomp.graph.ir.reader import open_graph
from onnxcomp.model import load
from tests.passes.exactly import floats, model

CHANNELS = 4
PLACES = "N, C, H, W"
CROP = 'coordinate_transformation_mode = "tf_crop_and_resize"'


def written(head: str, body: str, out: str, opset: int) -> onnx.ModelProto:
    """The model, with a constant for each ``{1, 2}`` of the body; floats have a point, a scalar is ``{=1}``."""
    constants: dict[str, onnx.TensorProto] = {}

    def constant(found: re.Match[str]) -> str:
        name, stated = f"c{len(constants)}", found.group(1)
        rows = [[float(each) for each in row.split(",") if each.strip()] for row in stated.strip("=").split(";")]
        values = np.array(rows if len(rows) > 1 else rows[0]).astype(np.float32 if "." in stated else np.int64)
        constants[name] = onnx.numpy_helper.from_array(values.reshape(()) if "=" in stated else values, name)
        return name

    outputs = ", ".join(f"float[{each}] {name}" for name, each in zip(("y", "z"), out.split(";"), strict=False))
    body = re.sub(r"{(.*?)}", constant, body)
    proto = model(f"g ({head}, int64[1] given) => ({outputs}) {{ {body} }}", opset=opset)
    proto.graph.initializer.extend(constants.values())
    return proto


def traced(body: str, out: str, opset: int) -> Channels:
    """With ``a`` made by a convolution."""
    proto = written("float[2, 4, 3, 3] x, float[2, K, 3, 3] u", f"a = Conv(x, w) {body}", out, opset)
    proto.graph.initializer.append(onnx.numpy_helper.from_array(floats(CHANNELS, 4, 1, 1), "w"))
    return trace_channels(open_graph(load(proto)))


def followed(channels: Channels) -> dict[str, np.ndarray]:
    """The channels of tensors, counted from 1, as far as the analysis follows them."""
    first = int(channels.sources[0].numbers.min())
    return {
        tensor.name: padded(numbers, rank or 0) - first + 1 for tensor, (_, numbers, rank) in channels.tensors.items()
    }


def moved(body: str, out: str, opset: int) -> dict[str, np.ndarray]:
    """For each output the channels of its elements by ONNX's reference."""
    proto = written("float[2, 4, 3, 3] a", body, out, opset)
    labels = np.broadcast_to(np.arange(1, CHANNELS + 1).reshape(-1, 1, 1), (2, CHANNELS, 3, 3)).astype(np.float32)
    results = ReferenceEvaluator(proto).run(None, {"a": labels, "given": np.array([1])})
    return {info.name: result for info, result in zip(proto.graph.output, results, strict=True)}


MOVED = [
    ("y = Transpose(a)", "W, H, C, N", 17),
    ("y = Transpose <perm = [1, 0, 3, 2]> (a)", "C, N, W, H", 17),
    ("y = Reshape(a, {2, 4, 9})", "N, C, L", 17),
    ("y = Reshape(a, {2, -1})", "N, L", 17),
    ("y = Reshape(a, {2, 6, 6})", "N, A, B", 17),
    ("y = Reshape(a, {8, 3, 3})", "A, H, W", 17),
    ("y = Reshape(a, {2, 2, 2, 3, 3})", "N, A, B, H, W", 17),
    ("y = Flatten(a)", "N, L", 17),
    ("m = GlobalAveragePool(a) y = Squeeze(m, {2, 3})", "N, C", 17),
    ("m = GlobalAveragePool(a) y = Squeeze(m, {-2, -1})", "N, C", 17),
    ("m = GlobalMaxPool(a) y = Squeeze(m)", "N, C", 17),
    ("m = GlobalMaxPool(a) y = Squeeze <axes = [3]> (m)", "N, C, H", 11),
    ("y = Unsqueeze(a, {1})", "N, A, C, H, W", 17),
    ("y = Unsqueeze(a, {1, 3})", "N, A, C, B, H, W", 17),
    ("y = Unsqueeze(a, {-1})", "N, C, H, W, A", 17),
    ("y = Unsqueeze <axes = [2]> (a)", "N, C, A, H, W", 11),
    ("y = MaxPool <kernel_shape = [2, 2]> (a)", PLACES, 17),
    ("y = AveragePool <kernel_shape = [3, 1]> (a)", PLACES, 17),
    ("r = Reshape(a, {2, 4, 9}) y = MaxPool <kernel_shape = [2]> (r)", "N, C, L", 17),
    ("y = ReduceMean <axes = [2, 3], keepdims = 0> (a)", "N, C", 17),
    ("y = ReduceMean <axes = [-1]> (a)", PLACES, 17),
    ("y = ReduceMax <axes = [0], keepdims = 0> (a)", "C, H, W", 17),
    ("y = ReduceMean <keepdims = 0> (a, {-2, -1})", "N, C", 18),
    ("y = ReduceMean <noop_with_empty_axes = 1> (a, {})", PLACES, 18),
    ("y = ReduceSum <noop_with_empty_axes = 1> (a)", PLACES, 18),
    ("y = Slice(a, {1}, {3}, {1})", PLACES, 17),
    ("y = Slice(a, {0}, {9e18}, {1}, {2})", PLACES, 17),
    ("y = Slice(a, {-1}, {-9}, {1}, {-1})", PLACES, 17),
    ("y = Slice(a, {2}, {0}, {1}, {-1})", PLACES, 17),
    ("y = Slice(a, {-3}, {-1}, {-3})", PLACES, 17),
    ("y = Slice(a, {0, 1}, {2, 3})", PLACES, 17),
    ("y = Slice(a, {0, 1}, {2, 3}, {1, 3})", PLACES, 17),
    ("y = Slice(a, given, {3}, {2})", PLACES, 17),
    ("y = Slice <starts = [1], ends = [4], axes = [1]> (a)", PLACES, 9),
    ("y = Slice <starts = [0, 2], ends = [2, 4]> (a)", PLACES, 9),
    ("y, z = Split <axis = 1> (a, {1, 3})", "N, A, H, W;N, B, H, W", 17),
    ("y, z = Split <axis = -3> (a)", "N, A, H, W;N, B, H, W", 17),
    ("y, z = Split <axis = 1, num_outputs = 2> (a)", "N, A, H, W;N, B, H, W", 18),
    ("y, z = Split <axis = 1, split = [3, 1]> (a)", "N, A, H, W;N, B, H, W", 11),
    ("y, z = Split <axis = 3> (a, {2, 1})", "N, C, H, A;N, C, H, B", 17),
    ("y, z = Split(a)", "A, C, H, W;B, C, H, W", 17),
    ("y = Gather <axis = 1> (a, {3, -4, 1})", PLACES, 17),
    ("y = Gather <axis = -3> (a, {=2})", "N, H, W", 17),
    ("y = Gather <axis = 1> (a, {0, 1; 3, 2})", "N, A, B, H, W", 17),
    ("y = Gather <axis = 2> (a, given)", PLACES, 17),
    ("y = Gather(a, {=1})", "C, H, W", 17),
    ("b = Slice(a, {1}, {3}, {1}) y = Concat <axis = 1> (b, a, b)", PLACES, 17),
    ("b = Slice(a, {1}, {3}, {1}) y = Concat <axis = -3> (b, a)", PLACES, 17),
    ("b = Slice(a, {2}, {3}, {2}) y = Concat <axis = 2> (b, a)", PLACES, 17),
    ("b = Slice(a, {1}, {2}, {1}) y = Concat <axis = 1> (b, b, b)", PLACES, 17),
    ("y = Expand(a, {5, 2, 4, 3, 3})", "A, N, C, H, W", 17),
    ("y = Resize(a, , {1., 1., 2., 2.})", PLACES, 17),
    ("y = Resize(a, , , {2, 4, 5, 3})", PLACES, 17),
    ("y = Pad(a, {0, 0, 1, 2, 0, 0, 0, 1})", PLACES, 17),
    ('y = Pad <mode = "edge"> (a, {0, 0, 1, 2, 0, 0, 0, 1}, {=6.})', PLACES, 17),
    ("y = Pad(a, {1, 0, 0, 2}, , {2, 3})", PLACES, 18),
    ("y = Pad(a, {1, 0, 0, 2}, , {-2, -1})", PLACES, 18),
]


@pytest.mark.parametrize(("body", "out", "opset"), MOVED)
def test_channels_go_where_the_elements_go(body: str, out: str, opset: int) -> None:
    found = followed(traced(body, out, opset))
    for name, expected in moved(body, out, opset).items():
        assert found[name].ndim == expected.ndim
        got = np.broadcast_to(found[name], expected.shape)
        np.testing.assert_array_equal(np.where(expected == 0, 0, got), expected)  # 0: what Pad puts there


MIXED = [
    ("y = ReduceMean <axes = [1]> (a)", PLACES, 17),
    ("y = ReduceMean(a)", PLACES, 17),
    ("y = ReduceMean(a, {})", PLACES, 18),
    ("y = ReduceMean(a, given)", PLACES, 18),
    ("y = Slice(a, given, {3}, {1})", PLACES, 17),
    ("y = Slice(a, {1}, given, {1})", PLACES, 17),
    ("y = Slice(a, {1}, {3}, given)", PLACES, 17),
    ("y = Slice(a, {0}, {4}, {1}, given)", PLACES, 17),
    ("s = Mul({1, 3}, given) y, z = Split <axis = 1> (a, s)", "N, A, H, W;N, B, H, W", 17),
    ("y = Gather <axis = 1> (a, given)", PLACES, 17),
    ("y = Gather <axis = 1> (a, {})", PLACES, 17),
    ("y = Resize(a, , {1., 2., 1., 1.})", "N, 8, H, W", 17),
    (f"y = Resize <{CROP}> (a, {{0., 0., 0., 0., 1., 1., 1., 1.}}, {{1., 1., 2., 2.}})", PLACES, 17),
    ("y = Pad(a, {0, 1, 0, 0, 0, 0, 0, 0})", PLACES, 17),
    ("y = Pad(a, {0, 0, 1, 2, 0, 0, 0, 1}, {=6.})", PLACES, 17),
    ('y = Pad <mode = "reflect"> (a, {0, 1, 0, 0, 0, 0, 0, 0})', PLACES, 17),
    ("y = Pad(a, {1, 0, 0, 2}, , {0, 1})", PLACES, 18),
    ("y = Concat <axis = 1> (a, u)", PLACES, 17),
]


@pytest.mark.parametrize(("body", "out", "opset"), MIXED)
def test_channels_that_are_mixed_or_moved_at_run_time_have_to_stay(body: str, out: str, opset: int) -> None:
    channels = traced(body, out, opset)
    assert not {"y", "z"} & followed(channels).keys()
    operator = re.findall(r"= ([A-Z]\w+)", body)[-1]
    assert channels.reason(channels.sources[0]).endswith(f"({operator}) reads its channels and cannot be scaled")
    assert not channels.groups()
