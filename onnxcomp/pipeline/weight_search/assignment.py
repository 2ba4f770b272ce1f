"""One assignment of strengths to all weights of a step, applied and verified; without writing a model for it where only
values change."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from onnxcomp.model import Model
from onnxcomp.pipeline.weight_search.assembly import chosen_values, rewriting_key, rewritten
from onnxcomp.pipeline.weight_search.candidates import Assignment, Table
from onnxcomp.receipt import Application, Entry
from onnxcomp.verify import ValueTrials, Verdict, Verifier


@dataclass(frozen=True)
class Attempt:
    """The model that an assignment and what follows it make; the applications make it again. model: None once another
    attempt was better. cost: of the assigned weights by the objective, estimated."""

    model: Model | None
    entries: list[Entry]
    applications: list[Application]
    verdict: Verdict
    assignment: Assignment
    cost: float

    def lost(self) -> Attempt:
        """The same without the model, which takes as much room as the original."""
        return replace(self, model=None)


def spent_share(verdict: Verdict, verifier: Verifier) -> float:
    """The share of the budget that a result takes up, by the upper end of its 95% interval."""
    if not verifier.limit:
        return 1.0
    return max(verdict.safe_divergence / verifier.limit, verdict.quadratic_divergence / verifier.search_limit)


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
