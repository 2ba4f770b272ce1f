"""Weights that are next to nothing of a model are not searched: what they could save is said instead."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from onnx import numpy_helper, parser

from onnxcomp.pipeline import optimize
from onnxcomp.pipeline.weight_search.driver import WORTH_SEARCHING
from onnxcomp.recipe import Recipe

TEXT = """<ir_version: 8, opset_import: ["" : 17]> g (float[N,24] x, int64[N] at) => (float[N,6] y, int16[N] kept) {
    a = MatMul(x, w) b = Relu(a) y = MatMul(b, v) kept = Gather(lookup, at) }"""
WEIGHT_BYTES = 4 * (24 * 64 + 64 * 6)


@pytest.mark.parametrize(("share", "is_searched"), [(2.0, True), (0.9, False)])
def test_of_weights_that_can_save_little_none_is_changed(tmp_path: Path, share: float, is_searched: bool) -> None:
    """share: of what is worth a search, the weights' bytes in all."""
    proto = parser.parse_model(TEXT)
    rng = np.random.default_rng(0)
    entries = int(WEIGHT_BYTES / (share * WORTH_SEARCHING)) // 2
    tensors = {
        "w": rng.standard_normal((24, 64)).astype(np.float32),
        "v": rng.standard_normal((64, 6)).astype(np.float32),
        "lookup": rng.integers(-(2**15), 2**15, entries).astype(np.int16),
    }
    proto.graph.initializer.extend(numpy_helper.from_array(values, name) for name, values in tensors.items())
    data = tmp_path / "calib.npz"
    np.savez(data, x=rng.standard_normal((200, 24)).astype(np.float32), at=rng.integers(0, entries, 200))
    recipe = Recipe.from_dict({"step": [{"choose": ["quantize-weights", "cluster-weights"]}]}, name="test")
    receipt = optimize(proto, recipe=recipe, calibration=str(data), measure=False).receipt
    assert bool(receipt.applied) == is_searched
    reasons = {skip.what for step in receipt.steps for skip in step.skipped}
    assert any("the strongest forms of all weights together save" in each for each in reasons) != is_searched
