"""How much the outputs depend on each weight: one is changed alone, and the divergence from the original measured.

Near the original the divergence grows with the squared error, so a single measurement, at about the error of
4 to 5 bits, tells what any other rounding of that weight will do:

    divergence of a change  ~  influence * relative squared error of the node's output

Uneven sensitivity is what uneven bits answer to: Dong et al., HAWQ-V2, https://arxiv.org/abs/1911.03852, where
it is a Hessian's trace; here the outputs themselves are compared.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from onnxcomp.calibration.statistics.moments import Moments
from onnxcomp.graph.ir.nodes import Array
from onnxcomp.graph.ir.reader import close_graph
from onnxcomp.graph.rounding.grid import Grid, Rounded, round_to_grid
from onnxcomp.graph.storage.stored import open_plain
from onnxcomp.graph.weights.roles import Weight, compose, weights
from onnxcomp.model import Model

Evaluate = Callable[[Model], float]  # the divergence from the original, infinity for a model that fails
Progress = Callable[[int, int, str], None]

PROBE_ERROR = 0.01  # relative squared error at which a weight's influence is measured: 4 to 5 bits
PROBED_WEIGHTS = 160  # the largest ones; the rest is a small share of the bytes
PROBE_BITS = (5, 4, 3, 6, 2, 7, 8)  # tried in this order for an error near that
NEAR = 3.0  # a ratio to it that is near enough
LEAST_DIVERGENCE = 1e-9  # what is counted for a change that no sample shows


@dataclass(frozen=True)
class Sensitivity:
    """What a change of one weight does. error: relative and squared, of the node's output where its inputs are
    known, else of the values. divergence: of the model's outputs, measured."""

    error: float
    divergence: float

    @property
    def influence(self) -> float:
        """Divergence for each unit of error."""
        return self.divergence / self.error


def divergence_alone(model: Model, name: str, source: Model, evaluate: Evaluate, base: float) -> float:
    """What the weight as it is in ``source`` adds to the divergence ``base`` of the model; more than 0."""
    return added_divergence(evaluate(compose(model, {name: source})), base)


def added_divergence(divergence: float, base: float) -> float:
    """What one more change adds to the divergence ``base``; more than 0, infinite where the model fails."""
    added = divergence - base
    return max(added, LEAST_DIVERGENCE) if math.isfinite(added) else math.inf


def sensitivities(
    model: Model,
    names: Sequence[str],
    evaluate: Evaluate,
    moments: Mapping[str, Moments],
    *,
    progress: Progress,
) -> Mapping[str, Sensitivity]:
    """The sensitivity of each named weight but those beyond the largest ``PROBED_WEIGHTS`` and those that no grid
    changes; the model remembers it.

    moments: of the inputs, by weight, as far as known.
    """
    known: dict[str, Sensitivity | None] = model.memo.setdefault((sensitivities, evaluate), {})
    missing = [name for name in names if name not in known]
    if missing:
        probe, errors = _probed(model, set(missing), moments)
        ranked = sorted(missing, key=lambda name: -errors.get(name, (0, 0.0))[0])[:PROBED_WEIGHTS]
        base = evaluate(model)
        known.update(dict.fromkeys(missing))
        for index, name in enumerate(ranked):
            progress(index, len(ranked), f"measuring {name}")
            _, error = errors.get(name, (0, 0.0))
            if error > 0:
                known[name] = Sensitivity(error, divergence_alone(model, name, probe, evaluate, base))
    return {name: found for name in names if (found := known[name]) is not None}


def _probed(
    model: Model, names: set[str], moments: Mapping[str, Moments]
) -> tuple[Model, dict[str, tuple[int, float]]]:
    """The model with all the weights at about the error of a probe, and each one's size in values and error."""
    graph = open_plain(model)
    errors: dict[str, tuple[int, float]] = {}
    for weight in weights(graph):
        if weight.name not in names:
            continue
        known = moments.get(weight.name)
        rounded = _probe(weight, None if known is None else known.gram)
        if rounded is not None:
            weight.set(rounded.values, rounded.encoding)
            errors[weight.name] = weight.size, rounded.error
    return close_graph(graph), errors


def _probe(weight: Weight, gram: Array | None) -> Rounded | None:
    """The weight rounded to the nearest with the bits whose error is nearest to a probe's."""
    granularity = "tensor" if weight.channel_axis is None else "channel"
    best: Rounded | None = None
    for bits in PROBE_BITS:
        found = round_to_grid(weight, Grid(bits=bits, granularity=granularity), "nearest", gram)
        if found is None or found.error <= 0:
            continue
        if best is None or _distance(found) < _distance(best):
            best = found
        if _distance(best) <= math.log(NEAR):
            break
    return best


def _distance(rounded: Rounded) -> float:
    return abs(math.log(rounded.error / PROBE_ERROR))
