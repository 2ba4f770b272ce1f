"""One pass at fixed fields: kept whole, kept in part, or taken back."""

from __future__ import annotations

from onnxcomp.clock import clock
from onnxcomp.contract import own_choice
from onnxcomp.errors import TimeIsUp
from onnxcomp.pipeline.history.records import application
from onnxcomp.pipeline.history.rollback import verified_part
from onnxcomp.pipeline.run import Run
from onnxcomp.pipeline.safety.safe_changes import Held, apply_safely
from onnxcomp.pipeline.steps.dispatch import perform
from onnxcomp.pipeline.steps.judged import check_speed, judged
from onnxcomp.receipt import StepReport
from onnxcomp.recipe import Apply
from onnxcomp.verify import Verdict


@perform.register
def perform_apply(step: Apply, run: Run) -> None:
    """Apply the pass as far as the budget tolerates it."""
    judged(step, run, _once)


def _once(step: Apply, run: Run, started: float) -> None:
    before = run.current
    held = apply_safely(before, step.rewrite, run.context_of(step), run.reach)
    report = run.report(step.name, step.fields(), held.outcome, before, held.model, started)
    report.taken_back = held.entries()
    run.receipt.notes += [each for each in held.notes() if each not in run.receipt.notes]
    if not held.outcome.changed:
        if held.left:
            run.ledger.refuse(report, f"{held.left[0]}: {held.reason}")
        return
    verdict = run.verifier.check(held.model)
    if verdict.passed:
        line = run.ledger.line.after(step.rewrite, held.model, held.outcome)
        decision = "kept in part" if held.left else "kept"
        applied = application(step.rewrite, held.context, held.outcome)
        run.ledger.keep(report, line, [applied], verdict=verdict, decision=decision)
    elif verdict.failed and len(held.outcome.changed) == 1:
        run.ledger.refuse(report, "; ".join(verdict.reasons))
    else:
        _in_part(step, run, held, report, verdict)
    check_speed(step.rewrites, run, before, report)
    report.seconds = clock() - started


def _in_part(step: Apply, run: Run, held: Held, report: StepReport, whole: Verdict) -> None:
    """The part of a step that the budget tolerates."""
    rewrite, context, ledger = step.rewrite, held.context, run.ledger
    why = "; ".join(whole.reasons)
    try:
        rest, verdict = verified_part(run.current, held.model, held.outcome, rewrite, context, run.verifier, run.tuner)
    except TimeIsUp:
        ledger.refuse(report, f"{why}; there was no time for a part of it")
        return
    report.taken_back += rest.taken_entries()
    if not rest.kept:
        ledger.refuse(report, why)
        return
    applied = application(rewrite, context, held.outcome, None if rest.by_value else own_choice(rest.kept))
    applied.restore = list(rest.taken) if rest.by_value else []
    kept = set(rest.kept)
    report.changed = [each for each in report.changed if each.name in kept]
    line = ledger.line.after(rewrite, rest.model, rest.outcome)
    ledger.keep(report, line, [applied], verdict=verdict, decision="kept in part")
    report.reason = f"{len(rest.taken)} of {len(rest.own)} taken back: whole, {why}"
