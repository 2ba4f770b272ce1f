"""For each output that holds values at many positions, the output whose scores say where something is: itself, or the
one beside it with the same positions."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from onnxcomp.numerics import metrics
from onnxcomp.numerics.metrics import Batches, Output, Scores

Seen = Callable[[str], Batches]
Axes = Callable[[str], tuple[int, ...]]


@dataclass(frozen=True)
class Salience:
    """source: the output that holds the scores. axis: of the channels of the values."""

    source: str
    scores: Scores
    axis: int


def find_salience(described: Mapping[str, Output], seen: Seen, axes: Axes) -> dict[str, Salience]:
    """By name of the outputs of values. seen: the original's batches of an output; axes: where its channels may lie."""

    def steady(name: str) -> list[int]:
        return metrics.steady(seen(name), axes(name))

    known = {
        name: found
        for name, output in described.items()
        if output.kind in ("classes", "values", "probabilities")
        and (found := metrics.scores_of(output, seen(name), steady(name))) is not None
    }
    result = {}
    for name, output in described.items():
        if output.kind != "values" or not known:
            continue
        own = known.get(name)
        if own is not None:
            result[name] = Salience(name, own, own.axis)
            continue
        for source, scores in known.items():
            axis = _shared(seen(name), seen(source), steady(name), scores)
            if axis is not None:
                result[name] = Salience(source, scores, axis)
                break
    return result


def _shared(values: Batches, scored: Batches, axes: Sequence[int], scores: Scores) -> int | None:
    """Along which axis the channels of values lie whose positions are those of the scores; None where along none."""
    pairs = list(zip(values(), scored(), strict=False))
    if not pairs or any(each.block.ndim != 3 for each, _ in pairs):
        return None
    for axis in axes:
        counts = [
            (metrics.positions(own.block, axis), metrics.positions(other.block, scores.axis)) for own, other in pairs
        ]
        if all(left == right >= metrics.LEAST_POSITIONS for left, right in counts):
            return axis
    return None
