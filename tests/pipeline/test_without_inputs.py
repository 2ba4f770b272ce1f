"""A model that takes sizes or axes as inputs runs on no random ones: only exact passes touch it."""

import numpy as np
import pytest
from onnx import parser

from onnxcomp.errors import CalibrationError
from onnxcomp.pipeline import optimize
from onnxcomp.recipe import Recipe
from onnxcomp.registry import get_pass
from onnxcomp.runtime import Session

PARTED = parser.parse_model("""
    <ir_version: 8, opset_import: ["" : 17]>
    main (float[20,4] x, int64[2] sizes) => (float[n,4] y, float[m,4] z)
    <float[4,4] w = {1,0,0,0, 0,1,0,0, 0,0,1,0, 0,0,0,1}>
    { i = Identity(x)  p = MatMul(i, w)  y, z = Split <axis = 0> (p, sizes) }
""")


@pytest.mark.parametrize("recipe", ["lossless", "default", "small"])
def test_exact_passes_alone_are_applied_and_the_receipt_says_why(recipe: str) -> None:
    result = optimize(PARTED, recipe=recipe)
    assert "Identity" not in [node.op_type for node in result.model.proto.graph.node]
    assert all(get_pass(step.rewrite).effect.is_exact for step in result.receipt.steps)
    assert any("exact passes only" in note for note in result.receipt.notes)
    assert result.receipt.data["samples"] == 0
    x = np.arange(80, dtype=np.float32).reshape(20, 4)
    outputs = Session(result.model.to_bytes()).run({"x": x, "sizes": np.array([15, 5])})
    np.testing.assert_array_equal(outputs["y"], x[:15])
    np.testing.assert_array_equal(outputs["z"], x[15:])


def test_a_recipe_without_exact_passes_is_refused() -> None:
    with pytest.raises(CalibrationError, match="give data"):
        optimize(PARTED, recipe=Recipe.of(get_pass("prune-weights")()))
