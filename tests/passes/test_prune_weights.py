"""prune-weights: which values go, in one weight and over the model, and the mask that stays."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import onnx
import pytest

from onnxcomp.contract import Context
from onnxcomp.errors import ParameterError
from onnxcomp.graph.ir.reader import close_graph, open_graph
from onnxcomp.graph.weights.roles import weights
from onnxcomp.model import load
from onnxcomp.numerics.encodings.encoding import MaskEncoding
from onnxcomp.registry import get_pass
from tests.passes.revalued import model_with, random_weight, revalue

TWO_WEIGHTS = """<ir_version: 8, opset_import: ["" : 17]> g (float[N, 2] x) => (float[N, 2] y)
<float[2, 2] small = {1, -2, 3, -4}, float[2, 2] large = {10, -5, 30, -40}>
{ [first] h = MatMul(x, small)  y = MatMul(h, large) }"""


def pruned(**fields: Any) -> dict[str, list[float]]:
    graph = open_graph(load(onnx.parser.parse_model(TWO_WEIGHTS)))
    context = Context(exclude=fields.pop("exclude", ()))
    get_pass("prune-weights")(**fields).apply(graph, context)
    return {weight.name: np.asarray(weight.values).ravel().tolist() for weight in weights(graph)}


def test_each_weight_loses_its_smallest() -> None:
    assert pruned(sparsity=0.5) == {"small": [0, 0, 3, -4], "large": [0, 0, 30, -40]}


def test_one_threshold_for_the_model() -> None:
    assert pruned(sparsity=0.5, scope="model") == {"small": [0, 0, 0, 0], "large": [10, -5, 30, -40]}


@pytest.mark.parametrize("pattern", ["small", "fir*"])
def test_what_is_excluded_does_not_count(pattern: str) -> None:
    wanted = {"small": [1, -2, 3, -4], "large": [0, 0, 30, -40]}
    assert pruned(sparsity=0.5, scope="model", exclude=(pattern,)) == wanted


@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16, np.float64])
def test_zeros_are_positive_and_a_mask(dtype: Any) -> None:
    values = random_weight(8, 5, dtype=dtype)
    values[0, 0] = -0.0
    done = revalue(values, ("prune-weights", {"sparsity": 0.3}))
    assert done.values.dtype == dtype
    assert np.count_nonzero(done.values == 0) == 12
    assert not np.signbit(done.values[done.values == 0].astype(np.float32)).any()
    assert isinstance(done.encoding, MaskEncoding)
    assert np.array_equal(done.values[done.values != 0], values[done.values != 0])


def test_nothing_to_prune_is_said() -> None:
    done = revalue(random_weight(2, 2), ("prune-weights", {"sparsity": 0.0}))
    assert done.reason == "all of its values are among the ones to keep"


def test_infinities_are_left_alone() -> None:
    done = revalue(np.array([[1, np.inf], [2, 3]], np.float32), ("prune-weights", {"sparsity": 0.5}))
    assert done.reason == "it has values that are not finite"


@pytest.mark.parametrize(
    "later",
    [
        ("cluster-weights", {"bits": 3}),
        ("cluster-weights", {"bits": 3, "granularity": "tensor"}),
        ("quantize-weights", {"bits": 4}),
        ("quantize-weights", {"bits": 4, "symmetric": False}),
        ("ternarize-weights", {}),
        ("binarize-weights", {}),
    ],
    ids=lambda later: f"{later[0]} {later[1]}",
)
@pytest.mark.parametrize("op", ["MatMul", "Conv"])
def test_zeros_stay_zero_in_later_passes(later: tuple[str, dict[str, Any]], op: str) -> None:
    values = random_weight(*((16, 8) if op == "MatMul" else (8, 4, 3, 3)))
    values[0] = 0
    before = revalue(values, ("prune-weights", {"sparsity": 0.6}), op=op)
    after = revalue(values, ("prune-weights", {"sparsity": 0.6}), later, op=op)
    assert np.all(after.values[before.values == 0] == 0)
    assert not np.signbit(after.values[before.values == 0]).any()
    assert after.codes is not None


def test_vectors_would_not_keep_zeros() -> None:
    steps = ("prune-weights", {"sparsity": 0.5}), ("cluster-weights", {"bits": 2, "vector_size": 2})
    assert "pruned" in revalue(random_weight(8, 8), *steps).reason


def stored(values: np.ndarray, *steps: tuple[str, dict[str, Any]]) -> int:
    """Bytes of the file after the passes, stored compactly."""
    model = load(model_with(values))
    for name, fields in (*steps, ("store-compact", {})):
        graph = open_graph(model)
        get_pass(name)(**fields).apply(graph, Context())
        model = close_graph(graph)
    return len(model.to_bytes())


def test_nine_zeros_in_ten_and_four_bits_take_a_twenty_fifth() -> None:
    """A million values: at most 0.04 of dense float32, and the zeros are where they were put."""
    values = random_weight(1000, 1000)
    steps = ("prune-weights", {"sparsity": 0.9}), ("cluster-weights", {"bits": 4, "granularity": "tensor"})
    assert stored(values, *steps) < 0.04 * values.nbytes
    done = revalue(values, *steps)
    assert np.mean(done.values == 0) >= 0.9


def test_zeros_alone_take_less_than_the_values_do() -> None:
    """Half of them: a bit each tells where the others stand."""
    values = random_weight(200, 200)
    assert stored(values, ("prune-weights", {"sparsity": 0.5})) < (0.5 + 1 / 32 + 0.02) * values.nbytes


def test_a_threshold_is_of_magnitudes() -> None:
    assert pruned(threshold=3.5) == {"small": [0, 0, 0, -4], "large": [10, -5, 30, -40]}


def test_a_threshold_is_one_for_all_already() -> None:
    with pytest.raises(ParameterError, match="threshold must be unset with scope = model, got 1"):
        get_pass("prune-weights")(threshold=1.0, scope="model")


def test_rows_lose_the_same_share() -> None:
    """The outputs of a product are the columns of its right operand."""
    assert pruned(sparsity=0.5, scope="row") == {"small": [0, 0, 3, -4], "large": [0, 0, 30, -40]}
    values = np.array([[1, 20, 3, 4], [5, 60, 7, 8]], np.float32)
    done = revalue(values, ("prune-weights", {"sparsity": 0.5, "scope": "row"}))
    assert done.values.tolist() == [[0, 0, 0, 0], [5, 60, 7, 8]]


def test_rows_of_a_table_are_its_columns() -> None:
    """Of what is looked up nothing is summed: all values of a channel stand in different rows."""
    values = np.array([[1, 20], [5, 60], [7, 80], [8, 90]], np.float32)
    done = revalue(values, ("prune-weights", {"sparsity": 0.5, "scope": "row"}), op="Gather")
    assert done.values.tolist() == [[0, 0], [0, 0], [7, 80], [8, 90]]


def test_pruned_again_keeps_its_zeros() -> None:
    values = random_weight(8, 8)
    once = revalue(values, ("prune-weights", {"sparsity": 0.5}))
    twice = revalue(values, ("prune-weights", {"sparsity": 0.5}), ("prune-weights", {"sparsity": 0.75}))
    assert not twice.values[once.values == 0].any()
    assert np.count_nonzero(twice.values) == 16
