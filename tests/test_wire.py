"""A model without the data of its large tensors, and with them again: the same bytes, and their number beforehand."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from google.protobuf.message import DecodeError
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import ModelProto, TensorProto, helper, numpy_helper

from onnxcomp import model as model_module
from onnxcomp import tensors
from onnxcomp.graph.ir.seeds import seeded
from onnxcomp.model import load, save
from onnxcomp.runtime import Session
from onnxcomp.tensors import data_length, is_external, tensors_of
from onnxcomp.testing.models import draw_models
from onnxcomp.wire import with_data, without_data

LEAST = 64


@pytest.fixture
def all_spilled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have tensors of a few values moved to the scratch folder."""
    monkeypatch.setattr(tensors, "SPILL_BYTES", LEAST)


def matrix(name: str = "w", fill: float = 1.0) -> TensorProto:
    return numpy_helper.from_array(np.full((16, 16), fill, np.float32), name)


def weighted() -> ModelProto:
    """A weight in the main graph, in a branch, in a Constant node, in a function, and in an operator's attribute."""
    out = helper.make_tensor_value_info("o", TensorProto.FLOAT, [16, 16])
    constant = helper.make_node("Constant", [], ["k"], value=matrix("", 2.0))
    branch = helper.make_graph([constant, helper.make_node("Add", ["k", "inner"], ["o"])], "b", [], [out],
                               [matrix("inner", 3.0)])  # fmt: skip
    nodes = [
        helper.make_node("If", ["c"], ["i"], then_branch=branch, else_branch=branch),
        helper.make_node("Add", ["i", "w"], ["s"]),
        helper.make_node("F", ["s"], ["y"], domain="local"),
        helper.make_node("Held", ["s"], ["z"], domain="custom", value=matrix("held")),
    ]
    held = helper.make_node("Constant", [], ["k"], value=matrix("", 4.0))
    add = helper.make_node("Add", ["a", "k"], ["b"])
    opset = [helper.make_opsetid("", 17)]
    function = helper.make_function("local", "F", ["a"], ["b"], [held, add], opset)
    ends = [helper.make_tensor_value_info("c", TensorProto.BOOL, []), helper.make_tensor_value_info("y", 1, [16, 16])]
    graph = helper.make_graph(nodes, "g", ends[:1], ends[1:], [matrix()])
    return helper.make_model(graph, opset_imports=[*opset, helper.make_opsetid("local", 1)], functions=[function])


def bytes_of(proto: ModelProto) -> bytes:
    return proto.SerializeToString(deterministic=True)


@pytest.mark.usefixtures("all_spilled")
def test_what_onnx_runtime_takes_from_files_is_moved_and_the_rest_stays() -> None:
    model = load(weighted())
    moved = [np.asarray(model.read(each)).flat[0] for each in tensors_of(model.proto) if is_external(each)]
    assert sorted(moved) == [1.0, 2.0, 2.0, 3.0, 3.0]
    assert model.to_bytes() == bytes_of(weighted())
    assert model.size_bytes == len(bytes_of(weighted()))


@pytest.mark.usefixtures("all_spilled")
@pytest.mark.parametrize("index", range(24))
def test_drawn_models_come_back_to_the_byte_and_their_size_is_known(index: int, tmp_path: Path) -> None:
    proto = draw_models(24, seed=7)[index]
    model = load(proto)
    (path,) = save(model, tmp_path / "m.onnx")
    assert model.size_bytes == path.stat().st_size == len(bytes_of(proto))
    assert path.read_bytes() == bytes_of(proto)
    with_seeds = seeded(model)
    assert with_seeds.size_bytes == model.size_bytes
    assert with_seeds.seeds or with_seeds is model


@pytest.mark.usefixtures("all_spilled")
def test_a_session_reads_moved_data_from_where_it_lies(tmp_path: Path) -> None:
    proto = weighted()
    del proto.graph.node[3]
    model = load(proto)
    feeds = {"c": np.array(True)}
    expected = Session(bytes_of(proto)).run(feeds)["y"]
    assert not list(model.scratch.folder.glob("*/*"))
    with model.opened_on(Session) as session:
        assert np.array_equal(session.run(feeds)["y"], expected)
    for source in (model.materialize(tmp_path / "referring"), model.written_whole(tmp_path / "whole")):
        assert np.array_equal(Session(source).run(feeds)["y"], expected)
    assert (tmp_path / "whole" / "model.onnx").read_bytes() == bytes_of(proto)
    assert (tmp_path / "referring" / "model.onnx").stat().st_size < len(bytes_of(proto)) - 3 * 16 * 16 * 4


