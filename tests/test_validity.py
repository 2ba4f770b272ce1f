"""Models that protobuf lets through and that are none: refused in one line when they are read."""

from __future__ import annotations

import base64
import time
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from onnxcomp.errors import ModelError
from onnxcomp.model import load
from onnxcomp.stored_encodings import ENCODINGS_KEY

from .test_model import linear_model

Edit = Callable[[onnx.ModelProto], object]


def weight(proto: onnx.ModelProto) -> TensorProto:
    return proto.graph.initializer[0]


MALFORMED: dict[str, tuple[Edit, str]] = {
    "no type": (lambda proto: setattr(weight(proto), "data_type", 0), "'w' has the element type 0"),
    "type 99": (lambda proto: setattr(weight(proto), "data_type", 99), "'w' has the element type 99"),
    "type -1": (lambda proto: setattr(weight(proto), "data_type", -1), "'w' has the element type -1"),
    "value type 99": (
        lambda proto: setattr(proto.graph.output[0].type.tensor_type, "elem_type", 99),
        "a value has the element type 99",
    ),
    "negative dimension": (lambda proto: weight(proto).dims.__setitem__(0, -4), r"'w' has the shape \(-4, 4\)"),
    "dimensions": (lambda proto: weight(proto).dims.extend([1] * 200), "'w' has 202 dimensions"),
    "huge": (lambda proto: weight(proto).dims.__setitem__(0, 2**62), "'w' has the shape"),
}


def proto() -> onnx.ModelProto:
    return linear_model(np.ones((4, 4), np.float32))


@pytest.mark.parametrize("kind", MALFORMED)
def test_malformed_tensors_and_values_are_named(kind: str) -> None:
    edit, said = MALFORMED[kind]
    made = proto()
    edit(made)
    with pytest.raises(ModelError, match=f"not a valid model: .*{said}"):
        load(made)


def test_an_attribute_without_its_value_is_refused() -> None:
    made = proto()
    made.graph.node.add(op_type="Constant", output=["c"]).attribute.add(name="value", type=onnx.AttributeProto.TENSOR)
    with pytest.raises(ModelError, match="the attribute 'value' has a type and no value"):
        load(made)


def test_attribute_tensors_are_checked_too() -> None:
    made = proto()
    made.graph.node.append(helper.make_node("Constant", [], ["c"], value=TensorProto(dims=[1], data_type=77)))
    with pytest.raises(ModelError, match="element type 77"):
        load(made)


@pytest.mark.parametrize("name", [b"MatMul", b"w", b"x"])
def test_text_that_is_not_utf8_is_refused(name: bytes) -> None:
    content = proto().SerializeToString().replace(name, b"\xff" * len(name))
    with pytest.raises(ModelError, match="is not UTF-8"):
        load(content)


def calling(*called: str) -> list[onnx.NodeProto]:
    values = ["a", *(f"t{i}" for i in range(len(called) - 1)), "b"]
    return [
        helper.make_node(name, [values[i]], [values[i + 1]], domain="" if name == "Relu" else "f")
        for i, name in enumerate(called)
    ]


def with_functions(bodies: dict[str, list[onnx.NodeProto]], top: str) -> onnx.ModelProto:
    made = proto()
    imports = [helper.make_opsetid("", 17), helper.make_opsetid("f", 1)]
    made.functions.extend(helper.make_function("f", name, ["a"], ["b"], body, imports) for name, body in bodies.items())
    made.graph.node[0].CopyFrom(helper.make_node(top, ["x"], ["y"], domain="f"))
    made.opset_import.append(helper.make_opsetid("f", 1))
    return made


def test_functions_that_double_twenty_times_are_refused_at_once() -> None:
    bodies = {"F0": calling("Relu")} | {f"F{i}": calling(f"F{i - 1}", f"F{i - 1}") for i in range(1, 61)}
    started = time.monotonic()
    with pytest.raises(ModelError, match=r"come to 1,152,921,504,606,846,976 nodes"):
        load(with_functions(bodies, "F60"))
    assert time.monotonic() - started < 1
    assert load(with_functions(bodies, "F3"))


def test_functions_that_call_each_other_in_a_circle_are_refused() -> None:
    with pytest.raises(ModelError, match="the function A calls itself"):
        load(with_functions({"A": calling("B"), "B": calling("A")}, "A"))


BROKEN_ENCODINGS = (
    b"[]", b"3", b'{"W":3}', b'{"W":{}}', b'{"W":{"kind":"codebook"}}', b'{"W":{"kind":["x"]}}', b"[" * 100_000,
    b"\xff\xfe", b" " * 2**25,
)  # fmt: skip


@pytest.mark.parametrize("content", BROKEN_ENCODINGS, ids=range(len(BROKEN_ENCODINGS)))
def test_stored_encodings_that_are_none_are_refused(content: bytes) -> None:
    made = proto()
    made.metadata_props.add(key=ENCODINGS_KEY, value=base64.b64encode(zlib.compress(content, 9)).decode())
    with pytest.raises(ModelError, match="stored encodings are broken"):
        load(made)


@pytest.mark.parametrize("location", ["a\x00b", "loop", "n" * 5000])
def test_data_at_a_place_that_no_file_has_are_refused(tmp_path: Path, location: str) -> None:
    (tmp_path / "loop").symlink_to("pool")
    (tmp_path / "pool").symlink_to("loop")
    made = proto()
    weight(made).ClearField("raw_data")
    weight(made).data_location = TensorProto.EXTERNAL
    weight(made).external_data.add(key="location", value=location)
    path = tmp_path / "m.onnx"
    path.write_bytes(made.SerializeToString())
    with pytest.raises(ModelError, match="external data of w"):
        load(path)


def test_a_path_that_no_file_has_is_refused() -> None:
    with pytest.raises(ModelError):
        load("a\x00b")
