"""What is packed comes out as it was, byte for byte, whatever it is."""

from __future__ import annotations

from pathlib import Path

import ml_dtypes
import numpy as np
import onnx
import pytest
from onnx import ModelProto, TensorProto, helper, numpy_helper

from onnxcomp.contract import Context
from onnxcomp.errors import ModelError, PackError
from onnxcomp.model import load, save
from onnxcomp.packing import container, packer
from onnxcomp.packing.packed import PackedModel
from onnxcomp.packing.packer import pack
from onnxcomp.packing.unpacker import unpack
from onnxcomp.pipeline.apply import apply_pass
from onnxcomp.registry import get_pass
from onnxcomp.testing.models.choosing import RandomChooser
from onnxcomp.testing.models.drawing import build_model

MODELS = Path(__file__).parent.parent.parent / "models"


def round_trip(model: Path) -> int:
    """Pack a file, unpack it in another folder and compare all files; gives the packed bytes."""
    folder = model.parent / "out"
    folder.mkdir(exist_ok=True)
    made = pack(model, folder / "packed.onnxp", force=True)
    back = unpack(made.path, folder / model.name, force=True)
    for path in back.paths:
        assert path.read_bytes() == (model.parent / path.relative_to(folder)).read_bytes()
    return made.size_bytes


def with_tensors(*arrays: np.ndarray, names: str = "w{}") -> ModelProto:
    """A model that holds arrays of any types and adds nothing to its input."""
    tensors = [numpy_helper.from_array(each, names.format(at)) for at, each in enumerate(arrays)]
    value = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1])
    other = helper.make_tensor_value_info("y", TensorProto.FLOAT, [1])
    graph = helper.make_graph([helper.make_node("Identity", ["x"], ["y"])], "g", [value], [other], tensors)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)


@pytest.mark.parametrize("seed", range(12))
def test_drawn_models_come_back(seed: int, tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    path.write_bytes(build_model(RandomChooser(seed)).SerializeToString())
    round_trip(path)


def compact(values: np.ndarray, path: Path) -> None:
    """Write a model of one MatMul whose weight store-compact stored."""
    rows, columns = values.shape
    value = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, rows])
    other = helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, columns])
    tensor = numpy_helper.from_array(values, "w")
    graph = helper.make_graph([helper.make_node("MatMul", ["x", "w"], ["y"])], "g", [value], [other], [tensor])
    model = load(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8))
    stored, _ = apply_pass(model, get_pass("store-compact")(), Context())
    save(stored, path, force=True)


def arrays() -> dict[str, np.ndarray]:
    """Tensors of many types and kinds of content, some that no coder helps."""
    rng = np.random.default_rng(3)
    normal = rng.standard_normal((40, 30)).astype(np.float32)
    special = normal.copy()
    special[0, :6] = [np.nan, -np.nan, np.inf, -np.inf, -0.0, 1e-42]
    return {
        "float32": normal,
        "special values": special,
        "float16": normal.astype(np.float16),
        "bfloat16": normal.astype(ml_dtypes.bfloat16),
        "float64": normal.astype(np.float64),
        "float16 in float32": normal.astype(np.float16).astype(np.float32),
        "few values": np.round(normal * 2).astype(np.float32),
        "one value": np.full((300, 7), 3.5, np.float32),
        "int8": np.clip(normal * 30, -128, 127).astype(np.int8),
        "uint8 noise": rng.integers(0, 256, 3000).astype(np.uint8),
        "int64": np.arange(500),
        "int16": (normal * 100).astype(np.int16),
        "bool": normal > 0,
        "float8": normal.astype(ml_dtypes.float8_e4m3fn),
        "int4": np.clip(normal * 3, -8, 7).astype(ml_dtypes.int4),
        "complex": (normal + 1j).astype(np.complex64),
        "empty": np.zeros((0, 5), np.float32),
        "scalar": np.float32(1.5).reshape(()),
    }


