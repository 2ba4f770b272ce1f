"""Chains of full rank against the convolution that they take the place of, in ONNX Runtime, over all geometries."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from onnxcomp.graph.factors.conv_places import ConvPlace, conv_place
from onnxcomp.graph.ir.reader import close_graph, open_graph
from onnxcomp.graph.report.macs import count_macs
from onnxcomp.graph.weights.roles import weights
from onnxcomp.model import Model, load
from onnxcomp.numerics.structure.conv_fit import fitted
from onnxcomp.numerics.structure.conv_schemes import SCHEMES, full_ranks, is_apt
from onnxcomp.runtime import Session

Array = NDArray[Any]


def convolution(weight: Array, spatial: tuple[int, ...], *, bias: bool = True, **attributes: Any) -> Model:
    """y = Conv(x, W, b) with a batch of two; the channels of x follow from the weight and the groups."""
    channels = weight.shape[1] * attributes.get("group", 1)
    names = ["x", "W", "b"] if bias else ["x", "W"]
    held = [numpy_helper.from_array(weight, "W")]
    if bias:
        held.append(numpy_helper.from_array(np.arange(weight.shape[0], dtype=np.float32), "b"))
    graph = helper.make_graph(
        [helper.make_node("Conv", names, ["y"], "conv", **attributes)],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [2, channels, *spatial])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [f"d{at}" for at in range(weight.ndim)])],
        held,
    )
    return load(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8))


def taken_apart(model: Model, scheme: str, ranks: tuple[int, ...] | None = None) -> Model:
    """The model with its convolution in a chain, of full rank where none is given."""
    graph = open_graph(model)
    place = conv_place(weights(graph)[0])
    assert isinstance(place, ConvPlace)
    used = full_ranks(scheme, place.kernel) if ranks is None else ranks
    factors, _ = fitted(scheme, place.kernel, place.target, used)
    place.put(graph, scheme, used, factors)
    made = close_graph(graph)
    onnx.checker.check_model(made.proto, full_check=True)
    return made


def assert_same(model: Model, made: Model, spatial: tuple[int, ...]) -> None:
    """Factors in float32 differ from the kernel by rounding of sums of some hundred terms of size one."""
    channels = model.proto.graph.input[0].type.tensor_type.shape.dim[1].dim_value
    x = np.random.default_rng(1).standard_normal((2, channels, *spatial)).astype(np.float32)
    before, after = (Session(each.to_bytes()).run({"x": x})["y"] for each in (model, made))
    assert before.shape == after.shape
    np.testing.assert_allclose(after, before, rtol=0, atol=1e-4 * max(1.0, float(np.abs(before).max(initial=0))))


@st.composite
def geometries(draw: st.DrawFn) -> tuple[tuple[int, ...], tuple[int, ...], dict[str, Any]]:
    """The shape of a kernel, the spatial size of its input and what the convolution says."""
    rank = draw(st.integers(1, 3))
    extent = tuple(draw(st.integers(1, 4)) for _ in range(rank))
    group = draw(st.sampled_from([1, 1, 2, 3]))
    outputs, inputs = group * draw(st.integers(1, 3)), draw(st.integers(1, 3))
    strides = [draw(st.integers(1, 3)) for _ in range(rank)]
    said: dict[str, Any] = {"group": group, "strides": strides}
    kind = draw(st.sampled_from(["pads", "nothing", "VALID", "SAME_UPPER", "SAME_LOWER"]))
    if kind in ("pads", "nothing", "VALID"):
        said["dilations"] = [draw(st.integers(1, 2)) for _ in range(rank)]
    if kind == "pads":
        said["pads"] = [draw(st.integers(0, 2)) for _ in range(2 * rank)]
    elif kind != "nothing":
        said["auto_pad"] = kind
    if draw(st.booleans()):
        said["kernel_shape"] = list(extent)
    dilations = said.get("dilations", [1] * rank)
    reach = [(size - 1) * step + 1 for size, step in zip(extent, dilations, strict=True)]
    spatial = tuple(each + draw(st.integers(0, 4)) for each in reach)
    return (outputs, inputs, *extent), spatial, said


@pytest.mark.parametrize("scheme", SCHEMES)
@settings(max_examples=60, deadline=None)
@given(drawn=geometries(), bias=st.booleans(), seed=st.integers(0, 99))
def test_a_chain_of_full_rank_is_the_convolution(scheme: str, drawn: Any, bias: bool, seed: int) -> None:
    shape, spatial, said = drawn
    random = np.random.default_rng(seed)
    weight = random.standard_normal(shape).astype(np.float32)
    if scheme == "cp":  # of a rank that is known: what rank any kernel has nobody can say
        axes = "oixyz"[: len(shape)]
        parts = [random.standard_normal((size, 1)) for size in shape]
        weight = np.einsum(f"{','.join(each + 'r' for each in axes)}->{axes}", *parts).astype(np.float32)
    model = convolution(weight, spatial, bias=bias, **said)
    place = conv_place(weights(open_graph(model))[0]) if weight.size > 1 else None
    if not isinstance(place, ConvPlace) or not is_apt(scheme, place.kernel):
        return
    assert_same(model, taken_apart(model, scheme, (1,) if scheme == "cp" else None), spatial)


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("strides", [[1, 1], [2, 1], [1, 2], [2, 2]])
def test_macs_of_a_chain_are_those_that_are_counted(scheme: str, strides: list[int]) -> None:
    weight = np.random.default_rng(0).standard_normal((12, 8, 3, 3)).astype(np.float32)
    model = convolution(weight, (16, 16), strides=strides, pads=[1, 1, 1, 1])
    ranks = (3, 2) if scheme == "tucker" else (3,)
    place = conv_place(weights(open_graph(model))[0])
    assert isinstance(place, ConvPlace)
    before, after = (
        sum(each.count for each in count_macs(open_graph(one)).values() if each)
        for one in (model, taken_apart(model, scheme, ranks))
    )
    assert place.macs_share(scheme, ranks) == pytest.approx(after / before)


def test_shared_kernels_become_shared_chains() -> None:
    weight = np.random.default_rng(0).standard_normal((6, 4, 3, 3)).astype(np.float32)
    model = convolution(weight, (9, 9))
    proto = onnx.ModelProto()
    proto.CopyFrom(model.proto)
    proto.graph.node.add().CopyFrom(helper.make_node("Conv", ["x", "W"], ["z"], "other", strides=[2, 2]))
    proto.graph.output.append(helper.make_tensor_value_info("z", TensorProto.FLOAT, list("abcd")))
    shared = load(proto)
    made = taken_apart(shared, "spatial")
    assert len([each for each in made.proto.graph.initializer if len(each.dims) == 4]) == 2
    x = np.random.default_rng(1).standard_normal((2, 4, 9, 9)).astype(np.float32)
    before, after = (Session(each.to_bytes()).run({"x": x}) for each in (shared, made))
    for name in ("y", "z"):
        np.testing.assert_allclose(after[name], before[name], atol=1e-4)


def test_the_old_node_keeps_name_and_output() -> None:
    weight = np.random.default_rng(0).standard_normal((6, 4, 3, 3)).astype(np.float32)
    nodes = taken_apart(convolution(weight, (9, 9)), "tucker", (3, 2)).proto.graph.node
    assert [each.op_type for each in nodes] == ["Conv"] * 3
    assert (nodes[-1].name, nodes[-1].output[0]) == ("conv", "y")
    assert [len(each.input) for each in nodes] == [2, 2, 3]
