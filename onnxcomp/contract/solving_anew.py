"""The weights of a model that lost something take the values that give the original's outputs best from what they read.

    W <- argmin E |W0 x + b0 - W x' - b|^2,   node after node, zero where its columns are

Convolutions and matrix products with a bias of their own move that, too.
"""

from __future__ import annotations

import numpy as np

from onnxcomp.calibration.statistics.paired import PairedMoments
from onnxcomp.calibration.statistics.paired_stages import Answer
from onnxcomp.contract.context import Context
from onnxcomp.contract.outcome import Outcome
from onnxcomp.errors import TimeIsUp
from onnxcomp.graph.cutting.compensation import compensated, movable_bias, shift_bias
from onnxcomp.graph.ir.nodes import Array
from onnxcomp.graph.ir.reader import Graph
from onnxcomp.graph.provenance import Reference
from onnxcomp.graph.weights.matrix_form import matrix_form, worth_moments
from onnxcomp.graph.weights.roles import Weight, weights
from onnxcomp.numerics.rounding.gram import relative_output_error, shrunk

LEAST_GAIN = 1e-3  # of a node's output: for less, a weight that reads all it did is not fitted to some samples


def solve_anew(graph: Graph, context: Context, outcome: Outcome) -> None:
    """Solve all weights without an encoding in order, held against the context's reference, or else the model as it
    was opened; an outcome that is cut short says that time was up before the last."""
    reference = context.reference or Reference(graph.model)
    present = {each.name: each for each in weights(graph)}
    names = [name for name, each in present.items() if _is_solvable(each, reference)]
    stages = context.observe.paired_stages(reference, graph, names, jobs=context.jobs)
    for index, own in enumerate(stages.by_stage):
        if context.is_over():
            outcome.is_cut_short = True
            return
        if not own:
            continue
        context.progress(index, len(stages.by_stage), f"solving {own[0]}")
        try:
            answers = stages.solved(index, solved)
        except TimeIsUp:
            outcome.is_cut_short = True
            return
        for name, answer in answers.items():
            if answer is not None:
                _take(graph, present[name], answer)


def _take(graph: Graph, weight: Weight, answer: Answer) -> None:
    assert answer is not None
    values, _, _, shift = answer
    weight.set(values)
    bias = movable_bias(graph, weight)
    if bias is not None and shift is not None:
        shift_bias(bias, shift)


def solved(weight: Weight, before: Array, moments: PairedMoments) -> Answer:
    """The weight that gives the original's outputs best from what it reads now, zero in the columns in which it is."""
    form = matrix_form(weight)
    assert form is not None
    wanted, now = form.pack(before), form.pack(np.asarray(weight.values))
    dropped: Array = np.logical_and(~np.any(now, axis=1), np.any(wanted, axis=1))
    has_bias = movable_bias(weight.graph, weight) is not None
    mean, mean_before = (moments.mean, moments.mean_before) if has_bias else (None, None)
    made = compensated(wanted, dropped, moments.gram, moments.cross, mean, mean_before)
    if not dropped.any() and relative_output_error(made.matrices, now, shrunk(moments.gram)) < LEAST_GAIN:
        return None
    values = form.unpack(made.matrices).reshape(weight.shape).astype(weight.dtype)
    if not np.isfinite(values).all():
        return None
    return values, None, 0.0, made.shift


def _is_solvable(weight: Weight, reference: Reference) -> bool:
    """Whether a weight may take other values to make up for what is cut."""
    before = reference.constant(weight.name)
    if before is None or before.shape != weight.shape or before.dtype != weight.dtype:
        return False
    return weight.encoding is None and matrix_form(weight) is not None and worth_moments(weight)
