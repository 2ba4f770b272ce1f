"""What gradients tell a pass of its graph's weights: computed once, remembered by the model, done without where it
cannot be.

    E g^2 of each weight, g: the gradient of a random direction of the outputs (``training.influence``)
    E G G^T of a weight as a matrix, G: the same gradient as one
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from onnxcomp.contract.context import Context
from onnxcomp.graph.ir.nodes import Array, Constant
from onnxcomp.graph.ir.reader import Graph
from onnxcomp.graph.pruning.problem import InputsSeen
from onnxcomp.graph.weights.matrix_form import MatrixForm, matrix_form
from onnxcomp.graph.weights.roles import Weight, weights
from onnxcomp.graph.weights.value_pass import all_finite
from onnxcomp.training.engine import NoGradientError
from onnxcomp.training.influence import PASSES, GradientDraws, NoOutputsError, squared_gradients
from onnxcomp.training.setup import TrainingSetup
from onnxcomp.training.step_memory import StepTooLargeError

LACKS = (NoGradientError, NoOutputsError, StepTooLargeError)
NO_TIME = "the time was used up before gradients were drawn"
NO_DATA = "there are no data to draw gradients on"
UNFIT = "gradients are told of float32 weights of the main graph only"
NOT_NOW = "gradients are not drawn to look at what it would come to"
PRODUCED_VALUES, LEAST_PASSES = 2**29, 32  # weight values of all passes that tell products, which need fewer


@dataclass(frozen=True)
class Fisher:
    """squares: E g^2 of weights by name, of their shapes. lack: why there are none."""

    squares: Mapping[str, Array] = field(default_factory=dict)
    lack: str = ""


@dataclass(frozen=True)
class GradientsSeen:
    """squares: E g^2 of a weight, of its shape; None where there is none, and ``lack`` says why."""

    squares: Array | None = None
    lack: str = ""


def fisher(graph: Graph, context: Context) -> Fisher:
    """E g^2 of all weights that gradients reach; the model remembers it."""
    memo = graph.model.memo
    key = (fisher, context.calibration, context.seed, context.draws_gradients)
    if key not in memo:
        names = [each.name for each in weights(graph) if is_told(graph, each.tensor)]
        memo[key] = _drawn(graph, names, context)
    found: Fisher = memo[key]
    return found


def gradients_seen(graph: Graph, asked: Sequence[Weight], context: Context) -> dict[str, GradientsSeen]:
    """The same of each of these weights by name, with the reason where there is none."""
    found = fisher(graph, context)
    return {
        each.name: GradientsSeen(squares) if squares is not None else GradientsSeen(lack=found.lack or UNFIT)
        for each in asked
        for squares in (found.squares.get(each.name),)
    }


def with_gradients(
    graph: Graph, asked: Sequence[Weight], seen: Mapping[str, InputsSeen], context: Context
) -> dict[str, InputsSeen]:
    """What is known of the inputs of weights, by name, and beside it what gradients tell of each."""
    found = gradients_seen(graph, asked, context)
    return {
        name: replace(seen.get(name, InputsSeen()), squares=own.squares, lack=own.lack) for name, own in found.items()
    }


def output_products(graph: Graph, asked: Sequence[Weight], context: Context) -> Mapping[str, Array] | str:
    """E G G^T (outputs, outputs) of weights by name, where each is one matrix and G its gradient in that form, or why
    there are none: by how much the model minds errors of its outputs, and which of them make up for each other. The
    model remembers it."""
    names = sorted(each.name for each in asked if is_told(graph, each.tensor))
    memo = graph.model.memo
    key = (output_products, context.calibration, context.seed, context.draws_gradients, *names)
    if key not in memo:
        memo[key] = _products(graph, {each.name: matrix_form(each) for each in asked if each.name in names}, context)
    found: Mapping[str, Array] | str = memo[key]
    return found


def _products(graph: Graph, forms: Mapping[str, MatrixForm | None], context: Context) -> Mapping[str, Array] | str:
    known = {name: form for name, form in forms.items() if form is not None and form.groups == 1}
    passes = max(LEAST_PASSES, min(PASSES, PRODUCED_VALUES // max(1, graph.model.size_bytes // 4)))
    drawn = draws(graph, sorted(known), context, passes=passes)
    if isinstance(drawn, str):
        return drawn
    sums: dict[str, Array] = {}

    def see(gradients: Mapping[str, Array]) -> None:
        for name, form in known.items():
            [matrix] = form.pack(gradients[name]).astype(np.float64)
            sums[name] = sums.get(name, 0.0) + matrix @ matrix.T

    try:
        return sums if drawn.run(see) else NO_TIME
    except LACKS as error:
        return str(error)


def is_told(graph: Graph, constant: Constant) -> bool:
    """Whether gradients tell of a constant."""
    is_plain = np.dtype(constant.dtype) == np.float32 and graph.scope_of(constant) is graph.main
    return is_plain and all_finite(constant.values)


def _drawn(graph: Graph, names: Sequence[str], context: Context) -> Fisher:
    found = draws(graph, names, context)
    if isinstance(found, str):
        return Fisher(lack=found)
    try:
        squares = squared_gradients(found)
    except LACKS as error:
        return Fisher(lack=str(error))
    return Fisher(squares, "" if squares else NO_TIME)


def draws(graph: Graph, names: Sequence[str], context: Context, *, passes: int = PASSES) -> GradientDraws | str:
    """Gradients of these constants, or why there are none."""
    if context.calibration is None:
        return NO_DATA
    if not context.draws_gradients:
        return NOT_NOW
    if not names:
        return UNFIT
    setup = context.training or TrainingSetup()
    return GradientDraws(
        graph.model, names, context.calibration, context.open_session, setup.engine,
        seed=int(context.rng("gradients").integers(2**31)),
        threads=context.jobs,
        asked=context.outputs,
        progress=context.progress,
        is_over=context.is_over,
        passes=passes,
    )  # fmt: skip
