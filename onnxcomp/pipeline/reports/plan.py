"""What a run would do, without doing it: nothing is rewritten, run beside the original or written."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from onnxcomp.contract import Context
from onnxcomp.graph.report.coded_sizes import GAIN_BITS, coded_bytes
from onnxcomp.graph.stored.opening import open_plain
from onnxcomp.graph.weights.roles import Weight, weights
from onnxcomp.model import Model, load
from onnxcomp.pipeline.opening import open_data
from onnxcomp.pipeline.safety.exclusions import refuse_idle, with_stored
from onnxcomp.recipe import Recipe, Step
from onnxcomp.target import Target


@dataclass(frozen=True)
class PlannedStep:
    """One step as it would run. chosen: the parameters that are not the default. decision: "run", or why not.

    role: what it is in the step around it ("try", "otherwise", "choose", "then", ...), "" for one of the recipe's own.
    inner: the steps inside it.
    """

    rewrite: str
    summary: str
    parameters: dict[str, Any]
    chosen: tuple[str, ...]
    exact: bool
    decision: str
    role: str = ""
    inner: tuple[PlannedStep, ...] = ()


@dataclass(frozen=True)
class PlannedWeight:
    """A weight, and whether value passes may change it. bits_bytes: about its bytes in codes of so many bits."""

    name: str
    shape: tuple[int, ...]
    size_bytes: int
    excluded: bool
    bits_bytes: dict[int, int]


@dataclass(frozen=True)
class Plan:
    """What a run would do. data: the source of samples; random: whether they would be drawn."""

    model: str
    size_bytes: int
    recipe: str
    target: str
    data: str
    samples: int
    random: bool
    steps: tuple[PlannedStep, ...]
    weights: tuple[PlannedWeight, ...]

    def estimated_bytes(self, bits: int) -> int:
        """About the size of the file with every eligible weight in codes of so many bits."""
        eligible = [each for each in self.weights if not each.excluded]
        return self.size_bytes - sum(each.size_bytes - each.bits_bytes[bits] for each in eligible)


def plan(
    source: str | os.PathLike[str] | Model,
    *,
    recipe: str | os.PathLike[str] | Recipe = "default",
    calibration: Any = None,
    target: str | Target = "cpu",
    exclude: Sequence[str] = (),
    input_shapes: Mapping[str, Sequence[int]] | None = None,
    seed: int = 0,
) -> Plan:
    """Check everything that ``optimize`` checks before it starts, and say what it would do.

    Raises the same errors as ``optimize``: for the model, the recipe, the data and the target.
    """
    model = load(source)
    chosen = recipe if isinstance(recipe, Recipe) else Recipe.load(recipe)
    chosen.check_needs(calibration=calibration is not None)
    where = target if isinstance(target, Target) else Target.of(target)
    refuse_idle(model, exclude)
    data = open_data(model, calibration, where, seed, input_shapes)
    context = Context(exclude=with_stored(model, exclude))
    return Plan(
        model=model.name,
        size_bytes=model.size_bytes,
        recipe=chosen.name,
        target=where.name,
        data=data.source,
        samples=data.sample_count,
        random=data.is_random,
        steps=tuple(_planned(step, random=data.is_random) for step in chosen.steps),
        weights=tuple(_weight(each, context) for each in weights(open_plain(model))),
    )


def _planned(step: Step, *, random: bool, role: str = "", is_out: bool = False) -> PlannedStep:
    """is_out: what it is part of is left out."""
    left_out = is_out or (random and step.without_data() is None)
    return PlannedStep(
        rewrite=step.name,
        summary=step.summary,
        parameters=dict(step.fields()),
        chosen=step.stated(),
        exact=step.is_exact,
        decision="left out: no calibration data" if left_out else "run",
        role=role,
        inner=tuple(_planned(each, random=random, role=role, is_out=left_out) for role, each in step.parts()),
    )


def _weight(weight: Weight, context: Context) -> PlannedWeight:
    excluded = not context.selects(weight.name, *weight.node_names)
    sizes = {bits: coded_bytes(weight, bits) for bits in GAIN_BITS}
    return PlannedWeight(weight.name, weight.shape, weight.stored_bytes, excluded, sizes)
