"""Passes that bend weights and straighten them again, on a chain of matrices, for tests of what is kept."""

from __future__ import annotations

import importlib
from dataclasses import dataclass

import numpy as np
import pytest
from onnx import numpy_helper

from onnxcomp.contract import Context, Effect, Exact, Outcome, Pass, parameter
from onnxcomp.graph.ir.query import node_key
from onnxcomp.graph.ir.reader import Graph, open_graph
from onnxcomp.graph.provenance import Reference
from onnxcomp.graph.weights.roles import weights
from onnxcomp.model import Model
from onnxcomp.pipeline import Result, optimize, replay
from onnxcomp.recipe import Recipe, Step
from tests.pipeline.chain import chain

replaying = importlib.import_module("onnxcomp.pipeline.replay")


@dataclass(frozen=True, kw_only=True)
class BendWeights(Pass):
    """Multiply every weight that is not bent so far already."""

    effect = Effect(shrinks=("bytes",), exact=Exact.NOWHERE)

    by: float = parameter(1.5, help="the factor, of the original's values")
    only: str | None = parameter(None, help="the one weight to bend")

    def apply(self, graph: Graph, context: Context) -> Outcome:
        outcome = Outcome()
        before = _values(context.reference)
        for weight in weights(graph):
            bent = before[weight.name] * np.float32(self.by)
            wanted = self.only in (None, weight.name) and context.selects(weight.name, *weight.node_names)
            if wanted and not np.array_equal(weight.values, bent):
                weight.set(bent)
                outcome.change(weight.name, f"times {self.by}")
        return outcome


@dataclass(frozen=True, kw_only=True)
class MendWeights(Pass):
    """Bring weights that are bent near to what the original has."""

    effect = Effect(shrinks=("bytes",), exact=Exact.NOWHERE)

    left: float = parameter(0.001, help="what is left of the error")

    def apply(self, graph: Graph, context: Context) -> Outcome:
        outcome = Outcome()
        before = _values(context.reference)
        for weight in weights(graph):
            mended = before[weight.name] * np.float32(1 + self.left)
            if context.selects(weight.name) and not np.array_equal(weight.values, before[weight.name]):
                weight.set(mended)
                outcome.change(weight.name, "mended")
        return outcome


@dataclass(frozen=True, kw_only=True)
class HalveFirst(Pass):
    """Halve what the first matrix gives and double it behind, which no output shows."""

    effect = Effect(shrinks=("bytes",), exact=Exact.OUTPUTS)

    def apply(self, graph: Graph, context: Context) -> Outcome:
        outcome = Outcome()
        for weight, factor in zip(weights(graph), (0.5, 2.0), strict=False):
            if context.selects(weight.name):
                weight.set(weight.values * np.float32(factor))
                outcome.change(weight.name, "scaled")
        return outcome


@dataclass(frozen=True, kw_only=True)
class FindNothing(Pass):
    """Find nothing to do."""

    effect = Effect(shrinks=("bytes",), exact=Exact.NOWHERE)

    def apply(self, graph: Graph, context: Context) -> Outcome:
        return Outcome()


@dataclass(frozen=True, kw_only=True)
class CopyInputs(Pass):
    """Put an Identity before every MatMul, known by the name of the node."""

    effect = Effect(shrinks=("bytes",), exact=Exact.NOWHERE)

    def apply(self, graph: Graph, context: Context) -> Outcome:
        outcome = Outcome()
        for node in [each for each in graph.main.graph.nodes if each.op == "MatMul"]:
            if context.selects(node_key(graph.main, node)):
                made = graph.variable("copied")
                graph.node(graph.main, "Identity", [node.inputs[0]], [made], before=node)
                node.inputs[0] = made
                outcome.change(node_key(graph.main, node), "copied")
        return outcome


OWN = {each.pass_name(): each for each in (BendWeights, MendWeights, HalveFirst, FindNothing, CopyInputs)}


def _values(reference: Reference | None) -> dict[str, np.ndarray]:
    assert reference is not None
    return {each.name: each.values for each in weights(open_graph(reference.model))}


def run(calib: str, *steps: Pass | Step, length: int = 3, **options: object) -> Result:
    """The steps on a chain."""
    recipe = Recipe.of(*steps)
    return optimize(chain(length), recipe=recipe, calibration=calib, measure=False, **options)  # type: ignore[arg-type]


def factors(model: Model) -> list[float]:
    """By how much each matrix is bent."""
    before, after = ({each.name: numpy_helper.to_array(each) for each in proto.graph.initializer}
                     for proto in (chain(len(model.proto.graph.initializer)), model.proto))  # fmt: skip
    return [round(float(np.mean(after[name] / before[name])), 4) for name in sorted(before)]


def assert_replays(result: Result, calib: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The receipt alone gives the same bytes."""
    shipped = replaying.get_pass
    monkeypatch.setattr(replaying, "get_pass", lambda name: OWN.get(name) or shipped(name))
    again = replay(chain(len(result.model.proto.graph.initializer)), result.receipt, calibration=calib)
    assert again.model.to_bytes() == result.model.to_bytes()
