"""drop-defaults: what goes is what the schema says, at the model's own opset."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

from tests.passes.exactly import check_same, floats, model, rewrite


def kept(line: str, *, opset: int = 17, rank: int = 4) -> list[str]:
    """The attributes that are left on the node that makes y; outputs are held against the original."""
    dims = ", ".join(["N", "4", "6", "6"][:rank])
    out = ", ".join("abcd"[:rank])
    proto = model(f"g (float[{dims}] x) => (float[{out}] y) {{ {line} }}", opset=opset)
    proto.graph.initializer.append(onnx.numpy_helper.from_array(floats(4, 4, 3, 3), "w"))
    done = rewrite(proto, "drop-defaults")
    check_same(done, {"x": floats(2, 4, 6, 6)[(slice(None),) * min(rank, 4) + (0,) * (4 - rank)]})
    return [each.name for each in done.graph.node[-1].attribute]


@pytest.mark.parametrize(
    ("line", "names"),
    [
        ("y = Conv <group = 1, strides = [1, 1], pads = [0, 0, 0, 0], kernel_shape = [3, 3]> (x, w)", []),
        ("y = Conv <pads = [0, 0, 1, 0], dilations = [1, 2]> (x, w)", ["pads", "dilations"]),
        ("y = Conv <auto_pad = \"SAME_UPPER\", strides = [1, 1]> (x, w)", ["auto_pad"]),
        ("y = ConvTranspose <output_padding = [0, 0], strides = [1, 1]> (x, w)", []),
        ("y = MaxPool <kernel_shape = [2, 2], strides = [1, 1], ceil_mode = 0> (x)", ["kernel_shape"]),
        ("y = Transpose <perm = [3, 2, 1, 0]> (x)", []),
        ("y = Transpose <perm = [0, 2, 1, 3]> (x)", ["perm"]),
        ("y = LeakyRelu <alpha = 0.01> (x)", []),
        ("y = LeakyRelu <alpha = 0.02> (x)", ["alpha"]),
        ("y = Concat <axis = 0> (x, x)", ["axis"]),  # required
    ],
)  # fmt: skip
def test_drops_what_absence_says(line: str, names: list[str]) -> None:
    assert kept(line) == names


@pytest.mark.parametrize(("opset", "axis", "names"), [(12, 1, []), (12, -1, ["axis"]), (13, 1, ["axis"]), (13, -1, [])])
def test_uses_the_default_of_the_opset(opset: int, axis: int, names: list[str]) -> None:
    assert kept(f"y = Softmax <axis = {axis}> (x)", opset=opset) == names


def test_keeps_the_kernel_shape_of_a_weight_that_is_computed() -> None:
    assert kept("v = Relu(w) y = Conv <kernel_shape = [3, 3]> (x, v)") == ["kernel_shape"]


def test_leaves_references_and_other_domains() -> None:
    body = """g (float[3] x) => (float[3] y) { y = local.f <alpha = 0.01> (x) }
        <domain: "local", opset_import: ["" : 17]> f <alpha> (a) => (b) { b = LeakyRelu <alpha: float = @alpha> (a) }"""
    done = rewrite(model(body, more=', "local" : 1'), "drop-defaults")
    assert not done.outcome.changed
    check_same(done, {"x": np.array([-1, 0, 1], np.float32)})
