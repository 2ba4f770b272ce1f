"""A model that takes axes or shapes as inputs runs on no random ones: only exact passes touch it."""

import numpy as np
import pytest
from onnx import parser

from onnxcomp.errors import CalibrationError
from onnxcomp.pipeline import optimize
from onnxcomp.recipe import Recipe
from onnxcomp.registry import get_pass
from onnxcomp.runtime import Session

SLICED = parser.parse_model("""
    <ir_version: 8, opset_import: ["" : 17]>
    main (float[20,4] x, int64[1] starts, int64[1] ends, int64[1] axes) => (float[n,m] y)
    <float[4,4] w = {1,0,0,0, 0,1,0,0, 0,0,1,0, 0,0,0,1}>
    { i = Identity(x)  p = MatMul(i, w)  y = Slice(p, starts, ends, axes) }
""")


@pytest.mark.parametrize("recipe", ["lossless", "default", "small"])
def test_exact_passes_alone_are_applied_and_the_receipt_says_why(recipe: str) -> None:
    result = optimize(SLICED, recipe=recipe)
    assert [node.op_type for node in result.model.proto.graph.node if node.op_type != "Constant"][-1] == "Slice"
    assert all(get_pass(step.rewrite).effect.exact for step in result.receipt.steps)
    assert any("exact passes only" in note for note in result.receipt.notes)
    assert result.receipt.data["samples"] == 0
    feeds = {
        "x": np.arange(80, dtype=np.float32).reshape(20, 4),
        "starts": np.array([3]),
        "ends": np.array([5]),
        "axes": np.array([0]),
    }
    np.testing.assert_array_equal(Session(result.model.to_bytes()).run(feeds)["y"], feeds["x"][3:5])


def test_a_recipe_without_exact_passes_is_refused() -> None:
    with pytest.raises(CalibrationError, match="give data"):
        optimize(SLICED, recipe=Recipe.of(get_pass("prune-weights")()))
