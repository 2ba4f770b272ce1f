"""Strengths without data: no divergence can be trusted, so each weight is held to its own noise.

Each weight takes the fewest bytes whose signal-to-noise ratio is about that of symmetric 8-bit rounding per channel.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from numpy.typing import NDArray

from onnxcomp.graph.stored.opening import open_plain
from onnxcomp.graph.weights.roles import Weight, weights
from onnxcomp.model import Model
from onnxcomp.pipeline.safety.noise_bound import NoiseBound
from onnxcomp.pipeline.weight_search.candidates import Assignment, Table, WeightOption

Array = NDArray[Any]

def assign_by_noise(model: Model, table: Table) -> Assignment:
    """For each weight the fewest bytes at about the signal-to-noise ratio of 8 bits per channel."""
    by_name = {each.name: each for each in weights(open_plain(model))}
    found: Assignment = {}
    for name, options in table.options.items():
        bound = _bound(by_name, name)
        ranked = sorted(options, key=lambda each: each.size_bytes)
        found[name] = next(each for each in ranked if _allowed(table, bound, each))
    return found


def hold_to_noise(model: Model, table: Table, names: Iterable[str], factor: float = 1.0) -> None:
    """Leave the named weights the options whose error is within ``factor`` times the bound."""
    by_name = {each.name: each for each in weights(open_plain(model))}
    for name in names:
        bound = _bound(by_name, name)
        table.options[name] = [each for each in table.options[name] if _allowed(table, bound, each, factor)]


def _bound(by_name: Mapping[str, Weight], name: str) -> NoiseBound | None:
    """The bound of a weight, None for a site that is none."""
    return NoiseBound.of(by_name[name]) if name in by_name else None


def _allowed(table: Table, bound: NoiseBound | None, option: WeightOption, factor: float = 1.0) -> bool:
    if option.choice is None or bound is None:
        return option.choice is None
    if option.choice in table.rewrites:  # what the weight's values became stands in several tensors
        return bound.allows_error(option.error, factor)
    return bound.allows(table.values(option.choice, bound.weight.name), factor)
