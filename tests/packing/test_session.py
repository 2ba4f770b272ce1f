"""A session on a packed model computes what one on the model does."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest

from onnxcomp.packing.packer import pack
from onnxcomp.packing.session import open_session
from onnxcomp.testing.models.choosing import RandomChooser
from onnxcomp.testing.models.drawing import build_model
from tests.graphs import feeds_for


def assert_computes_the_same(path: Path) -> None:
    pack(path, path.with_suffix(".onnxp"), force=True)
    whole = onnx.load(path)
    feeds = feeds_for(whole)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    expected = onnxruntime.InferenceSession(whole.SerializeToString(), options).run(None, feeds)
    found = open_session(path.with_suffix(".onnxp")).run(feeds)
    for one, other in zip(found.values(), expected, strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("seed", [0, 3, 5, 8])
def test_a_drawn_model(seed: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("onnxcomp.packing.session.FROM_MEMORY_LEAST", 64)
    path = tmp_path / "m.onnx"
    path.write_bytes(build_model(RandomChooser(seed)).SerializeToString())
    assert_computes_the_same(path)


def test_a_model_with_external_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("onnxcomp.packing.session.FROM_MEMORY_LEAST", 64)
    model = build_model(RandomChooser(1))
    onnx.save(model, tmp_path / "m.onnx", save_as_external_data=True, location="w.bin", size_threshold=0)
    assert_computes_the_same(tmp_path / "m.onnx")
