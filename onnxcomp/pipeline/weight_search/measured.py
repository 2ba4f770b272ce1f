"""The verdict on an assignment, without writing a model for it where only values change."""

from __future__ import annotations

from collections.abc import Callable

from onnxcomp.pipeline.weight_search.assembly import chosen_values, rewriting_key, rewritten
from onnxcomp.pipeline.weight_search.candidates import Assignment, Table
from onnxcomp.verify import ValueTrials, Verdict


def divergence_of(trials: ValueTrials, table: Table) -> Callable[[Assignment], float]:
    """How far an assignment is from the original, infinite for one that fails."""
    return lambda assignment: measured(trials, table, assignment).quadratic_divergence


def measured(trials: ValueTrials, table: Table, assignment: Assignment) -> Verdict:
    """The verdict on the model of ``trials`` with each weight at its assigned strength."""
    if any(option.choice in table.rewrites for option in assignment.values()):
        trials = _of_rewritten(trials, table, assignment)
    return trials.check(chosen_values(table, assignment))


def _of_rewritten(trials: ValueTrials, table: Table, assignment: Assignment) -> ValueTrials:
    """The judge of other values in the model whose weights are rewritten as assigned; the last one is kept."""
    key = rewriting_key(trials.model, table, assignment)
    held = table.last_rewritten.get(id(trials.verifier))
    if held is None or held[0] != key:
        held = key, trials.verifier.trials(rewritten(trials.model, table, assignment)[0])
        table.last_rewritten[id(trials.verifier)] = held
    found: ValueTrials = held[1]
    return found
