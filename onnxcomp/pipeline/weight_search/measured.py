"""The verdict on an assignment, without writing a model for it where only values change."""

from __future__ import annotations

from collections.abc import Callable

from onnxcomp.pipeline.weight_search.assembly import build, chosen_values
from onnxcomp.pipeline.weight_search.candidates import Assignment, Table
from onnxcomp.verify import ValueTrials, Verdict


def divergence_of(trials: ValueTrials, table: Table) -> Callable[[Assignment], float]:
    """How far an assignment is from the original, infinite for one that fails."""
    return lambda assignment: measured(trials, table, assignment).quadratic_divergence


def measured(trials: ValueTrials, table: Table, assignment: Assignment) -> Verdict:
    """The verdict on the model of ``trials`` with each weight at its assigned strength."""
    if any(option.choice in table.rewrites for option in assignment.values()):
        return trials.verifier.check(build(trials.model, table, assignment))
    return trials.check(chosen_values(table, assignment))