@pytest.mark.usefixtures("all_spilled")
def test_a_folder_without_room_leaves_the_data_in_the_model(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(tensors, "_move", full)
    model = load(weighted())
    assert not any(map(is_external, tensors_of(model.proto)))
    assert model.to_bytes() == bytes_of(weighted()) and not list(model.scratch.folder.iterdir())


@pytest.mark.usefixtures("all_spilled")
@pytest.mark.parametrize("field", ["dims", "float_data", "type", "location"])
def test_data_that_does_not_say_what_it_is_stays(field: str) -> None:
    proto = weighted()
    tensor = proto.graph.initializer[0]
    if field == "dims":
        tensor.dims[0] = 15
    elif field == "float_data":
        tensor.float_data.append(1.0)
    elif field == "type":
        tensor.data_type = TensorProto.STRING
    else:
        tensor.data_location = TensorProto.DEFAULT
    moved: list[TensorProto] = []

    def take(each: TensorProto, data: memoryview) -> bool:
        moved.append(each)
        return False

    assert without_data(bytes_of(proto), LEAST, take) == bytes_of(proto) and moved
    assert not is_external(load(proto).proto.graph.initializer[0])


def test_lengths_around_the_reference_grow_by_as_many_digits_as_they_need() -> None:
    for size in (1, 100, 127, 128, 16000, 16384, 2**21):
        proto = weighted()
        proto.graph.initializer[0].CopyFrom(numpy_helper.from_array(np.zeros(size, np.uint8), "w"))
        header = ModelProto.FromString(bytes_of(proto))
        tensor = header.graph.initializer[0]
        tensor.ClearField("raw_data")
        tensor.data_location = TensorProto.EXTERNAL
        tensor.external_data.add(key="location", value="somewhere")
        assert sum(map(len, with_data(bytes_of(header), data_length))) == len(bytes_of(proto))


@settings(deadline=None, max_examples=200)
@given(st.data())
def test_broken_messages_are_told_or_left_alone(data: st.DataObject) -> None:
    content = bytearray(bytes_of(weighted()))
    for place in data.draw(st.lists(st.integers(0, len(content) - 1), min_size=1, max_size=4)):
        content[place] = data.draw(st.integers(0, 255))
    try:
        found = without_data(bytes(content), LEAST, lambda *_: False)
    except DecodeError:
        return
    assert found == content


def test_a_large_weight_of_a_file_is_not_held_in_memory(tmp_path: Path) -> None:
    proto = weighted()
    proto.graph.initializer[0].CopyFrom(numpy_helper.from_array(np.ones((400, 100), np.float32), "w"))
    onnx.save(proto, tmp_path / "m.onnx")
    model = load(tmp_path / "m.onnx")
    assert model.proto.ByteSize() < 20_000 and model.size_bytes == (tmp_path / "m.onnx").stat().st_size
    assert not model.has_data_files and np.all(model.read(model.proto.graph.initializer[0]) == 1)


@pytest.mark.usefixtures("all_spilled")
def test_the_length_of_a_tensor_counts_its_data() -> None:
    model, proto = load(weighted()), weighted()
    pairs = zip(tensors_of(model.proto), tensors_of(proto), strict=True)
    assert [tensors.whole_bytes(each) - other.ByteSize() for each, other in pairs] == [0] * 7


def test_data_of_the_user_is_neither_linked_nor_copied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model_module, "INLINE_LIMIT_BYTES", 1)
    proto = weighted()
    del proto.graph.node[3]
    onnx.save(proto, tmp_path / "m.onnx", save_as_external_data=True, location="m.data", size_threshold=0)
    model = load(tmp_path / "m.onnx")
    with model.opened_on(Session) as session:
        assert session.run({"c": np.array(True)})["y"][0, 0] == 10
        assert (tmp_path / "m.data").stat().st_nlink == 1
        assert sum(each.stat().st_size for each in model.scratch.folder.rglob("*")) < 2**14
