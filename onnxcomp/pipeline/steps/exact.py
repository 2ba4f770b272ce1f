"""Exact passes next to each other: applied and verified together, and one by one where that fails."""

from __future__ import annotations

import time
from collections.abc import Sequence

from onnxcomp.model import Model
from onnxcomp.pipeline.history.records import application
from onnxcomp.pipeline.run import Run
from onnxcomp.pipeline.safety.safe_changes import apply_safely
from onnxcomp.recipe import Apply
from onnxcomp.verify import DEFAULT_MAX_DIVERGENCE

EXACT_SHARE = 0.02  # of the limit, or of the default one where that is less: what float rounding may come to


def apply_exact(steps: Sequence[Apply], run: Run) -> None:
    """Apply exact passes; when together they change the outputs, one by one, and take the culprit back."""
    if not steps:
        return
    before, noted, kept = run.current, len(run.receipt.steps), len(run.ledger.kept)
    for step in steps:
        _apply(step, run)
    reason = verify_exact(before, run)
    if reason is None:
        return
    run.ledger.take_back(kept, reason)
    del run.receipt.steps[noted:]
    for step in steps:
        _apply_checked(step, run)


def _apply(step: Apply, run: Run) -> None:
    """One exact pass; what it gets wrong by its own account is left as it was."""
    run.progress(0, 1, step.name)
    before, started = run.current, time.monotonic()
    held = apply_safely(before, step.rewrite, run.context_of(step), None)
    report = run.report(step.name, step.fields(), held.outcome, before, held.model, started)
    if held.outcome.changed:
        applied = application(step.rewrite, held.context, held.outcome)
        run.ledger.keep(report, run.ledger.line.after(step.rewrite, held.model), [applied])


def _apply_checked(step: Apply, run: Run) -> None:
    before, kept = run.current, len(run.ledger.kept)
    _apply(step, run)
    reason = verify_exact(before, run)
    if reason is None:
        return
    run.ledger.take_back(kept, reason)
    if step.rewrite.stores_encodings:  # values that nothing stores have lost what they lost for nothing
        run.ledger.take_back(run.ledger.waiting(), f"its values cannot be stored: {reason}")


def verify_exact(before: Model, run: Run) -> str | None:
    """Why the current model is not the same as ``before``, or None."""
    if run.current is before:
        return None
    verdict = run.verifier.check(run.current)
    allowed = EXACT_SHARE * min(run.verifier.limit, DEFAULT_MAX_DIVERGENCE)
    if not verdict.failed and not verdict.divergence <= run.ledger.divergence + allowed:
        return f"an exact step changed the outputs: divergence {verdict.divergence:.3g}"
    return None if verdict.passed else "; ".join(verdict.reasons)
