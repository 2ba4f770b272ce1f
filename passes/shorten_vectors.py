"""Biases and other vectors are rounded to what float16 holds; they stay float32, and the graph stays as it is.

    b -> float32(float16(b))

``store-compact`` then keeps them in half the bytes. Weights of two and more dimensions are left to the passes that
know more about them.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from onnxcomp.contract import (
    Choice,
    Context,
    Effect,
    Exact,
    Outcome,
    Quantity,
    Site,
    SitePass,
    Skip,
    Structure,
    Survey,
    parameter,
)
from onnxcomp.graph.ir.nodes import Array, Constant
from onnxcomp.graph.ir.query import is_onnx, node_key
from onnxcomp.graph.ir.reader import Graph, Scope
from onnxcomp.numerics.metrics.weight_error import relative_error

# Operator -> where it reads a vector whose values add up or scale, so that a 2048th of one is little. Not among them
# are variances (a root is taken), bounds, epsilons and what says sizes.
PLACES: dict[str, frozenset[int]] = {
    "Conv": frozenset({2}), "ConvTranspose": frozenset({2}), "Gemm": frozenset({2}),
    "LSTM": frozenset({3}), "GRU": frozenset({3}), "RNN": frozenset({3}),
    "Add": frozenset({0, 1}), "Sub": frozenset({0, 1}), "Mul": frozenset({0, 1}), "PRelu": frozenset({1}),
    "BatchNormalization": frozenset({1, 2}), "InstanceNormalization": frozenset({1, 2}),
    "LayerNormalization": frozenset({1, 2}), "GroupNormalization": frozenset({1, 2}),
}  # fmt: skip
LARGEST = float(np.finfo(np.float16).max)
LEAST_PEAK = 2.0**-10  # the largest value: below, too many others would be coarser than float16 usually is


@dataclass(frozen=True, kw_only=True)
class ShortenVectors(SitePass):
    """Round biases and other float32 vectors to what float16 holds, for compact storage.

    Left alone are vectors with values beyond float16's range, or all of them tiny, and those read where a small change
    may be large: variances, bounds, sizes. Deviation from the paper: only what is stored is short.
    """

    effect = Effect(shrinks=("bytes",), exact=Exact.NOWHERE)
    paper = "https://arxiv.org/abs/1710.03740"
    destroys = frozenset({Structure.COMPACT})

    min_size: int = parameter(24, low=1, help="values of the smallest vector; a Cast takes some 30 bytes")

    def sites(self, graph: Graph, context: Context) -> Survey:
        found, skipped = [], []
        for key, scope, constant in self._vectors(graph):
            readers = _readers(scope, constant)
            if not context.selects(key, *readers):
                continue
            reason = _obstacle(np.asarray(constant.values))
            if reason is None:
                found.append(Site(key, tuple(readers), {Quantity.BYTES: constant.nbytes}))
            else:
                skipped.append(Skip(key, reason))
        return Survey(tuple(found), tuple(skipped))

    def rewrite(self, graph: Graph, choice: Choice, context: Context) -> Outcome:
        outcome = Outcome()
        for key, _, constant in self._vectors(graph):
            if key not in choice:
                continue
            values = np.asarray(constant.values)
            short = values.astype(np.float16).astype(np.float32)
            if short.tobytes() != values.tobytes():
                constant.values = short
                outcome.change(key, "rounded to float16", error=relative_error(values, short))
        return outcome

    def _vectors(self, graph: Graph) -> list[tuple[str, Scope, Constant]]:
        """Every vector that may be rounded, with the name that it is known by."""
        return [
            (scope.key(constant.name), scope, constant)
            for scope in graph.scopes
            for constant in scope.constants
            if self._is_vector(graph, constant)
        ]

    def _is_vector(self, graph: Graph, constant: Constant) -> bool:
        """Whether it is a float32 vector that is read at the known places only."""
        if constant.dtype != np.float32 or constant.size < self.min_size or graph.is_output(constant):
            return False
        if sum(size > 1 for size in constant.shape) != 1 and constant.shape != (1, constant.size):
            return False
        places = [
            is_onnx(node, *PLACES) and index in PLACES[node.op]
            for node in constant.outputs
            for index, each in enumerate(node.inputs)
            if each is constant
        ]
        return bool(places) and all(places)


def _readers(scope: Scope, constant: Constant) -> list[str]:
    return [node_key(scope, node) for node in constant.outputs]


def _obstacle(values: Array) -> str | None:
    """Why the values cannot be rounded, or None."""
    if not np.isfinite(values).all():
        return "it has values that are not finite"
    peak = float(np.abs(values).max())
    if peak > LARGEST:
        return "it has values beyond the range of float16"
    return f"all its values are under {LEAST_PEAK:.1g}" if 0 < peak < LEAST_PEAK else None
