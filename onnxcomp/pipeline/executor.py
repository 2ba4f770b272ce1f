"""A recipe carried out: its steps in order, and what is to hold of all of them in the end."""

from __future__ import annotations

from onnxcomp.errors import VerificationError
from onnxcomp.pipeline.run import Run
from onnxcomp.pipeline.steps import apply_exact, perform
from onnxcomp.recipe import Apply
from onnxcomp.verify import Verdict

SLOWER = 1.02  # a result that takes this share of the original's time, measured twice, is no result


def execute(run: Run) -> None:
    """All steps in order; neighbouring exact ones are verified together."""
    waiting: list[Apply] = []
    for step in run.recipe.unrolled():
        if isinstance(step, Apply) and step.is_exact:
            waiting.append(step)
            continue
        apply_exact(waiting, run)
        waiting = []
        perform(step, run)
    apply_exact(waiting, run)
    if run.recipe.goal == "latency":
        _refuse_slower(run)


def settle(run: Run) -> Verdict:
    """The verdict on the result. Where that does not hold, the last steps are taken back until it does; raises
    VerificationError where the original itself does not."""
    ledger = run.ledger
    verdict = run.verifier.check(run.current)
    if not verdict.passed and ledger.kept:
        run.receipt.notes.append(f"the result did not hold in the end: {'; '.join(verdict.reasons)}")
    while not verdict.passed and ledger.kept:
        ledger.take_back(len(ledger.kept) - 1, f"in the end it did not hold: {'; '.join(verdict.reasons)}")
        verdict = run.verifier.check(run.current)
    if not verdict.passed:
        why = "; ".join(verdict.reasons)
        raise VerificationError(f"{run.original.name}: compared with itself, the original does not hold: {why}.")
    return verdict


def _refuse_slower(run: Run) -> None:
    """Where speed was asked for, hand back the original rather than a model that is slower than it."""
    if not run.ledger.kept or not run.data.sample_count:
        return
    ratio = run.course.race(run.original, {"result": run.current})["result"]
    if ratio > SLOWER:
        ratio = min(ratio, run.course.race(run.original, {"result": run.current})["result"])
    if ratio > SLOWER:
        taken = f"{ratio:.2f}x the original's latency"
        run.ledger.take_back(0, f"the result took {taken}")
        run.receipt.notes.append(f"result discarded: {taken}")
