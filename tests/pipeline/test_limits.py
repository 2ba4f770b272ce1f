"""A budget of nothing at all, and names that are patterns."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
import pytest

import onnxcomp
from onnxcomp.budget import Budget
from onnxcomp.contract import Context, Effect, Exact, Outcome, Pass
from onnxcomp.errors import ParameterError, PassError
from onnxcomp.graph.ir.reader import Graph
from onnxcomp.recipe import single

from ..test_model import linear_model


@pytest.fixture
def model() -> onnx.ModelProto:
    return linear_model(np.random.default_rng(0).standard_normal((16, 8)).astype(np.float32))


def samples(folder: Path, model: onnx.ModelProto, *, labelled: bool) -> Path:
    path = folder / "calib.npz"
    x = np.random.default_rng(1).standard_normal((96, 16)).astype(np.float32)
    weight = onnx.numpy_helper.to_array(model.graph.initializer[0])
    np.savez(path, x=x, **({"labels": (x @ weight).argmax(axis=1)} if labelled else {}))
    return path


@pytest.mark.parametrize(("recipe", "labelled"), [("small", True), ("default", False)])
def test_a_drop_of_nothing_is_kept_to(model: onnx.ModelProto, recipe: str, labelled: bool, tmp_path: Path) -> None:
    budget = Budget.parse(max_drop="0")
    calibration = samples(tmp_path, model, labelled=labelled)
    result = onnxcomp.optimize(model, recipe=recipe, calibration=calibration, budget=budget, measure=False)
    verdict = result.receipt.verdict
    assert verdict["passed"] and verdict["divergence"] <= 0


def test_a_name_with_brackets_excludes_itself(model: onnx.ModelProto) -> None:
    model.graph.initializer[0].name = model.graph.node[0].input[1] = "w[0]"
    kept = onnxcomp.optimize(model, recipe="small", exclude=["w[0]"], measure=False)
    touched = {each.name for step in kept.receipt.steps for each in step.changed}
    assert "w[0]" not in touched


def test_a_pattern_that_matches_nothing_is_refused(model: onnx.ModelProto) -> None:
    with pytest.raises(ParameterError, match="W9 matches no weight and no node"):
        onnxcomp.optimize(model, exclude=["w", "W9"])


@dataclass(frozen=True, kw_only=True)
class FailWeights(Pass):
    """Fail at every weight."""

    effect = Effect(shrinks=("bytes",), exact=Exact.TENSORS)

    def apply(self, graph: Graph, context: Context) -> Outcome:
        raise KeyError("no\nsuch weight")


def test_a_pass_that_fails_is_named_in_one_line(model: onnx.ModelProto) -> None:
    with pytest.raises(PassError, match=r"fail-weights: failed on g: KeyError: 'no\\nsuch weight'") as caught:
        onnxcomp.optimize(model, recipe=single(FailWeights()), measure=False)
    assert isinstance(caught.value.__cause__, KeyError)
