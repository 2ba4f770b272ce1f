"""One optimization under way: each step applied, checked, verified, kept or taken back."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from onnxcomp.budget import Budget
from onnxcomp.calibration import CalibrationData
from onnxcomp.contract import Context, Outcome, Pass
from onnxcomp.graph.expand import differing_constants
from onnxcomp.model import Model
from onnxcomp.pipeline.account import application, entries, parameters_of, skipped, title
from onnxcomp.pipeline.choosing import Choosing
from onnxcomp.pipeline.measure import latency_ratio
from onnxcomp.pipeline.race import Course
from onnxcomp.pipeline.rewrite import apply_pass
from onnxcomp.pipeline.takeback import verified_part
from onnxcomp.pipeline.trials import MIN_SPEEDUP, Trials
from onnxcomp.receipt import Application, Receipt, StepReport
from onnxcomp.recipe import Recipe, Step
from onnxcomp.target import Target
from onnxcomp.verify import DEFAULT_MAX_DIVERGENCE, Verdict, Verifier

Progress = Callable[[int, int, str], None]

EXACT_DIVERGENCE = 0.02 * DEFAULT_MAX_DIVERGENCE  # what an exact step may differ by, from float rounding
SLOWER = 1.02  # a result that takes this share of the original's time, measured twice, is no result


@dataclass
class Run:
    """The state of one optimization."""

    original: Model
    recipe: Recipe
    context: Context
    budget: Budget
    verifier: Verifier
    tuner: Verifier | None  # on the calibration part; None without data
    data: CalibrationData
    receipt: Receipt
    progress: Progress
    current: Model = field(init=False)
    lossless: Model = field(init=False)  # as it was before the first step that lost anything
    divergence: float = 0.0
    deadline: float = math.inf

    def __post_init__(self) -> None:
        self.current = self.lossless = self.original

    # --- steps ---

    def execute(self) -> None:
        """All steps in order; neighbouring exact ones are verified together."""
        waiting: list[Step] = []
        lost = False
        for step in self.recipe.steps:
            if step.exact:
                waiting.append(step)
                continue
            self._exact(waiting)
            waiting = []
            if not lost:
                self.lossless = self.current
            applied = len(self.receipt.applied)
            self._lossy(step)
            lost = lost or len(self.receipt.applied) > applied
        self._exact(waiting)
        if self.recipe.goal == "latency":
            self._refuse_slower()

    def _refuse_slower(self) -> None:
        """Where speed was asked for, hand back the original rather than a model that is slower than it."""
        if not self.receipt.applied or not self.data.sample_count:
            return
        course = Course(self.data, self.context.target or Target.of())
        ratios = [course.race(self.original, {"result": self.current})["result"] for _ in range(2)]
        if min(ratios) > SLOWER:
            self.current, self.divergence = self.original, 0.0
            self.receipt.applied.clear()
            self.receipt.notes.append(f"all steps were taken back: together they took {min(ratios):.2f} of the time")

    def _exact(self, steps: Sequence[Step]) -> None:
        """Apply exact steps; when together they change the outputs, one by one, and take the culprit back."""
        if not steps:
            return
        before, noted, applied = self.current, len(self.receipt.steps), len(self.receipt.applied)
        for step in steps:
            self._apply_exact(step)
        verdict = self._verify_exact(before)
        if verdict is None:
            return
        self.current = before
        del self.receipt.steps[noted:], self.receipt.applied[applied:]
        for step in steps:
            self._apply_exact_checked(step)

    def _apply_exact(self, step: Step) -> None:
        self.progress(0, 1, step.name)
        context = self._context(step)
        before, started = self.current, time.monotonic()
        after, outcome = apply_pass(before, step.rewrite, context)
        self.current = after
        report = self._report(step.rewrite, outcome, before, after, started)
        self.receipt.steps.append(report)
        different = differing_constants(before, after) if "compact" in step.rewrite.makes else []
        if different:
            self._refuse(report, before, f"a stored constant decodes to other values: {different[0]}")
        elif outcome.changed:
            self.receipt.applied.append(application(step.rewrite, context))

    def _apply_exact_checked(self, step: Step) -> None:
        before = self.current
        self._apply_exact(step)
        reason = self._verify_exact(before)
        report = self.receipt.steps[-1]
        if reason is not None:
            self.current = before
            self.receipt.applied.pop()
            report.decision, report.reason, report.bytes_after = "taken back", reason, before.size_bytes

    def _verify_exact(self, before: Model) -> str | None:
        """Why the current model is not the same as ``before``, or None."""
        if self.current is before:
            return None
        verdict = self.verifier.check(self.current)
        allowed = self.divergence + EXACT_DIVERGENCE
        if verdict.failed:
            return "; ".join(verdict.reasons)
        if not verdict.divergence <= allowed:
            return f"an exact step changed the outputs: divergence {verdict.divergence:.3g}"
        return None

    def _lossy(self, step: Step) -> None:
        self.progress(0, 1, step.name)
        started = time.monotonic()
        if started > self.deadline:
            self.receipt.missed.append(f"time: {step.name} was left out, the time budget was used up")
            return
        if step.trials:
            self._fastest(step, started)
        elif step.auto:
            self._searched(step, started)
        else:
            self._fixed(step, started)

    def _fixed(self, step: Step, started: float) -> None:
        """A step with given parameters: kept whole, kept in part, or taken back."""
        context, before, divergence = self._context(step), self.current, self.divergence
        after, outcome = apply_pass(before, step.rewrite, context)
        report = self._report(step.rewrite, outcome, before, after, started)
        self.receipt.steps.append(report)
        if not outcome.changed:
            return
        verdict = self.verifier.check(after)
        if verdict.passed:
            self._keep(report, after, verdict, [application(step.rewrite, context)])
        elif verdict.failed and len(outcome.changed) == 1:
            self._refuse(report, before, "; ".join(verdict.reasons))
        else:
            self._in_part(step.rewrite, context, after, outcome, report, verdict)
        self._check_speed(step, before, divergence, report)
        report.seconds = time.monotonic() - started

    def _in_part(
        self,
        rewrite: Pass,
        context: Context,
        after: Model,
        outcome: Outcome,
        report: StepReport,
        whole: Verdict,
    ) -> None:
        before = self.current
        rest, verdict = verified_part(before, after, outcome, rewrite, context, self.verifier, self.tuner)
        report.taken_back = rest.taken_entries()
        if not rest.kept:
            self._refuse(report, before, f"divergence {whole.divergence:.3g} over the limit {self.verifier.limit:.3g}")
            return
        applied = application(rewrite, context)
        if rest.by_value:
            applied.restore = list(rest.taken)
        else:
            applied.include = list(rest.kept)
        kept = set(rest.kept)
        report.changed = [each for each in report.changed if each.name in kept]
        self._keep(report, rest.model, verdict, [applied], decision="kept in part")
        count = f"{len(rest.taken)} of {len(rest.own)}"
        report.reason = f"{count} taken back: whole, the divergence was {whole.divergence:.3g}"

    def _fastest(self, step: Step, started: float) -> None:
        """A step that tries several rewrites of the whole model and keeps the fastest."""
        context, before = self._context(step), self.current
        trials = Trials(
            before=before,
            original=self.original,
            candidates=step.trials,
            spares=step.spares,
            context=context,
            verifier=self.verifier,
            tuner=self.tuner,
            course=Course(self.data, context.target or Target.of()),
            goal=self.budget.target_latency,
            deadline=self.deadline,
        )
        best = trials.run()
        report = self._report(step.rewrite, Outcome(), before, before, started)
        report.rewrite, report.parameters = step.name, {}
        report.tried = [each.account() for each in trials.entered]
        self.receipt.steps.append(report)
        if best is None:
            self._refuse(report, before, "nothing that was tried is faster within the budget")
            return
        assert best.verdict is not None
        outcome = best.outcomes[best.main]
        report.rewrite, report.parameters = title(best.passes), parameters_of(best.passes[best.main])
        report.changed, report.skipped, report.taken_back = entries(outcome), skipped(outcome), best.taken
        report.latency_ratio = best.ratio
        decision = "kept" if best.is_whole else "kept in part"
        self._keep(report, best.model, best.verdict, best.applications(context), decision=decision)

    def _searched(self, step: Step, started: float) -> None:
        """A step whose strength is chosen weight by weight."""
        before = self.current
        choosing = Choosing(
            step=step,
            model=before,
            original=self.original,
            context=self._context(step),
            verifier=self.verifier,
            tuner=self.tuner,
            target_size=self.budget.target_size,
            deadline=self.deadline,
        )
        trial = choosing.choose()
        report = self._report(step.rewrite, Outcome(skipped=choosing.skipped), before, before, started)
        report.rewrite, report.parameters = step.name, _auto_parameters(step)
        self.receipt.steps.append(report)
        if trial is None:
            return
        if trial.verdict.passed:
            report.changed = trial.entries
            self._keep(report, trial.model, trial.verdict, trial.applications)
        else:
            self._refuse(report, before, "; ".join(trial.verdict.reasons))
        report.seconds = time.monotonic() - started

    # --- keeping and refusing ---

    def _keep(
        self,
        report: StepReport,
        model: Model,
        verdict: Verdict,
        applied: Iterable[Application],
        decision: str = "kept",
    ) -> None:
        self.current = model
        self.divergence = verdict.divergence
        self.receipt.applied.extend(applied)
        report.decision, report.bytes_after = decision, model.size_bytes
        report.divergence, report.interval = verdict.divergence, verdict.interval

    def _refuse(self, report: StepReport, before: Model, reason: str) -> None:
        self.current = before
        report.decision, report.reason, report.bytes_after = "taken back", reason, before.size_bytes
        report.changed = []

    def _check_speed(self, step: Step, before: Model, divergence: float, report: StepReport) -> None:
        """A step asked for speed that gives none on the target is taken back, whatever bytes it saves."""
        if "latency" not in step.rewrite.effect.shrinks or not report.decision.startswith("kept"):
            return
        if self.recipe.goal != "latency" and "bytes" in step.rewrite.effect.shrinks:
            return
        report.latency_ratio = latency_ratio(before, self.current, self.data, self.context.target)
        if report.latency_ratio > MIN_SPEEDUP:
            del self.receipt.applied[-1:]
            self.divergence = divergence
            reason = f"no faster on {self.receipt.target}: latency ratio {report.latency_ratio:.2f}"
            self._refuse(report, before, reason)

    def _context(self, step: Step) -> Context:
        def progress(done: int, total: int, what: str) -> None:
            self.progress(done, total, what if what.startswith(step.name) else f"{step.name}: {what}")

        exclude = (*self.context.exclude, *step.exclude)
        return dataclasses.replace(self.context, original=self.lossless, exclude=exclude, progress=progress)

    def _report(self, rewrite: Pass, outcome: Outcome, before: Model, after: Model, started: float) -> StepReport:
        return StepReport(
            rewrite=rewrite.pass_name(),
            decision="kept" if outcome.changed else "nothing to do",
            parameters=parameters_of(rewrite),
            bytes_before=before.size_bytes,
            bytes_after=after.size_bytes,
            seconds=time.monotonic() - started,
            changed=entries(outcome),
            skipped=skipped(outcome),
        )


def _auto_parameters(step: Step) -> dict[str, Any]:
    """The step's parameters with "auto" for what is chosen; of several passes no others are in common."""
    chosen = dict.fromkeys(step.rewrite.choices()[0], "auto")
    return chosen if step.alternatives else parameters_of(step.rewrite) | chosen
