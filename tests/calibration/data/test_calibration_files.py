"""Calibration files that are broken, change, or hold more than they should: one line that names the file."""

import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from onnxcomp.calibration import CalibrationData, Sequences
from onnxcomp.calibration.data import sources
from onnxcomp.errors import CalibrationError, OnnxcompError
from onnxcomp.runtime import ValueSpec


def specs(**shapes: tuple[Any, ...]) -> list[ValueSpec]:
    return [ValueSpec(name, "tensor(float)", shape) for name, shape in shapes.items()]


@pytest.mark.parametrize("name", ["c.npz", "packed.npz", "c.npy"])
def test_a_small_file_may_be_rewritten_while_it_is_in_use(tmp_path: Path, name: str) -> None:
    x = np.arange(60, dtype=np.float32).reshape(30, 2)
    save = {"c.npz": np.savez, "packed.npz": np.savez_compressed, "c.npy": np.save}[name]
    save(tmp_path / name, x) if name == "c.npy" else save(tmp_path / name, x=x)
    data = CalibrationData.open(tmp_path / name, specs(x=("N", 2)))
    (tmp_path / name).write_bytes(b"")
    assert np.array_equal(next(data.batches())["x"], x)


def test_a_file_that_changed_is_not_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("onnxcomp.calibration.data.groups.MAX_OPEN_GROUPS", 0)
    np.savez(tmp_path / "c.npz", x=np.zeros((4, 2), np.float32))
    data = CalibrationData.open(tmp_path / "c.npz", specs(x=("N", 2)))
    np.savez(tmp_path / "c.npz", x=np.zeros((6, 2), np.float32))
    with pytest.raises(OnnxcompError, match=r"c\.npz: was changed"):
        next(data.batches())


def test_a_file_of_sequences_that_changed_is_not_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("onnxcomp.calibration.data.groups.MAX_OPEN_GROUPS", 0)
    path = tmp_path / "c.npz"
    np.savez(path, x=np.zeros((4, 5, 2), np.float32))
    data = CalibrationData.open(Sequences(path), specs(x=("N", 2)))
    assert data.files.holds(path) and next(data.batches())["x"].shape == (20, 2)
    np.savez(path, x=np.zeros((4, 6, 2), np.float32))
    with pytest.raises(OnnxcompError, match=r"c\.npz: was changed"):
        next(data.batches())


def corrupted(content: bytes, *, at: int, flip: int) -> bytes:
    return content[:at] + bytes([content[at] ^ flip]) + content[at + 1 :]


def with_method(content: bytes, method: int) -> bytes:
    """A ZIP archive of one member that says to be packed by another method."""
    entry = content.rfind(b"PK\x01\x02") + 10
    return content[: entry] + bytes([method, 0]) + content[entry + 2 :]


BROKEN_ARCHIVES = {
    "corrupt content": lambda content: corrupted(content, at=200, flip=0xFF),
    "encrypted": lambda content: corrupted(content, at=content.rfind(b"PK\x01\x02") + 8, flip=1),
    "unknown method": lambda content: with_method(content, 99),
    "cut short": lambda content: content[: len(content) // 2],
}


@pytest.mark.parametrize("kind", BROKEN_ARCHIVES)
def test_a_broken_npz_is_one_line(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "c.npz"
    np.savez_compressed(path, x=np.random.default_rng(0).standard_normal((64, 2)).astype(np.float32))
    path.write_bytes(BROKEN_ARCHIVES[kind](path.read_bytes()))
    with pytest.raises(CalibrationError, match=r"c\.npz is not a readable \.npz"):
        CalibrationData.open(path, specs(x=("N", 2)))


HEADERS = (
    "{'descr': '<f4', 'fortran_order': False, 'shape': (1099511627776, 64)}",
    "{'descr': '<f4', 'fortran_order': False, 'shape': (-1, 2)}",
    "{'descr': '<f4', 'fortran_order': False, 'shape': (8, 2.5)}",
    "{'descr': '<f4', 'fortran_order': False, 'shape': (8, 2)",
    "{'descr': '<V999999999', 'fortran_order': False, 'shape': (1,)}",
    "{'descr': '<f4', 'fortran_order': False, 'shape': (9223372036854775807, 9223372036854775807)}",
)


@pytest.mark.parametrize("header", HEADERS)
@pytest.mark.parametrize("limit", [100, 2**28])
def test_a_broken_header_of_an_array_is_one_line(
    tmp_path: Path, header: str, limit: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sources, "IN_MEMORY_BYTES", limit)  # mapped or read
    text = header.encode().ljust(117) + b"\n"
    content = b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text + bytes(2048)
    (tmp_path / "c.npy").write_bytes(content)
    with zipfile.ZipFile(tmp_path / "c.npz", "w") as archive:
        archive.writestr("x.npy", content)
    for name in ("c.npy", "c.npz"):
        with pytest.raises(CalibrationError, match="is not a readable"):
            CalibrationData.open(tmp_path / name, specs(x=("N", 2)))


def test_an_archive_that_unpacks_to_a_thousand_times_its_size_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sources, "UNPACKED_BYTES", 1000)
    monkeypatch.setattr(sources, "SUSPECT_BYTES", 2**20)
    np.savez_compressed(tmp_path / "c.npz", x=np.zeros((2**18, 2), np.float32))
    with pytest.raises(CalibrationError, match="would unpack from"):
        CalibrationData.open(tmp_path / "c.npz", specs(x=("N", 2)))


def test_data_sets_with_tensors_that_are_none_are_refused(tmp_path: Path) -> None:
    outside = onnx.TensorProto(name="x", dims=(1, 2), data_type=1, data_location=onnx.TensorProto.EXTERNAL)
    outside.external_data.add(key="location", value="/etc/passwd")
    unknown = onnx.TensorProto(name="x", dims=(1, 2), data_type=99)
    huge = onnx.TensorProto(name="x", dims=(2**40, 2), data_type=1)
    for proto in (outside, unknown, huge):
        (tmp_path / "input_0.pb").write_bytes(proto.SerializeToString())
        with pytest.raises(CalibrationError, match="is not a tensor"):
            CalibrationData.open(tmp_path, specs(x=("N", 2)))
    (tmp_path / "input_x.pb").touch()
    with pytest.raises(CalibrationError, match="input_<number>"):
        CalibrationData.open(tmp_path, specs(x=("N", 2)))


def test_a_function_that_raises_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "raising_feeds.py").write_text(
        "def now(): raise KeyError('boom')\ndef later():\n    yield {}\n    raise OSError('boom')\n"
    )
    monkeypatch.chdir(tmp_path)
    for name in ("now", "later"):
        with pytest.raises(CalibrationError, match=f"raising_feeds:{name} raised .*boom"):
            CalibrationData.open(f"raising_feeds:{name}", specs(x=("N", 2)))
    with pytest.raises(CalibrationError, match="cannot be imported"):
        CalibrationData.open("..raising_feeds:now", specs(x=("N", 2)))


def test_no_more_numbers_are_drawn_than_memory_bears() -> None:
    ran: list[object] = []
    with pytest.raises(CalibrationError, match="more than the 67,108,864"):
        CalibrationData.random(specs(x=(30_000, 30_000)), run=ran.append)
    assert not ran


def test_no_more_numbers_are_drawn_where_other_ranks_are_tried_too() -> None:
    ran: list[object] = []
    with pytest.raises(CalibrationError, match="more than the 67,108,864"):
        CalibrationData.random(specs(x=(30_000, 30_000), unranked=()), run=ran.append)
    assert not ran
