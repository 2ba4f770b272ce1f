"""External data may lie where ONNX Runtime finds it: below the folder of the model, or of the file behind a link."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper

from onnxcomp.errors import ModelError
from onnxcomp.model import load, save

BYTES = np.arange(16, dtype=np.float32).tobytes()


def write_model(path: Path, location: str) -> None:
    weight = numpy_helper.from_array(np.zeros((4, 4), np.float32), "w")
    weight.ClearField("raw_data")
    weight.data_location = TensorProto.EXTERNAL
    for key, value in (("location", location), ("offset", "0"), ("length", str(len(BYTES)))):
        weight.external_data.add(key=key, value=value)
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", 4]) for name in "xy"]
    graph = helper.make_graph([helper.make_node("MatMul", ["x", "w"], ["y"])], "g", ends[:1], ends[1:], [weight])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(model.SerializeToString())


def write_data(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(BYTES)


def link(path: Path, target: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.symlink_to(os.path.relpath(target, path.parent))


@pytest.fixture
def hub(tmp_path: Path) -> Path:
    """A model as the hub cache of Hugging Face lays it out."""
    write_model(tmp_path / "blobs" / "1f0a", "model.onnx_data")
    write_data(tmp_path / "blobs" / "9c3e")
    snapshot = tmp_path / "snapshots" / "rev" / "onnx"
    link(snapshot / "model.onnx", tmp_path / "blobs" / "1f0a")
    link(snapshot / "model.onnx_data", tmp_path / "blobs" / "9c3e")
    return snapshot / "model.onnx"


def test_a_model_in_a_hub_cache_is_read_with_its_data(hub: Path, tmp_path: Path) -> None:
    model = load(hub)
    assert model.read(model.proto.graph.initializer[0])[1, 0] == 4
    save(model, tmp_path / "out.onnx")
    assert load(tmp_path / "out.onnx").proto.graph.initializer[0].raw_data == BYTES


@pytest.mark.parametrize("name", ["model.onnx", "model.onnx_data", "../../../blobs/1f0a", "../../../blobs/9c3e"])
def test_neither_links_nor_blobs_of_a_hub_cache_are_written_to(hub: Path, name: str) -> None:
    with pytest.raises(ModelError, match="is an input"):
        save(load(hub), hub.parent / name, force=True)
    assert hub.is_symlink() and (hub.parent / "model.onnx_data").read_bytes() == BYTES


def test_a_link_to_data_of_the_input_is_not_taken_for_data_of_the_output(hub: Path) -> None:
    (hub.parent / "model.onnx_data").rename(hub.parent / "out.onnx.data")
    write_model(hub.parents[3] / "blobs" / "1f0a", "out.onnx.data")
    with pytest.raises(ModelError, match="belongs to the input"):
        save(load(hub), hub.parent / "out.onnx", force=True)


def test_a_folder_reached_by_a_link_and_back_up_is_followed(tmp_path: Path) -> None:
    write_model(tmp_path / "far" / "m.onnx", "m.data")
    write_data(tmp_path / "far" / "m.data")
    (tmp_path / "far" / "sub").mkdir()
    link(tmp_path / "near", tmp_path / "far" / "sub")
    model = load(tmp_path / "near" / ".." / "m.onnx")
    assert model.read(model.proto.graph.initializer[0])[0, 1] == 1


def test_data_below_the_folder_of_the_real_model_is_accepted(tmp_path: Path) -> None:
    write_model(tmp_path / "far" / "m", "w")
    write_data(tmp_path / "far" / "sub" / "w")
    link(tmp_path / "near" / "m.onnx", tmp_path / "far" / "m")
    link(tmp_path / "near" / "w", tmp_path / "far" / "sub" / "w")
    assert load(tmp_path / "near" / "m.onnx").has_data_files


@pytest.mark.parametrize("model", ["m", "sub/m"])
def test_a_link_that_leads_outside_both_folders_is_named(tmp_path: Path, model: str) -> None:
    write_model(tmp_path / "real" / model, "w")
    write_data(tmp_path / "real" / "w" if model != "m" else tmp_path / "other" / "w")
    link(tmp_path / "near" / "m.onnx", tmp_path / "real" / model)
    link(tmp_path / "near" / "w", tmp_path / ("real" if model != "m" else "other") / "w")
    with pytest.raises(ModelError, match=r"reached by a link that leads outside the model's folder: w is /.*/w\."):
        load(tmp_path / "near" / "m.onnx")


def test_a_path_out_of_the_folder_is_no_matter_of_links(tmp_path: Path) -> None:
    write_model(tmp_path / "real" / "m.onnx", "../w")
    write_data(tmp_path / "w")
    with pytest.raises(ModelError, match=r"points outside the model's folder: \.\./w"):
        load(tmp_path / "real" / "m.onnx")


def test_data_beside_the_real_model_only_is_pointed_out(tmp_path: Path) -> None:
    write_model(tmp_path / "real" / "m.onnx", "w")
    write_data(tmp_path / "real" / "w")
    link(tmp_path / "near" / "m.onnx", tmp_path / "real" / "m.onnx")
    with pytest.raises(ModelError, match=r"is missing: w\. It lies beside .*/real/m\.onnx: name that file\."):
        load(tmp_path / "near" / "m.onnx")
