"""One assignment of strengths to all weights of a step, applied and verified."""

from __future__ import annotations

from dataclasses import dataclass, replace

from onnxcomp.model import Model
from onnxcomp.pipeline.weight_search.candidates import Assignment
from onnxcomp.receipt import Application, Entry
from onnxcomp.verify import Verdict, Verifier


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
    """The share of the budget that a result takes up, one standard error included."""
    if not verifier.limit:
        return 1.0
    return max(verdict.safe_divergence / verifier.limit, verdict.quadratic_divergence / verifier.search_limit)
