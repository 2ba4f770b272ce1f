"""Rewrites of the whole model that are measured, of which the fastest within the budget is kept."""

from __future__ import annotations

from onnxcomp.contract import Outcome
from onnxcomp.pipeline.history.records import entries, parameters_of, skipped, title
from onnxcomp.pipeline.model_search.tournament import Trials
from onnxcomp.pipeline.run import Run
from onnxcomp.pipeline.steps.dispatch import perform
from onnxcomp.pipeline.steps.judged import judged
from onnxcomp.recipe import Race

# What follows the deadline: a trial is verified, the best are timed in haste, and the result beside the original.
CHECKS, RACES_S, RIVALS = 2, 4.0, 8


@perform.register
def perform_race(step: Race, run: Run) -> None:
    """Keep the fastest."""
    judged(step, run, _once)


def _once(step: Race, run: Run, started: float) -> None:
    context = run.context_of(step, spare_s=RACES_S + RIVALS * run.time.open_s + CHECKS * run.time.check_s)
    trials = Trials(
        line=run.ledger.line,
        original=run.original,
        candidates=[each.in_turn() for each in step.candidates],
        fallbacks=[each.in_turn() for each in step.fallbacks],
        ahead=[each.in_turn() for each in step.ahead],
        context=context,
        verifier=run.verifier,
        tuner=run.tuner,
        reach=run.reach,
        course=run.course,
        objective=run.objective,
        deadline=context.deadline,
    )
    best = trials.run()
    report = run.report(step.name, step.fields(), Outcome(), run.current, run.current, started)
    report.tried = [each.account() for each in trials.entered]
    if best is None:
        run.ledger.refuse(report, trials.why_none)
        return
    assert best.verdict is not None
    outcome = best.made.outcomes[best.made.main]
    report.rewrite, report.parameters = title(best.made.passes), parameters_of(best.made.passes[best.made.main])
    report.changed, report.skipped, report.taken_back = entries(outcome), skipped(outcome), best.made.taken
    report.latency_ratio = best.ratio
    run.receipt.notes += best.made.notes
    decision = "kept" if best.made.is_whole else "kept in part"
    run.ledger.keep(report, best.made.line, best.made.applications(), verdict=best.verdict, decision=decision)
