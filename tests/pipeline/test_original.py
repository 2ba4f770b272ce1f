"""Passes that repair see the model from before anything was lost, in a run and when it is replayed."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from onnx import numpy_helper, parser

from onnxcomp.budget import Budget, Drop
from onnxcomp.contract import Context, Effect, Exact, Outcome
from onnxcomp.contract.weight_pass import WeightPass
from onnxcomp.graph.weights.roles import Weight
from onnxcomp.pipeline import optimize, replay
from onnxcomp.recipe import Recipe
from onnxcomp.registry import get_pass

TEXT = """<ir_version: 8, opset_import: ["" : 17]> g (float[N,12] x) => (float[N,5] y) {
    p = Gemm(x, w, b) q = BatchNormalization(p, s, t, m, d) r = Relu(q) y = Gemm(r, v, c) }"""
SHAPES = {"w": (12, 16), "b": (16,), "s": (16,), "t": (16,), "m": (16,), "d": (16,), "v": (16, 5), "c": (5,)}


def test_weights_and_means_are_held_against_what_exact_steps_left(tmp_path: Path) -> None:
    proto = parser.parse_model(TEXT)
    rng = np.random.default_rng(0)
    for name, shape in SHAPES.items():
        values = np.abs(rng.standard_normal(shape)) + 0.5 if name in "sd" else rng.standard_normal(shape)
        proto.graph.initializer.append(numpy_helper.from_array(values.astype(np.float32), name))
    np.savez(tmp_path / "calib.npz", x=rng.standard_normal((200, 12)).astype(np.float32) + 4)
    steps = [
        get_pass("fuse-batch-norm")(),
        get_pass("quantize-weights")(bits=3, algorithm="nearest"),
        get_pass("correct-bias")(),
        get_pass("round-weights")(bits=3),
    ]
    data = str(tmp_path / "calib.npz")
    result = optimize(
        proto, recipe=Recipe.of(*steps), calibration=data, budget=Budget(max_drop=Drop(10.0)), measure=False
    )
    reports = {each.rewrite: each for each in result.receipt.steps}
    # Without the fused weights as the reference, no rounded form of the original's would be found.
    assert len(reports["round-weights"].changed) == 2
    assert reports["correct-bias"].changed
    first, second = reports["quantize-weights"].divergence, reports["correct-bias"].divergence
    assert first is not None and second is not None and second < first
    again = replay(proto, result.receipt, calibration=data)
    assert again.model.to_bytes() == result.model.to_bytes()


@dataclass(frozen=True, kw_only=True)
class BlurWeights(WeightPass):
    """Move every value by a small share of the largest."""

    effect = Effect(shrinks=("bytes",), exact=Exact.NOWHERE)
    paper = "none"

    def edit(self, weight: Weight, known: None, context: Context, outcome: Outcome) -> None:
        noise = context.rng(weight.name).standard_normal(weight.shape) * np.abs(weight.values).max() / 64
        weight.set((weight.values + noise).astype(np.float32))
        outcome.change(weight.name, "blurred")


def test_a_repair_after_rescaling_is_worth_what_it_is_before(tmp_path: Path) -> None:
    """Weights are repaired as well where an exact pass gave the tensors between them other units since."""
    text = """<ir_version: 8, opset_import: ["" : 17]> g (float[N,12] x) => (float[N,5] y) {
        p = Gemm(x, w, b) r = Relu(p) y = Gemm(r, v, c) }"""
    proto = parser.parse_model(text)
    rng = np.random.default_rng(0)
    spread = np.exp(rng.uniform(-1.5, 1.5, 16))
    for name, shape in {"w": (12, 16), "b": (16,), "v": (16, 5), "c": (5,)}.items():
        values = rng.standard_normal(shape) * (spread if shape[-1] == 16 else 1)
        proto.graph.initializer.append(numpy_helper.from_array(values.astype(np.float32), name))
    np.savez(tmp_path / "calib.npz", x=rng.standard_normal((200, 12)).astype(np.float32) + 2)
    blur, rescale = BlurWeights(), get_pass("equalize-ranges")()
    for repair in (get_pass("match-outputs")(), get_pass("correct-bias")(mode="empirical")):
        left = []
        for order in ((blur, repair), (blur, rescale, repair)):
            budget = Budget(max_drop=Drop(10.0))
            data = str(tmp_path / "calib.npz")
            result = optimize(proto, recipe=Recipe.of(*order), calibration=data, budget=budget, measure=False)
            assert [each.decision for each in result.receipt.steps] == ["kept"] * len(order)
            left.append(float(result.receipt.verdict["divergence"]))
        assert left[1] == pytest.approx(left[0], rel=0.02, abs=1e-6)  # float rounding of the factors
