"""Strengths without data: no divergence can be trusted, so each weight is held to its own noise.

Each weight takes the fewest bytes whose signal-to-noise ratio is about that of symmetric 8-bit rounding per channel.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxcomp.graph.surgery import open_graph
from onnxcomp.graph.weights import Weight, constants_by_key, weights
from onnxcomp.model import Model
from onnxcomp.numerics.weight_error import channel_error, relative_error
from onnxcomp.pipeline.table import Assignment, Table

Array = NDArray[Any]

NOISE_TOLERANCE = 10**0.05  # half a decibel: what "about 8 bits per channel" allows


def assign_by_noise(model: Model, table: Table) -> Assignment:
    """For each weight the fewest bytes at about the signal-to-noise ratio of 8 bits per channel.

    Both the whole weight and, on the average, each of its channels must be as near: what one codebook for all
    channels does to the weakest of them shows at the outputs and hardly in the whole.
    """
    by_name = {each.name: each for each in weights(open_graph(model))}
    variants = {index: constants_by_key(open_graph(each)) for index, each in table.variants.items()}
    found: Assignment = {}
    for name, options in table.options.items():
        weight = by_name[name]
        bounds = _errors(weight, rounded_per_channel(weight))
        found[name] = options[0]
        for option in sorted(options, key=lambda each: each.size_bytes):
            if option.choice is None:
                break  # what follows is larger than the weight as it is
            errors = _errors(weight, variants[option.choice][name].values)
            if all(error <= NOISE_TOLERANCE * bound for error, bound in zip(errors, bounds, strict=True)):
                found[name] = option
                break
    return found


def _errors(weight: Weight, values: Array) -> tuple[float, float]:
    """Relative squared error of the whole weight, and the mean of its channels'."""
    old, axis = weight.values, weight.channel_axis
    whole = relative_error(old, values)
    return whole, whole if axis is None else channel_error(old, values, axis=axis)


def rounded_per_channel(weight: Weight) -> Array:
    """The weight's values in symmetric 8-bit rounding with a scale per output channel."""
    values, axis = np.asarray(weight.values), weight.channel_axis
    others = None if axis is None else tuple(each for each in range(values.ndim) if each != axis)
    peak = np.abs(values).max(axis=others, keepdims=True).astype(np.float32)
    scale = np.where(peak == 0, np.float32(1), peak / np.float32(127))
    rounded: Array = np.rint(values / scale) * scale
    return rounded
