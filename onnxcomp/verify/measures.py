"""What each metric measures on an output: the lenses of the default one, or the single measure that the user named."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from onnxcomp.numerics import metrics
from onnxcomp.numerics.metrics import Floats, Lens, Output, Pair
from onnxcomp.numerics.metrics.lenses import LabelChange

PLAIN: dict[str, Callable[..., Floats]] = {
    "cosine": metrics.cosine_distance,
    "sqnr": metrics.noise_to_signal,
    "mse": metrics.squared_error,
}


@dataclass(frozen=True)
class Plain(Lens):
    """A measure of the user's choice as a lens of its own."""

    name: str
    compute: Callable[[Pair], Floats]

    def measure(self, pair: Pair) -> Floats:
        return self.compute(pair)[:, None]

    def summaries(self, values: Floats) -> Mapping[str, Floats]:
        return {self.name: values[:, 0]}


def lenses_of(metric: str, output: Output) -> tuple[Lens, ...]:
    """The lenses through which a metric looks at an output; none where it says nothing of it."""
    if output.kind == "ignore":
        return ()
    if metric in ("divergence", "accuracy"):
        return output.lenses
    if metric == "kl":
        return (Plain(metric, lambda pair: _kl(output, pair)),) if output.form is not None else ()
    if metric == "top1":
        if output.has_classes:
            return (Plain(metric, lambda pair: 1 - agreement(output, pair)),)
        return (LabelChange(),) if output.kind == "labels" else ()
    if output.kind == "labels":
        return ()
    return (
        (Plain(metric, lambda pair: PLAIN[metric](pair.reference, pair.candidate, pair.weights)),)
        if metric in PLAIN
        else ()
    )


def agreement(output: Output, pair: Pair) -> Floats:
    """Share of positions whose winning class is the same, per sample."""
    assert output.form is not None
    ours, theirs = (metrics.winners(each, output.form, output.axis) for each in (pair.reference, pair.candidate))
    return metrics.over_positions(np.asarray(ours == theirs, dtype=np.float64), pair.weights)


def _kl(output: Output, pair: Pair) -> Floats:
    """Plain KL(p||q) in nats per sample."""
    assert output.form is not None
    divergence, _ = metrics.kl_and_entropy(output.form, output.axis, pair.reference, pair.candidate)
    return metrics.over_positions(divergence, pair.weights)
