"""A model packed against another one."""

from __future__ import annotations

from pathlib import Path

import ml_dtypes
import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from onnxcomp.errors import PackError
from onnxcomp.packing.coders.differences import read_difference, write_difference
from onnxcomp.packing.packer import pack
from onnxcomp.packing.unpacker import unpack
from tests.packing.test_round_trip import arrays, compact, with_tensors


def changed(model: onnx.ModelProto, name: str, data: bytes) -> onnx.ModelProto:
    made = onnx.ModelProto()
    made.CopyFrom(model)
    next(each for each in made.graph.initializer if each.name == name).raw_data = data
    return made


def delta_bytes(new: onnx.ModelProto, old: onnx.ModelProto, folder: Path) -> tuple[int, int]:
    """Bytes packed alone and against the old one, plain and packed, which have to be the same; all come back."""
    (folder / "new.onnx").write_bytes(new.SerializeToString())
    (folder / "old.onnx").write_bytes(old.SerializeToString())
    alone = pack(folder / "new.onnx", folder / "new.onnxp", force=True).size_bytes
    pack(folder / "old.onnx", folder / "old.onnxp", force=True)
    found = []
    for base in ("old.onnx", "old.onnxp"):
        made = pack(folder / "new.onnx", folder / "d.onnxp", base=folder / base, force=True)
        unpack(folder / "d.onnxp", folder / "back.onnx", base=folder / base, force=True)
        assert (folder / "back.onnx").read_bytes() == (folder / "new.onnx").read_bytes()
        found.append(made.size_bytes)
    assert found[0] == found[1]
    return alone, found[0]


def compact_model(folder: Path) -> onnx.ModelProto:
    """A weight of 16 levels that lie anywhere, stored compactly."""
    rng = np.random.default_rng(2)
    codes = np.clip(np.rint(rng.normal(7.5, 2.5, (256, 200))), 0, 15).astype(int)
    compact(np.sort(rng.standard_normal(16).astype(np.float32))[codes], folder / "c.onnx")
    return onnx.load(folder / "c.onnx")


def largest(model: onnx.ModelProto, kind: int) -> onnx.TensorProto:
    held = [each for each in model.graph.initializer if each.data_type == kind]
    return max(held, key=lambda each: len(each.raw_data))


def test_a_moved_codebook_takes_a_hundredth(tmp_path: Path) -> None:
    old = compact_model(tmp_path)
    book = largest(old, onnx.TensorProto.FLOAT)
    new = changed(old, book.name, (numpy_helper.to_array(book) * np.float32(1.001)).tobytes())
    alone, delta = delta_bytes(new, old, tmp_path)
    assert delta <= 0.01 * alone + 100  # digests and names, which the small model has too


def test_few_changed_codes_take_a_fifth(tmp_path: Path) -> None:
    old = compact_model(tmp_path)
    held = largest(old, onnx.TensorProto.UINT8)
    codes = numpy_helper.to_array(held).reshape(-1).copy()
    codes[:: 50] ^= 0x10  # the low bit of one of the two codes of every 50th byte
    alone, delta = delta_bytes(changed(old, held.name, codes.tobytes()), old, tmp_path)
    assert delta <= 0.2 * alone


@pytest.mark.parametrize("name", ["float32", "special values", "float16", "bfloat16", "float64", "int8", "int64"])
def test_a_difference_of_any_type_comes_back(name: str, tmp_path: Path) -> None:
    values = arrays()[name]
    moved = (values.astype(np.float64) * 1.001 + 1e-3).astype(values.dtype)
    alone, delta = delta_bytes(with_tensors(moved), with_tensors(values), tmp_path)
    assert delta < alone


def test_what_the_base_has_under_no_such_name_is_packed_whole(tmp_path: Path) -> None:
    few = [arrays()[name] for name in ("float32", "int8", "int64", "bool")]
    new, old = with_tensors(*few), with_tensors(*reversed(few))
    delta_bytes(new, old, tmp_path)
    old.graph.initializer.add().CopyFrom(old.graph.initializer[0])
    delta_bytes(new, old, tmp_path)


def test_another_base_or_none_is_refused(tmp_path: Path) -> None:
    new, old = with_tensors(arrays()["int8"]), with_tensors(arrays()["float32"])
    delta_bytes(new, old, tmp_path)
    with pytest.raises(PackError, match="--base"):
        unpack(tmp_path / "d.onnxp", tmp_path / "x.onnx")
    with pytest.raises(PackError, match="another model"):
        unpack(tmp_path / "d.onnxp", tmp_path / "x.onnx", base=tmp_path / "new.onnx")
    assert not (tmp_path / "x.onnx").exists()


def test_float_differences_are_counted_in_floats() -> None:
    """Between one float and the next lies one step, over zero and powers of two too."""
    old = np.array([1.0, -1.0, 0.0, 2.0, 1e-45], np.float32)
    new = np.nextafter(old, np.float32(np.inf)).astype(np.float32)
    packed = write_difference(new.tobytes(), old.tobytes(), onnx.TensorProto.FLOAT, (5,))
    assert read_difference(packed, old.tobytes(), onnx.TensorProto.FLOAT, (5,)) == new.tobytes()
    many = np.tile(old, 1000)
    near = np.nextafter(many, np.float32(np.inf)).astype(np.float32)
    assert len(write_difference(near.tobytes(), many.tobytes(), onnx.TensorProto.FLOAT, (5000,))) < 100


def test_a_bfloat16_difference_is_exact() -> None:
    rng = np.random.default_rng(4)
    old = rng.integers(0, 2**16, 4000).astype(np.uint16)
    new = rng.integers(0, 2**16, 4000).astype(np.uint16)
    assert old.view(ml_dtypes.bfloat16).dtype == ml_dtypes.bfloat16
    packed = write_difference(new.tobytes(), old.tobytes(), onnx.TensorProto.BFLOAT16, (40, 100))
    assert read_difference(packed, old.tobytes(), onnx.TensorProto.BFLOAT16, (40, 100)) == new.tobytes()
