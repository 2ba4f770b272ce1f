"""Options that prune: what they are foreseen to cost before data are drawn on, and that a search takes them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import numpy_helper, parser

from onnxcomp.budget import Budget, Drop
from onnxcomp.calibration import CalibrationData
from onnxcomp.contract import Context
from onnxcomp.graph.stored.opening import open_plain
from onnxcomp.graph.weights.roles import weights
from onnxcomp.model import Model, load
from onnxcomp.pipeline.api import optimize
from onnxcomp.pipeline.objective import Objective
from onnxcomp.pipeline.weight_search.candidates import Candidates, Table, WeightOption
from onnxcomp.pipeline.weight_search.pruned_options import (
    compensation,
    foresee_compensation,
    leave_out_idle,
    without_pruned,
)
from onnxcomp.recipe import Recipe
from onnxcomp.registry import get_pass
from onnxcomp.runtime import Session
from tests.pipeline.weight_search.fits import put_in

NET = """<ir_version: 8, opset_import: ["" : 17]>
g (float[N, 256] x) => (float[N, 48] y) { y = MatMul(x, w) }"""


def test_errors_of_pruned_options_count_for_what_data_will_leave() -> None:
    plain, dense = WeightOption(None, 4000, 0.0), WeightOption(1, 500, 0.02, zeros=0.3)
    pruned, made = WeightOption(2, 400, 0.2, zeros=0.75), WeightOption(3, 300, 0.4, zeros=0.9)
    table = Table({"w": [plain, dense, pruned, made]})
    put_in(table, 3, _net(np.ones((256, 48), np.float32)), ["w"])
    foresee_compensation(table)
    assert [each.error for each in table.options["w"]] == [0.0, 0.02, 0.25 * 0.2, 0.4]
    assert [each.size_bytes for each in table.options["w"]] == [4000, 500, 400, 300]


def test_of_several_weights_of_a_shape_the_first_tells_what_data_will_leave(tmp_path: Path) -> None:
    """Of independent inputs nothing makes up for zeros; data show nothing of what is only looked up."""
    rng = np.random.default_rng(0)
    proto = parser.parse_model("""<ir_version: 8, opset_import: ["" : 17]>
        g (float[N, 32] x, int64[N] at) => (float[N, 32] y) {
            a = MatMul(x, w0) b = MatMul(a, w1) c = MatMul(b, w2) d = Gather(table, at) y = Add(c, d) }""")
    for name, rows in {"w0": 32, "w1": 32, "w2": 32, "table": 40}.items():
        values = (rng.standard_normal((rows, 32)) / 6).astype(np.float32)
        proto.graph.initializer.append(numpy_helper.from_array(values, name))
    np.savez(tmp_path / "c.npz", x=rng.standard_normal((400, 32)).astype(np.float32), at=rng.integers(0, 40, 400))
    model, cluster = load(proto), get_pass("cluster-weights")
    with model.opened_on(Session) as session:
        data = CalibrationData.open(tmp_path / "c.npz", session.inputs)
    passes = (cluster(bits=4.0), cluster(bits=4.0, sparsity=0.6))
    candidates = Candidates(model, passes, Context(calibration=data))
    factors = compensation(candidates.without_data().look(), candidates)
    assert factors["table"] == 1.0
    assert 0.5 < factors["w0"] <= 1.0 and factors["w0"] == factors["w1"] == factors["w2"]


def test_what_is_taken_without_pruned_options_is_known() -> None:
    plain, dense = WeightOption(None, 4000, 0.0), WeightOption(1, 500, 0.02)
    pruned = WeightOption(2, 400, 0.2, zeros=0.5)
    table = Table({"w": [plain, dense, pruned]})
    found = without_pruned(table)
    assert found.options == {"w": [plain, dense]}
    assert table.options == {"w": [plain, dense, pruned]} and found.influence is table.influence


def test_where_coded_bytes_count_zeros_are_no_mask() -> None:
    plain, dense = WeightOption(None, 4000, 0.0), WeightOption(1, 500, 0.010)
    idle = WeightOption(2, 510, 0.012, zeros=0.9)
    table = Table({"w": [plain, dense, idle]}, objective=Objective(coded=True))
    foresee_compensation(table)
    leave_out_idle(table)
    assert table.options == without_pruned(table).options == {"w": [plain, dense, idle]}


def test_pruned_options_stay_where_they_are_clearly_better() -> None:
    """Half more error at no more bytes is what an option without a mask may have."""
    plain = WeightOption(None, 4000, 0.0)
    dense = [WeightOption(1, 500, 0.010), WeightOption(2, 300, 0.100)]
    better, idle = WeightOption(3, 500, 0.0066, zeros=0.5), WeightOption(4, 500, 0.0067, zeros=0.5)
    smaller, later = WeightOption(5, 499, 0.06, zeros=0.8), WeightOption(6, 290, 0.5, zeros=0.9)
    table = Table({"w": [plain, *dense, better, idle, smaller, later]})
    leave_out_idle(table)
    assert table.options["w"] == [plain, *dense, better, smaller, later]


def test_a_search_prunes_a_weight_whose_inputs_have_much_in_common(tmp_path: Path) -> None:
    """256 inputs that are mixtures of eight: an eighth of the values can do what all did, and takes fewest bytes."""
    rng = np.random.default_rng(0)
    values = rng.standard_normal((256, 48)).astype(np.float32)
    model = _net(values)
    common = rng.standard_normal((400, 8)) @ rng.standard_normal((8, 256)) + 0.01 * rng.standard_normal((400, 256))
    np.savez(tmp_path / "calib.npz", x=common.astype(np.float32))
    steps = [{"choose": ["cluster-weights"]}, {"pass": "store-compact"}]
    recipe = Recipe.from_dict({"description": "made up", "step": steps}, name="made up")
    result = optimize(model, recipe=recipe, calibration=str(tmp_path / "calib.npz"), measure=False)
    found = np.asarray(weights(open_plain(result.model))[0].values)  # whatever it is stored as
    assert np.mean(found == 0) >= 0.6
    assert result.model.size_bytes < 0.06 * values.nbytes


def test_a_budget_decides_how_much_is_pruned(tmp_path: Path) -> None:
    """The target is a drop: the same weight loses more within a wider budget."""
    rng = np.random.default_rng(0)
    model = _net(rng.standard_normal((256, 48)).astype(np.float32))
    x = rng.standard_normal((400, 60)) @ rng.standard_normal((60, 256)) + 0.3 * rng.standard_normal((400, 256))
    np.savez(tmp_path / "calib.npz", x=x.astype(np.float32))
    recipe = Recipe.from_dict(
        {"description": "made up", "step": [{"pass": "prune-weights", "sparsity": "auto"}]}, name="made up"
    )
    zeros = []
    for drop in (0.05, 0.3):
        budget = Budget(max_drop=Drop(drop))
        result = optimize(
            model, recipe=recipe, calibration=str(tmp_path / "calib.npz"), measure=False, budget=budget
        )
        assert result.receipt.verdict["divergence"] <= drop
        zeros.append(float(np.mean(np.asarray(weights(open_plain(result.model))[0].values) == 0)))
    assert 0 < zeros[0] < zeros[1]


def _net(values: np.ndarray) -> Model:
    proto = parser.parse_model(NET)
    proto.graph.initializer.append(numpy_helper.from_array(values, "w"))
    onnx.checker.check_model(proto)
    return load(proto)

