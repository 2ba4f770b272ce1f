"""Strengths without data: no divergence can be trusted, so each weight is held to its own noise.

Each weight takes the fewest bytes whose signal-to-noise ratio is about that of symmetric 8-bit rounding per channel.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from onnxcomp.graph.stored.opening import open_plain
from onnxcomp.graph.weights.roles import weights
from onnxcomp.model import Model
from onnxcomp.pipeline.safety.noise_bound import NOISE_TOLERANCE, NoiseBound
from onnxcomp.pipeline.weight_search.candidates import Assignment, Table, WeightOption


def assign_by_noise(model: Model, table: Table) -> Assignment:
    """For each weight the fewest bytes at about the signal-to-noise ratio of 8 bits per channel, of what is made."""
    noise = _Noise(model, table)
    found: Assignment = {}
    for name, options in table.options.items():
        ranked = sorted((each for each in options if table.is_made(name, each)), key=lambda each: each.size_bytes)
        found[name] = next(each for each in ranked if noise.allows(name, each))
    return found


def as_made(table: Table, assignment: Assignment, count: int) -> Assignment:
    """The assignment by choices of their own, beside the ``count`` candidates: they stay as they are made by now,
    whatever the candidates are fitted to later."""
    found = {}
    for name, option in assignment.items():
        if option.choice is not None and option.choice not in table.rewrites:
            own = replace(option, choice=option.choice + count, family=option.family + count)
            table.fits[option.choice + count, name] = table.fits[option.choice, name]
            option = own
        found[name] = option
    return found


def hold_to_noise(model: Model, table: Table, names: Iterable[str], factor: float = 1.0) -> None:
    """Leave the named weights the options whose error is within ``factor`` times the bound."""
    noise = _Noise(model, table)
    for name in names:
        table.options[name] = [each for each in table.options[name] if noise.allows(name, each, factor)]


class _Noise:
    """Tells whether options are about as near as noise allows."""

    def __init__(self, model: Model, table: Table) -> None:
        self._table = table
        # What a weight's values become by a rewrite stands in several tensors: only its error is known.
        self._weights = {each.name: each for each in weights(open_plain(model))} if table.rewrites else {}
        self._bounds: dict[str, NoiseBound] = {}

    def allows(self, name: str, option: WeightOption, factor: float = 1.0) -> bool:
        if option.choice not in self._table.rewrites:
            return option.noise <= factor * NOISE_TOLERANCE
        if name not in self._weights:
            return False
        if name not in self._bounds:
            self._bounds[name] = NoiseBound.of(self._weights[name])
        return self._bounds[name].allows_error(option.error, factor)
