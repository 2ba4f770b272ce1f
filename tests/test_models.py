"""models/ holds what its manifest says: origin, licence, digest and size of every file, each ready to use."""

from __future__ import annotations

import hashlib
import tomllib
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest

MODELS = Path(__file__).parent.parent / "models"
MANIFEST = tomllib.loads((MODELS / "manifest.toml").read_text(encoding="utf-8"))
ENTRIES = MANIFEST["model"] + MANIFEST["data"]
MOST_BYTES_EACH = 2_000_000
MOST_BYTES_TOGETHER = 8_000_000
MODEL_KEYS = {
    "file", "task", "framework", "origin", "licence", "made", "calibration", "sha256", "size_bytes", "opset",
    "inputs", "outputs",
}  # fmt: skip
DATA_KEYS = {"file", "licence", "attribution", "made", "sha256", "size_bytes", "arrays"}

Entry = dict[str, Any]
each_model = pytest.mark.parametrize("entry", MANIFEST["model"], ids=lambda entry: entry["file"])


def session(entry: Entry) -> onnxruntime.InferenceSession:
    return onnxruntime.InferenceSession(MODELS / entry["file"], providers=["CPUExecutionProvider"])


def calibration_files(entry: Entry) -> list[Path]:
    """Give the model's calibration data: one file, or a folder with one file a batch."""
    path = MODELS / entry["calibration"]
    return sorted(path.glob("*.npz")) if path.is_dir() else [path]


def fits(shape: list[int | str | None], array: np.ndarray) -> bool:
    """Say whether an array has the rank and the fixed dimensions that an input declares."""
    return len(shape) == array.ndim and all(
        wanted == length for wanted, length in zip(shape, array.shape, strict=True) if isinstance(wanted, int)
    )


def test_manifest_lists_every_file() -> None:
    listed = [entry["file"] for entry in ENTRIES]
    found = {p.relative_to(MODELS).as_posix() for p in MODELS.rglob("*") if p.suffix in {".onnx", ".npz"}}
    assert len(listed) == len(set(listed))
    assert set(listed) == found


@pytest.mark.parametrize("entry", ENTRIES, ids=lambda entry: entry["file"])
def test_file_is_the_one_described(entry: Entry) -> None:
    content = (MODELS / entry["file"]).read_bytes()
    assert len(content) == entry["size_bytes"] <= MOST_BYTES_EACH
    assert hashlib.sha256(content).hexdigest() == entry["sha256"]


@pytest.mark.parametrize("entry", ENTRIES, ids=lambda entry: entry["file"])
def test_description_is_complete(entry: Entry) -> None:
    keys = MODEL_KEYS if entry in MANIFEST["model"] else DATA_KEYS
    assert keys <= set(entry) <= keys | {"package", "member", "notice"}
    assert all(value or value == 0 for value in entry.values())
    assert ("package" in entry) == ("member" in entry)
    if entry["licence"] == "MIT":
        assert "Copyright" in (MODELS / entry["notice"]).read_text(encoding="utf-8")


def test_all_files_together_stay_small() -> None:
    assert sum(path.stat().st_size for path in MODELS.rglob("*") if path.is_file()) <= MOST_BYTES_TOGETHER


def test_models_come_from_several_exporters() -> None:
    frameworks = " ".join(entry["framework"] for entry in MANIFEST["model"])
    assert all(name in frameworks for name in ("PyTorch", "TensorFlow", "PaddlePaddle"))


@each_model
def test_runtime_loads_it_as_described(entry: Entry) -> None:
    loaded = session(entry)
    assert [value.name for value in loaded.get_inputs()] == entry["inputs"]
    assert [value.name for value in loaded.get_outputs()] == entry["outputs"]
    imports = onnx.load(MODELS / entry["file"]).opset_import
    assert [item.version for item in imports if item.domain == ""] == [entry["opset"]]


@each_model
def test_calibration_data_runs_through_the_model(entry: Entry) -> None:
    loaded = session(entry)
    for path in calibration_files(entry):
        with np.load(path) as arrays:
            feeds = dict(arrays)
        assert set(feeds) == {value.name for value in loaded.get_inputs()}
        assert all(fits(value.shape, feeds[value.name]) for value in loaded.get_inputs())
        assert all(np.isfinite(output).all() for output in loaded.run(None, feeds))


@pytest.mark.parametrize("entry", MANIFEST["data"], ids=lambda entry: entry["file"])
def test_arrays_have_the_stated_shapes(entry: Entry) -> None:
    with np.load(MODELS / entry["file"]) as arrays:
        assert {name: list(arrays[name].shape) for name in arrays} == entry["arrays"]


def test_unseen_digits_are_not_among_the_calibration_digits() -> None:
    with np.load(MODELS / "mnist_calib.npz") as calib, np.load(MODELS / "mnist_unseen.npz") as unseen:
        seen = {digit.tobytes() for digit in calib["input"]}
        assert not seen & {digit.tobytes() for digit in unseen["input"]}
