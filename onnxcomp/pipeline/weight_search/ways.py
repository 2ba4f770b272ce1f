"""Which way of a pass that follows on choices brings the model nearer to the original on samples held out."""

from __future__ import annotations

import dataclasses

from onnxcomp.contract import Context, Pass
from onnxcomp.model import Model
from onnxcomp.numerics.metrics.held_out import is_gain
from onnxcomp.pipeline.apply import apply_pass
from onnxcomp.verify import Verifier

HELD_OUT_SHARE = 1 / 5  # of the calibration samples
LEAST_HELD_OUT = 8


def better_way(rewrite: Pass, model: Model, context: Context, tuner: Verifier | None) -> Pass:
    """The way of a pass to go on with on ``model``: the first, unless another is better for sure.

    Each is fitted to four fifths of the calibration samples and judged on the rest, sample by sample, by the measure
    that is worst. With too few samples, or time, the first.
    """
    ways = rewrite.ways()
    data = context.calibration
    if len(ways) < 2 or data is None or tuner is None or context.is_over():
        return ways[0]
    fit, held = data.split(seed=context.seed, fraction=HELD_OUT_SHARE, minimum=LEAST_HELD_OUT)
    if held.sample_count < LEAST_HELD_OUT:
        return ways[0]
    judge, own = tuner.on(held), dataclasses.replace(context, calibration=fit)
    best = ways[0]
    errors = judge.measures(apply_pass(model, best, own)[0])
    for way in ways[1:]:
        found = judge.measures(apply_pass(model, way, own)[0])
        worst = max(errors.keys() & found.keys(), key=lambda name: max(errors[name][0], found[name][0]), default=None)
        if worst is not None and is_gain(errors[worst][1], found[worst][1]):
            best, errors = way, found
    return best