@pytest.mark.parametrize("name", list(arrays()))
def test_a_tensor_of_any_type_comes_back(name: str, tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    path.write_bytes(with_tensors(arrays()[name], arrays()[name].reshape(-1)[:7]).SerializeToString())
    round_trip(path)


def test_typed_data_strings_and_unknown_fields_come_back(tmp_path: Path) -> None:
    model = with_tensors(arrays()["int8"])
    values = np.linspace(0, 1, 200)
    model.graph.initializer.append(helper.make_tensor("f", TensorProto.FLOAT, [200], values))
    model.graph.initializer.append(helper.make_tensor("d", TensorProto.DOUBLE, [200], values))
    model.graph.initializer.append(helper.make_tensor("i", TensorProto.INT32, [200], range(200)))
    model.graph.initializer.append(helper.make_tensor("s", TensorProto.STRING, [2], [b"a", b"bc"]))
    unknown = bytes([0xFA, 0x3E, 3]) + b"abc" + bytes([0xF8, 0x3E, 7])  # fields 1007 of bytes and of a number
    path = tmp_path / "m.onnx"
    path.write_bytes(model.SerializeToString() + unknown)
    round_trip(path)


def test_a_message_in_two_parts_comes_back(tmp_path: Path) -> None:
    """Protobuf merges a field that stands twice; bytes are what counts here."""
    model = with_tensors(arrays()["float32"]).SerializeToString()
    path = tmp_path / "m.onnx"
    path.write_bytes(model + with_tensors(arrays()["int8"]).SerializeToString())
    round_trip(path)


def test_external_data_comes_back_in_its_files(tmp_path: Path) -> None:
    model = with_tensors(*list(arrays().values())[:6])
    onnx.external_data_helper.convert_model_to_external_data(
        model, all_tensors_to_one_file=False, size_threshold=0
    )
    (tmp_path / "deep").mkdir()
    for tensor in model.graph.initializer:
        location = next(each for each in tensor.external_data if each.key == "location")
        location.value = f"deep/{location.value}.bin" if tensor.name == "w1" else "shared.bin"
    onnx.save(model, tmp_path / "m.onnx")
    data = (tmp_path / "shared.bin").read_bytes()
    (tmp_path / "shared.bin").write_bytes(data + b"what nothing refers to")
    round_trip(tmp_path / "m.onnx")
    content = bytearray((tmp_path / "out" / "packed.onnxp").read_bytes())
    content[12] ^= 1
    (tmp_path / "broken.onnxp").write_bytes(content)
    (tmp_path / "other").mkdir()
    with pytest.raises(PackError):
        unpack(tmp_path / "broken.onnxp", tmp_path / "other" / "m.onnx")
    assert not list((tmp_path / "other").iterdir())


def test_every_way_of_storing_codes_comes_back_and_is_known(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    dense = rng.integers(0, 11, (64, 48)).astype(np.float32)
    sparse = np.where(rng.random((128, 200)) < 0.05, rng.integers(1, 9, (128, 200)), 0).astype(np.float32)
    masked = np.where(rng.random((64, 48)) < 0.4, rng.integers(1, 12, (64, 48)), 0).astype(np.float32)
    for values in (dense, sparse, masked):
        path = tmp_path / "m.onnx"
        compact(values / 8, path)
        round_trip(path)
        with (tmp_path / "out" / "packed.onnxp").open("rb") as file:
            kinds = {each.kind for each in PackedModel(file).index.units}
        assert packer.CODES in kinds


def test_large_tensors_are_packed_in_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from onnxcomp.packing import packed, units

    for module in (container, packer, packed, units):
        if hasattr(module, "PART_BYTES"):
            monkeypatch.setattr(module, "PART_BYTES", 1000)
    monkeypatch.setattr(container, "CHUNK_BYTES", 3000)
    path = tmp_path / "m.onnx"
    many = [arrays()[name] for name in ("float32", "int8", "float64", "int4")]
    path.write_bytes(with_tensors(*many, names="a rather long name of a tensor {}" + "x" * 500).SerializeToString())
    round_trip(path)


def test_one_tensor_is_read_without_the_others(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    path.write_bytes(with_tensors(*arrays().values()).SerializeToString())
    made = pack(path, tmp_path / "m.onnxp")
    with made.path.open("rb") as file:
        model = PackedModel(file)
        item = next(each for each in model.layout.items if each.key == "9:w8")
        assert model.data(item) == arrays()["int8"].tobytes()


@pytest.mark.parametrize("name", ["lenet5", "resnet8"])
def test_real_models_come_back_and_are_smaller(name: str, tmp_path: Path) -> None:
    zstandard = pytest.importorskip("zstandard")
    source = MODELS / f"{name}.onnx"
    if not source.is_file():
        pytest.skip("no such model")
    path = tmp_path / source.name
    path.write_bytes(source.read_bytes())
    packed = round_trip(path)
    other = len(zstandard.ZstdCompressor(level=19).compress(source.read_bytes()))
    assert packed <= 0.97 * other


def test_codes_of_independent_symbols_take_little_more_than_their_entropy(tmp_path: Path) -> None:
    rng = np.random.default_rng(5)
    chances = np.array([0.02, 0.05, 0.1, 0.25, 0.3, 0.18, 0.07, 0.03])
    codes = rng.choice(8, size=(300, 400), p=chances)
    path = tmp_path / "m.onnx"
    compact((codes.astype(np.float32) - 4) / 8, path)
    seen = np.bincount(codes.reshape(-1)) / codes.size
    entropy = -(seen * np.log2(seen)).sum() * codes.size / 8
    side = len(path.read_bytes()) - codes.size * 3 / 8  # graph and tables, unpacked
    assert round_trip(path) <= 1.02 * (entropy + side)


def test_what_is_no_model_is_refused(tmp_path: Path) -> None:
    for content in (b"", b"PK\x03\x04 no model at all", b"\x08"):
        path = tmp_path / "m.onnx"
        path.write_bytes(content)
        with pytest.raises(ModelError):
            pack(path, tmp_path / "m.onnxp")
    assert not (tmp_path / "m.onnxp").exists()


def test_compact_output_of_the_library_is_packed_smaller_than_by_zstandard(tmp_path: Path) -> None:
    zstandard = pytest.importorskip("zstandard")
    rng = np.random.default_rng(2)
    weight = (rng.laplace(0, 1, (128, 200)) * np.where(rng.random(200) < 0.3, 0.05, 1)).astype(np.float32)
    path = tmp_path / "m.onnx"
    compact(np.clip(np.rint(weight * 1.5), -7, 7) / 2, path)
    other_bytes = len(zstandard.ZstdCompressor(level=22).compress(path.read_bytes()))
    assert round_trip(path) <= 0.93 * other_bytes
