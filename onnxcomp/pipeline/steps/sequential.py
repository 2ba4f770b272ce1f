"""Passes in turn that are judged together, at their end: kept whole, in part, or taken back."""

from __future__ import annotations

from onnxcomp.clock import clock
from onnxcomp.contract import Outcome
from onnxcomp.pipeline.history.records import entries, title
from onnxcomp.pipeline.in_turn import InTurn, apply_in_turn, part_of
from onnxcomp.pipeline.run import Run
from onnxcomp.pipeline.steps.dispatch import perform
from onnxcomp.pipeline.steps.judged import check_speed, judged
from onnxcomp.receipt import StepReport
from onnxcomp.recipe import Sequential
from onnxcomp.verify import Verdict


@perform.register
def perform_sequential(step: Sequential, run: Run) -> None:
    """Apply passes in turn as far as the budget tolerates them together."""
    judged(step, run, _once)


def _once(step: Sequential, run: Run, started: float) -> None:
    judge_together(step, run, started)


def judge_together(step: Sequential, run: Run, started: float, *, in_part: bool = True) -> StepReport:
    """Apply the passes and judge what they come to; gives the account of it. in_part: whether what breaks the budget
    may be kept in part."""
    before, ledger = run.current, run.ledger
    leaves = step.in_turn()
    lossy = [index for index, each in enumerate(leaves) if not each.is_exact]
    made = apply_in_turn(leaves, ledger.line, run.context_of(step), run.reach, limits=lossy)
    report = run.report(title(made.passes), step.fields(), _all(made), before, made.model, started)
    report.taken_back = list(made.taken)
    run.receipt.notes += [each for each in dict.fromkeys(made.notes) if each not in run.receipt.notes]
    _say_left_out(made, run)
    if not any(each.changed for each in made.outcomes):
        if made.taken:
            ledger.refuse(report, f"{made.taken[0].name}: {made.taken[0].what}")
        return report
    verdict = run.verifier.check(made.model)
    if verdict.passed:
        _keep(made, verdict, report, run)
    else:
        _keep_part(made, verdict, report, run, in_part=in_part)
    check_speed(step.rewrites, run, before, report)
    report.seconds = clock() - started
    return report


def _keep(made: InTurn, verdict: Verdict, report: StepReport, run: Run) -> None:
    decision = "kept" if made.is_whole else "kept in part"
    run.ledger.keep(report, made.line, made.applications(), verdict=verdict, decision=decision)


def _keep_part(made: InTurn, verdict: Verdict, report: StepReport, run: Run, *, in_part: bool) -> None:
    """The part that the budget tolerates, if there is one."""
    why = "; ".join(verdict.reasons)
    found = part_of(made, run.verifier, run.tuner) if in_part else None
    if found is None or not any(each.changed for each in found[0].outcomes):
        late = "; there was no time for a part of it" if in_part and run.is_over() else ""
        run.ledger.refuse(report, f"{why}{late}")
        return
    part, own = found
    report.changed = entries(_all(part))
    report.taken_back = list(part.taken)
    _keep(part, own, report, run)
    taken = len(set(made.names) - set(part.include or ()))
    report.reason = f"{taken} of {len(made.names)} taken back: whole, {why}"


def _all(made: InTurn) -> Outcome:
    """What all the passes say that they did."""
    return Outcome(
        [change for each in made.outcomes for change in each.changed],
        [skip for each in made.outcomes for skip in each.skipped],
    )


def _say_left_out(made: InTurn, run: Run) -> None:
    for each in made.left_out:
        run.receipt.missed.append(f"time: {each.name} was left out, the time budget was used up")
