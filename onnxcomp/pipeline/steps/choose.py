"""A step whose passes and strengths are chosen weight by weight."""

from __future__ import annotations

import functools
from collections.abc import Collection

from onnxcomp.clock import clock
from onnxcomp.contract import Outcome
from onnxcomp.pipeline.run import Run
from onnxcomp.pipeline.safety.reach import Reach
from onnxcomp.pipeline.steps.dispatch import perform
from onnxcomp.pipeline.steps.judged import check_speed, judged
from onnxcomp.pipeline.weight_search.driver import Choosing
from onnxcomp.pipeline.weight_search.learned import Learned
from onnxcomp.recipe import Choose

CHECKS = 3  # runs of a model, on the verification samples or so, that follow a search which the deadline has ended


@perform.register
def perform_choose(step: Choose, run: Run) -> None:
    """Keep the best assignment that the budget tolerates."""
    once = functools.partial(_once, learned=Learned())
    judged(step, run, once, even_late=True, mildly=once)


def _once(step: Choose, run: Run, started: float, /, *, learned: Learned, held: Collection[str] = ()) -> None:
    """held: weights that may have little error each. learned: what one time leaves to the next."""
    before, ledger = run.current, run.ledger
    context = run.context_of(step, spare_s=CHECKS * run.time.check_s)
    choosing = Choosing(
        step=step,
        model=before,
        original=run.original,
        context=context,
        verifier=run.verifier,
        tuner=run.tuner,
        reach=run.reach or Reach(None),
        objective=run.objective,
        deadline=context.deadline,
        last_moment=run.time.last_moment,
        course=run.course,
        held=frozenset(held),
        learned=learned,
    )
    trial = choosing.choose()
    report = run.report(step.name, step.fields(), Outcome(skipped=choosing.skipped), before, before, started)
    run.receipt.notes += choosing.notes
    run.receipt.weights |= choosing.accounts
    if trial is None:
        return
    if not trial.verdict.passed:
        ledger.refuse(report, "; ".join(trial.verdict.reasons))
    elif trial.applications and trial.model is not None:
        report.changed = trial.entries
        ledger.keep(report, ledger.line.lost(trial.model), trial.applications, verdict=trial.verdict)
    elif choosing.refuted is not None:
        report.reason = f"no strength holds: {'; '.join(choosing.refuted.reasons)}"
    applied = {each.rewrite for each in trial.applications}
    check_speed([each for each in step.among if each.pass_name() in applied], run, before, report)
    report.seconds = clock() - started
