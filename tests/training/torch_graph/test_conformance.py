"""The node models of onnx: the executor gives what onnx says, and autograd the derivatives of what it gives."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from onnx import AttributeProto

torch = pytest.importorskip("torch", reason="torch is not installed: pip install 'onnxcomp[train]', or make test-torch")

from onnxcomp.model import load
from onnxcomp.training.torch_graph.executor import Executor
from onnxcomp.training.torch_graph.rule_table import RULES
from tests.training.torch_graph.node_models import RANDOM, NodeModel, node_models

SHORT = {"bfloat16": 2.0**-7, "float16": 2.0**-10}
STEP = 1e-6
STRAIGHT_THROUGH = {"DynamicQuantizeLinear", "QuantizeLinear", "QLinearConv", "QLinearMatMul"}
NO_SLOPE = {"BitCast", "CausalConvWithState", "LinearAttention"}  # of bits; in float32 by definition
ELSEWHERE = {  # no node model has them: tests/training/torch_graph/test_rules.py
    "ConcatFromSequence", "GlobalLpPool", "Optional", "RandomNormal", "RandomUniform", "SequenceAt",
    "SequenceConstruct", "SequenceErase", "SimplifiedLayerNormalization",
}  # fmt: skip


@pytest.mark.parametrize("case", node_models(), ids=lambda case: case.name.removeprefix("test_"))
def test_gives_what_onnx_says(case: NodeModel) -> None:
    got = Executor(load(case.model), threads=1).outputs_of(case.feeds, {})
    for name, expected in case.outputs.items():
        _same(got[name], expected, case)


def _same(got: Any, expected: Any, case: NodeModel) -> None:
    if isinstance(expected, list):
        assert len(got) == len(expected)
        for one, other in zip(got, expected, strict=True):
            _same(one, other, case)
        return
    if expected is None:
        assert got is None
        return
    expected = np.asarray(expected)
    assert got.shape == expected.shape
    if expected.dtype.kind in "OSU":
        assert got.astype(str).tolist() == expected.astype(str).tolist()
        return
    assert got.dtype == expected.dtype
    rounding = SHORT.get(expected.dtype.name, 0.0)
    wide = complex if expected.dtype.kind == "c" else float
    np.testing.assert_allclose(
        got.astype(wide), expected.astype(wide), rtol=max(case.rtol, rounding), atol=max(case.atol, 1e-5, rounding)
    )


def test_nearly_all_rules_and_models_are_covered() -> None:
    without = {op for domain, op in RULES if not domain}
    without -= {node.op_type for case in node_models() for node in case.model.graph.node}
    assert without == RANDOM | ELSEWHERE
    assert len(node_models()) > 1700


def _has_slopes(case: NodeModel) -> bool:
    """Whether it computes on floats that may be in float64, without casts to shorter ones, and without steps."""
    nodes = case.model.graph.node
    operators = {node.op_type for node in nodes}
    if operators & (STRAIGHT_THROUGH | NO_SLOPE) or case.name.endswith("_expanded_ver26"):
        return False
    if "crop_and_resize" in case.name or "training_dropout" in case.name:  # what is moved is a region, a rate
        return False
    if any(len(nodes) > 1 and _names_a_float(each) for node in nodes for each in node.attribute):
        return False
    return any(_is_float(each) for each in case.feeds.values())


def _is_float(value: Any) -> bool:
    return isinstance(value, np.ndarray) and value.dtype in (np.float32, np.float64) and value.size > 0


def _names_a_float(attribute: AttributeProto) -> bool:
    return attribute.name in ("to", "value", "stash_type", "value_float")


@pytest.mark.parametrize("case", filter(_has_slopes, node_models()), ids=lambda case: case.name.removeprefix("test_"))
def test_slopes_are_those_of_central_differences(case: NodeModel) -> None:
    rng = np.random.default_rng(0)
    executor = Executor(load(case.model), threads=1)
    moved = {name: each for name, each in case.feeds.items() if _is_float(each)}
    start = {name: each + 1e-3 * rng.normal(size=each.shape) for name, each in moved.items()}
    way = {name: rng.normal(size=each.shape) for name, each in moved.items()}
    if any(not np.isfinite(each).all() for each in start.values()):
        pytest.skip("it is of infinities")

    def weighted(step: float) -> tuple[Any, dict[str, Any]]:
        points = {name: torch.tensor(start[name] + step * way[name], requires_grad=True) for name in moved}
        total = torch.zeros((), dtype=torch.float64)
        with executor.settings():
            made = executor.run({**case.feeds, **points}, {})
        share = torch.Generator().manual_seed(1)
        for each in (one for value in made for one in (value if isinstance(value, list) else [value])):
            if isinstance(each, torch.Tensor) and each.dtype.is_floating_point:
                total = total + (each.double() * torch.randn(each.shape, generator=share, dtype=torch.float64)).sum()
        return total, points

    total, points = weighted(0.0)
    numeric = (float(weighted(STEP)[0].detach()) - float(weighted(-STEP)[0].detach())) / (2 * STEP)
    slopes = torch.autograd.grad(total, list(points.values()), allow_unused=True) if total.requires_grad else ()
    found = sum(float((slope.numpy() * way[name]).sum()) for name, slope in zip(points, slopes, strict=False)
                if slope is not None)  # fmt: skip
    if np.isfinite(numeric):
        assert found == pytest.approx(numeric, rel=1e-5, abs=1e-5)


