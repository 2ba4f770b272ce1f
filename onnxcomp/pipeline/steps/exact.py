"""Exact passes next to each other: applied and verified together, and one by one where that fails."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from onnxcomp.clock import clock
from onnxcomp.contract import Outcome, Skip
from onnxcomp.graph.stored.opening import unpacked
from onnxcomp.memory import uncollected
from onnxcomp.model import Model
from onnxcomp.pipeline.apply import apply_pass
from onnxcomp.pipeline.history.records import application
from onnxcomp.pipeline.history.rollback import culprits
from onnxcomp.pipeline.model_search.tuning import values_of
from onnxcomp.pipeline.run import Run
from onnxcomp.pipeline.safety.safe_changes import Held, apply_safely
from onnxcomp.receipt import Entry
from onnxcomp.recipe import Apply
from onnxcomp.verify import DEFAULT_MAX_DIVERGENCE

CHECKED_VALUES = 5e8  # weight values that the models checked in search of a culprit may have together
FEWEST_CHECKS = 8  # in any case: they find one among 128 changes
EXACT_SHARE = 0.02  # of the limit, or of the default one where that is less: what float rounding may come to


@uncollected()
def apply_exact(steps: Sequence[Apply], run: Run) -> None:
    """Apply exact passes as far as there is time; when together they change the outputs, one by one, and take the
    culprit back."""
    if not steps:
        return
    before, noted, kept = run.current, len(run.receipt.steps), len(run.ledger.kept)
    for step in steps:
        if run.has_time(step):
            _apply(step, run)
    with run.time.noting("check_s"):
        reason = changed_by_exact(before, run.current, run)
    if reason is None:
        return
    run.ledger.take_back(kept, reason)
    del run.receipt.steps[noted:]
    for step in steps:
        if run.has_time(step):
            _apply_checked(step, run)


def _apply(step: Apply, run: Run) -> None:
    """One exact pass; what it gets wrong by its own account is left as it was."""
    run.progress(0, 1, step.name)
    before, started = run.current, clock()
    held = _without_growth(step, run)
    report = run.report(step.name, step.fields(), held.outcome, before, held.model, started)
    run.time.note_exact(report.seconds)
    if held.outcome.changed:
        applied = application(step.rewrite, held.context, held.outcome)
        run.ledger.keep(report, run.ledger.line.after(step.rewrite, held.model, held.outcome), [applied])


def _without_growth(step: Apply, run: Run) -> Held:
    """The pass applied; where bytes are the goal, without the stored weights that it would leave plain."""
    before = run.current
    held = apply_safely(before, step.rewrite, run.context_of(step), None)
    grows = held.model.size_bytes > before.size_bytes and run.recipe.goal != "latency" and not run.recipe.is_single
    lost = unpacked(before, held.model) if grows else []
    if not lost:
        return held
    held = apply_safely(before, step.rewrite, run.context_of(step.excluding(lost)), None)
    if unpacked(before, held.model):
        held = dataclasses.replace(held, model=before, outcome=Outcome(skipped=held.outcome.skipped))
    held.outcome.skipped += [Skip(name, "as it is stored it takes fewer bytes") for name in lost]
    return held


def _apply_checked(step: Apply, run: Run) -> None:
    before, kept = run.current, len(run.ledger.kept)
    _apply(step, run)
    reason = changed_by_exact(before, run.current, run)
    if reason is None:
        return
    names = [each.name for each in run.receipt.steps[-1].changed]
    run.ledger.take_back(kept, reason)
    if step.rewrite.stores_encodings:  # values that nothing stores have lost what they lost for nothing
        run.ledger.take_back(run.ledger.waiting(), f"its values cannot be stored: {reason}")
    else:
        _without_culprits(step, run, names, reason)


def _without_culprits(step: Apply, run: Run, names: Sequence[str], reason: str) -> None:
    """An exact pass once more, without the few changes that break the model, where it is few."""

    def holds_without(left: Sequence[str]) -> bool:
        after, _ = apply_pass(run.current, step.rewrite, run.context_of(step.excluding(left)))
        return changed_by_exact(run.current, after, run) is None

    most = CHECKED_VALUES / values_of(run.original.size_bytes)
    found = [] if run.is_over() else culprits(names, holds_without, most_checks=max(FEWEST_CHECKS, most))
    if not found:
        return
    del run.receipt.steps[-1]
    _apply(step.excluding(found), run)
    report = run.receipt.steps[-1]
    report.decision, report.taken_back = "kept in part", [Entry(name, "taken back, it fails") for name in found]
    report.reason = f"{len(found)} of {len(names)} taken back: whole, {reason}"


def changed_by_exact(before: Model, after: Model, run: Run) -> str | None:
    """Why a model that exact passes made is not the same as ``before``, or None."""
    if after is before:
        return None
    verdict = run.verifier.check(after)
    allowed = EXACT_SHARE * min(run.verifier.limit, DEFAULT_MAX_DIVERGENCE)
    if not verdict.failed and not verdict.divergence <= run.ledger.divergence + allowed:
        return f"an exact step changed the outputs: divergence {verdict.divergence:.3g}"
    return None if verdict.passed else "; ".join(verdict.reasons)
