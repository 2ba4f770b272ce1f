"""Reading and writing models: data stays where it lies, output is whole or absent, bad input is named."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from onnxcomp import model as model_module
from onnxcomp.errors import ModelError, TargetError
from onnxcomp.model import Model, load, save
from onnxcomp.numerics.encodings.encoding import CodebookEncoding
from onnxcomp.receipt import digest
from onnxcomp.runtime import Session
from onnxcomp.stored_encodings import ENCODINGS_KEY
from onnxcomp.tensors import make_tensor, read_tensor, tensors_of


def linear_model(weight: np.ndarray) -> onnx.ModelProto:
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"])],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", weight.shape[0]])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", weight.shape[1]])],
        [numpy_helper.from_array(weight, "w")],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


@pytest.fixture
def external(tmp_path: Path) -> Path:
    weight = np.arange(64 * 64, dtype=np.float32).reshape(64, 64)
    path = tmp_path / "in" / "m.onnx"
    path.parent.mkdir()
    onnx.save(linear_model(weight), path, save_as_external_data=True, location="m.bin", size_threshold=0)
    return path


def test_external_data_is_left_where_it_lies(external: Path) -> None:
    model = load(external)
    tensor = model.proto.graph.initializer[0]
    assert not tensor.raw_data
    values = model.read(tensor)
    assert isinstance(values.base, np.memmap) or isinstance(values, np.memmap)
    assert values[1, 0] == 64


def test_inlined_bytes_equal_what_onnx_loads(external: Path) -> None:
    inlined = onnx.load_from_string(load(external).to_bytes()).graph.initializer[0]
    assert not inlined.external_data
    assert np.array_equal(
        numpy_helper.to_array(inlined), numpy_helper.to_array(onnx.load(external).graph.initializer[0])
    )


def test_materialized_model_loads_with_its_data(external: Path, tmp_path: Path) -> None:
    path = load(external).materialize(tmp_path / "out")
    ran = Session(path).run({"x": np.eye(64, dtype=np.float32)})["y"]
    assert isinstance(ran, np.ndarray) and ran[63, 63] == 4095


def test_save_refuses_the_input_even_with_force(external: Path) -> None:
    before = external.read_bytes()
    with pytest.raises(ModelError, match="is an input"):
        save(load(external), external, force=True)
    assert external.read_bytes() == before


def test_save_refuses_the_inputs_data_file(external: Path) -> None:
    (external.parent / "m.bin").rename(external.parent / "o.onnx.data")
    proto = onnx.load(external, load_external_data=False)
    proto.graph.initializer[0].external_data[0].value = "o.onnx.data"
    external.write_bytes(proto.SerializeToString())
    with pytest.raises(ModelError, match="belongs to the input"):
        save(load(external), external.parent / "o.onnx", force=True)


def test_save_refuses_an_existing_output_without_force(external: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.onnx"
    out.write_text("mine")
    with pytest.raises(ModelError, match="exists already"):
        save(load(external), out)
    assert out.read_text() == "mine"


def test_large_output_keeps_its_data_in_one_other_file(
    external: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(model_module, "INLINE_LIMIT_BYTES", 1)
    files = save(load(external), tmp_path / "out.onnx")
    assert [each.name for each in files] == ["out.onnx", f"out.onnx.{digest(files[1].read_bytes())[:12]}.data"]
    assert (
        onnx.load(files[0]).graph.initializer[0].raw_data == onnx.load(external).graph.initializer[0].raw_data
    )


def test_a_failed_write_leaves_nothing(
    external: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*arguments: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(ModelError, match="No space left"):
        save(load(external), tmp_path / "out.onnx")
    assert sorted(each.name for each in tmp_path.iterdir()) == ["in"]


@pytest.mark.parametrize("content", [b"", b"hello world, this is text", bytes(range(256))])
def test_what_is_no_model_is_refused(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    path.write_bytes(content)
    with pytest.raises(ModelError, match="not an ONNX model"):
        load(path)


def test_a_truncated_model_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    path.write_bytes(linear_model(np.ones((8, 8), np.float32)).SerializeToString()[:-20])
    with pytest.raises(ModelError, match=r"m\.onnx"):
        load(path)


def test_missing_external_data_is_named(external: Path) -> None:
    (external.parent / "m.bin").unlink()
    with pytest.raises(ModelError, match=r"data of w is missing: m\.bin"):
        load(external)


def test_short_external_data_is_named(external: Path) -> None:
    with (external.parent / "m.bin").open("r+b") as file:
        file.truncate(100)
    with pytest.raises(ModelError, match="cut short"):
        load(external)


@pytest.mark.parametrize("location", ["../secret.bin", "/etc/passwd", "link.bin"])
def test_external_data_outside_the_folder_is_refused(external: Path, location: str) -> None:
    secret = external.parent.parent / "secret.bin"
    secret.write_bytes(bytes(64 * 64 * 4))
    (external.parent / "link.bin").symlink_to(secret)
    proto = onnx.load(external, load_external_data=False)
    next(each for each in proto.graph.initializer[0].external_data if each.key == "location").value = location
    external.write_bytes(proto.SerializeToString())
    with pytest.raises(ModelError, match="outside the model's folder"):
        load(external)


def test_spilled_values_come_back_and_leave_with_the_model(tmp_path: Path) -> None:
    model = load(linear_model(np.ones((2, 2), np.float32)))
    values = np.random.default_rng(0).normal(size=(1024, 512)).astype(np.float32)
    tensor = make_tensor("big", values, model.scratch)
    assert not tensor.raw_data
    assert np.array_equal(read_tensor(tensor), values)
    folder = model.scratch.folder
    assert any(folder.iterdir())
    del model
    assert not folder.exists()


def test_encodings_survive_a_file(tmp_path: Path) -> None:
    weight = np.array([[1, 2], [2, 1]], np.float32)
    codebook = CodebookEncoding(dtype="float32", codebook=np.array([1, 2], np.float32))
    model = Model(linear_model(weight), encodings={"w": codebook})
    save(model, tmp_path / "m.onnx")
    again = load(tmp_path / "m.onnx")
    codes = again.encodings["w"].encode(weight)
    assert codes is not None and codes.tolist() == [[0, 1], [1, 0]]
    assert not again.proto.metadata_props


def test_broken_encodings_are_named() -> None:
    proto = linear_model(np.ones((2, 2), np.float32))
    proto.metadata_props.add(key=ENCODINGS_KEY, value="nonsense")
    with pytest.raises(ModelError, match="stored encodings are broken"):
        load(proto)


def test_tensors_are_found_in_subgraphs_and_attributes() -> None:
    value = numpy_helper.from_array(np.ones(3, np.float32), "c")
    body = helper.make_graph(
        [helper.make_node("Constant", [], ["o"], value=value)],
        "body", [], [helper.make_tensor_value_info("o", TensorProto.FLOAT, [3])],
        [numpy_helper.from_array(np.ones(2, np.float32), "inner")],
    )  # fmt: skip
    node = helper.make_node("If", ["c"], ["y"], then_branch=body, else_branch=body)
    graph = helper.make_graph(
        [node], "g", [helper.make_tensor_value_info("c", TensorProto.BOOL, [])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [3])],
    )  # fmt: skip
    names = [each.name for each in tensors_of(helper.make_model(graph))]
    assert sorted(names) == ["c", "c", "inner", "inner"]


def test_a_model_that_is_kept_open_is_opened_once_in_each_way(external: Path) -> None:
    opened: list[str] = []

    def one(source: object) -> str:
        opened.append("one")
        return "session one"

    def other(source: object) -> str:
        opened.append("other")
        return "session other"

    model = load(external)
    with model.kept_open():
        for open_session, session in ((one, "session one"), (other, "session other"), (one, "session one")):
            with model.opened_on(open_session) as found:
                assert found == session
    assert opened == ["one", "other"]
    with model.opened_on(one), model.opened_on(one):
        pass
    assert opened == ["one", "other", "one", "one"], "afterwards each is its own"


def test_what_does_not_open_is_tried_again_while_it_is_kept_open(external: Path) -> None:
    def refuse(source: object) -> None:
        raise TargetError("no")

    model = load(external)
    with model.kept_open():
        for _ in range(2):
            with pytest.raises(TargetError), model.opened_on(refuse):
                pass
    assert not [each for each in model.scratch.folder.iterdir() if each.is_dir()]
