"""One optimization under way: each step applied, checked, verified, kept or taken back."""

from __future__ import annotations

import dataclasses
import glob
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from onnxcomp.budget import Budget
from onnxcomp.calibration import CalibrationData
from onnxcomp.contract import Context, Outcome, Pass, Skip
from onnxcomp.errors import VerificationError
from onnxcomp.graph.ir.reader import open_graph
from onnxcomp.graph.storage.expand import differing_constants
from onnxcomp.graph.storage.stored import unpacked
from onnxcomp.graph.weights.roles import constants_by_key
from onnxcomp.model import Model
from onnxcomp.pipeline.apply import apply_pass, limited_to
from onnxcomp.pipeline.history.ledger import Ledger
from onnxcomp.pipeline.history.lineage import Lineage
from onnxcomp.pipeline.history.records import application, entries, parameters_of, skipped, title
from onnxcomp.pipeline.history.rollback import verified_part
from onnxcomp.pipeline.model_search.timing import Course
from onnxcomp.pipeline.model_search.tournament import MIN_SPEEDUP, Trials
from onnxcomp.pipeline.reports.costs import latency_ratio
from onnxcomp.pipeline.safety.reach import Reach
from onnxcomp.pipeline.safety.safe_changes import Held, apply_safely
from onnxcomp.pipeline.weight_search.driver import Choosing
from onnxcomp.receipt import Entry, Receipt, StepReport
from onnxcomp.recipe import Recipe, Step
from onnxcomp.target import Target
from onnxcomp.verify import DEFAULT_MAX_DIVERGENCE, Verdict, Verifier
from onnxcomp.verify.guard import MAX_NODE_ERROR, Guard

Progress = Callable[[int, int, str], None]

EXACT_SHARE = 0.02  # of the limit, or of the default one where that is less: what float rounding may come to
NAMED_NODES = 3  # whose errors a step's account shows
SLOWER = 1.02  # a result that takes this share of the original's time, measured twice, is no result


@dataclass
class Run:
    """The state of one optimization. reach: what the data show of each weight; None for a run without data."""

    original: Model
    recipe: Recipe
    context: Context
    budget: Budget
    verifier: Verifier
    tuner: Verifier | None  # on the calibration part; None without data
    reach: Reach | None
    data: CalibrationData
    receipt: Receipt
    progress: Progress
    ledger: Ledger = field(init=False)
    deadline: float = math.inf

    def __post_init__(self) -> None:
        self.ledger = Ledger(self.receipt, Lineage.of(self.original))

    @property
    def current(self) -> Model:
        """The model as the steps so far have left it."""
        return self.ledger.current

    # --- steps ---

    def execute(self) -> None:
        """All steps in order; neighbouring exact ones are verified together."""
        waiting: list[Step] = []
        for step in self.recipe.steps:
            if step.exact:
                waiting.append(step)
                continue
            self._exact(waiting)
            waiting = []
            self._lossy(step)
        self._exact(waiting)
        if self.recipe.goal == "latency":
            self._refuse_slower()

    def settle(self) -> Verdict:
        """The verdict on the result. Where that does not hold, the last steps are taken back until it does; raises
        VerificationError where the original itself does not."""
        verdict = self.verifier.check(self.current)
        if not verdict.passed and self.ledger.kept:
            self.receipt.notes.append(f"the result did not hold in the end: {'; '.join(verdict.reasons)}")
        while not verdict.passed and self.ledger.kept:
            reason = f"in the end it did not hold: {'; '.join(verdict.reasons)}"
            self.ledger.take_back(len(self.ledger.kept) - 1, reason)
            verdict = self.verifier.check(self.current)
        if not verdict.passed:
            why = "; ".join(verdict.reasons)
            raise VerificationError(f"{self.original.name}: compared with itself, the original does not hold: {why}.")
        return verdict

    def _refuse_slower(self) -> None:
        """Where speed was asked for, hand back the original rather than a model that is slower than it."""
        if not self.ledger.kept or not self.data.sample_count:
            return
        course = Course(self.data, self.context.target or Target.of())
        ratios = [course.race(self.original, {"result": self.current})["result"] for _ in range(2)]
        if min(ratios) > SLOWER:
            taken = f"together they took {min(ratios):.2f} of the time"
            self.ledger.take_back(0, f"all steps: {taken}")
            self.receipt.notes.append(f"all steps were taken back: {taken}")

    def _exact(self, steps: Sequence[Step]) -> None:
        """Apply exact steps; when together they change the outputs, one by one, and take the culprit back."""
        if not steps:
            return
        before, noted, kept = self.current, len(self.receipt.steps), len(self.ledger.kept)
        for step in steps:
            self._apply_exact(step)
        reason = self._verify_exact(before)
        if reason is None:
            return
        self.ledger.take_back(kept, reason)
        del self.receipt.steps[noted:]
        for step in steps:
            self._apply_exact_checked(step)

    def _apply_exact(self, step: Step) -> None:
        """One exact step; what it stores has to decode to the very values, and is left plain where it does not."""
        self.progress(0, 1, step.name)
        before, started = self.current, time.monotonic()
        after, outcome, context = self._without_growth(step.rewrite, self._context(step))
        different = differing_constants(before, after) if "compact" in step.rewrite.makes else []
        include: list[str] | None = None
        if different:
            include = sorted(constants_by_key(open_graph(before)).keys() - set(different))
            after, outcome = apply_pass(before, step.rewrite, limited_to(context, include))
        report = self._report(step.rewrite, outcome, before, after, started)
        report.skipped += [Entry(name, "stored, it decodes to other values") for name in different]
        self.receipt.steps.append(report)
        if outcome.changed:
            applied = application(step.rewrite, context, include)
            self.ledger.keep(report, self.ledger.line.after(step.rewrite, after), [applied])

    def _without_growth(self, rewrite: Pass, context: Context) -> tuple[Model, Outcome, Context]:
        """The current model after an exact pass, and the context that it ran in: where bytes are the goal, stored
        weights that it would leave plain are left out."""
        before = self.current
        after, outcome = apply_pass(before, rewrite, context)
        if self.recipe.goal != "bytes" or self.recipe.is_single or after.size_bytes <= before.size_bytes:
            return after, outcome, context
        lost = unpacked(before, after)
        if not lost:
            return after, outcome, context
        context = dataclasses.replace(context, exclude=(*context.exclude, *map(glob.escape, lost)))
        after, outcome = apply_pass(before, rewrite, context)
        if unpacked(before, after):
            after, outcome = before, Outcome(skipped=outcome.skipped)
        outcome.skipped += [Skip(name, "as it is stored it takes fewer bytes") for name in lost]
        return after, outcome, context

    def _apply_exact_checked(self, step: Step) -> None:
        before, kept = self.current, len(self.ledger.kept)
        self._apply_exact(step)
        reason = self._verify_exact(before)
        if reason is None:
            return
        self.ledger.take_back(kept, reason)
        if "compact" in step.rewrite.makes:  # values that nothing stores have lost what they lost for nothing
            self.ledger.take_back(self.ledger.waiting(), f"its values cannot be stored: {reason}")

    def _verify_exact(self, before: Model) -> str | None:
        """Why the current model is not the same as ``before``, or None."""
        if self.current is before:
            return None
        verdict = self.verifier.check(self.current)
        allowed = EXACT_SHARE * min(self.verifier.limit, DEFAULT_MAX_DIVERGENCE)
        if not verdict.failed and not verdict.divergence <= self.ledger.divergence + allowed:
            return f"an exact step changed the outputs: divergence {verdict.divergence:.3g}"
        return None if verdict.passed else "; ".join(verdict.reasons)

    def _lossy(self, step: Step) -> None:
        self.progress(0, 1, step.name)
        started = time.monotonic()
        if started > self.deadline:
            self.receipt.missed.append(f"time: {step.name} was left out, the time budget was used up")
            return
        kept = len(self.ledger.kept)
        self._tried(step, started)
        over = self._off_nodes(kept)
        if not over:
            return
        names = ", ".join(f"{name} ({error:.2f})" for name, error in over.items())
        why = f"the outputs of the nodes of {names} are off by over {self._most_node_error():.2g} of their variance"
        self.ledger.take_back(kept, why)
        self.receipt.notes.append(f"{step.name}: {why}: left as before")
        self._tried(dataclasses.replace(step, exclude=(*step.exclude, *map(glob.escape, over))), started)
        if self._off_nodes(kept):
            self.ledger.take_back(kept, why)

    def _tried(self, step: Step, started: float) -> None:
        if step.trials:
            self._fastest(step, started)
        elif step.auto:
            self._searched(step, started)
        else:
            self._fixed(step, started)

    def _most_node_error(self) -> float:
        """What a node's own output may be off by: more where the user allows more."""
        scale = self.verifier.limit / DEFAULT_MAX_DIVERGENCE if self.verifier.metric == "divergence" else 1.0
        return MAX_NODE_ERROR * max(1.0, scale)

    def _off_nodes(self, kept: int) -> dict[str, float]:
        """The weights whose nodes' own outputs became wrong by a step, which the model's outputs may not show.

        kept: how many steps were kept before it.
        """
        if self.reach is None or len(self.ledger.kept) == kept or not self.verifier.evidence.is_enough:
            return {}
        guard = Guard(self.ledger.line.reference, self.verifier.data, self.context.target or Target.of())
        errors = guard.errors(self.current)
        report = self.ledger.kept[-1].report
        worst = sorted(errors, key=lambda name: -errors[name])[:NAMED_NODES]
        report.node_errors = {name: errors[name] for name in worst}
        touched = {each.name for each in report.changed}
        over = {name: error for name, error in errors.items() if not error <= self._most_node_error()}
        return {name: error for name, error in over.items() if name in touched} or over

    def _fixed(self, step: Step, started: float) -> None:
        """A step with given parameters: kept whole, kept in part, or taken back."""
        before = self.current
        held = apply_safely(before, step.rewrite, self._context(step), self.reach)
        report = self._report(step.rewrite, held.outcome, before, held.model, started)
        report.taken_back = held.entries()
        self.receipt.steps.append(report)
        self.receipt.notes += held.notes()
        if not held.outcome.changed:
            if held.left:
                self.ledger.refuse(report, f"{held.left[0]}: {held.reason}")
            return
        verdict = self.verifier.check(held.model)
        if verdict.passed:
            line = self.ledger.line.after(step.rewrite, held.model)
            decision = "kept in part" if held.left else "kept"
            applied = application(step.rewrite, held.context)
            self.ledger.keep(report, line, [applied], verdict=verdict, decision=decision)
        elif verdict.failed and len(held.outcome.changed) == 1:
            self.ledger.refuse(report, "; ".join(verdict.reasons))
        else:
            self._in_part(step.rewrite, held, report, verdict)
        self._check_speed(step, before, report)
        report.seconds = time.monotonic() - started

    def _in_part(self, rewrite: Pass, held: Held, report: StepReport, whole: Verdict) -> None:
        """The part of a step that the budget bears."""
        before, context = self.current, held.context
        why = "; ".join(whole.reasons)
        rest, verdict = verified_part(before, held.model, held.outcome, rewrite, context, self.verifier, self.tuner)
        report.taken_back += rest.taken_entries()
        if not rest.kept:
            self.ledger.refuse(report, why)
            return
        applied = application(rewrite, context, None if rest.by_value else rest.kept)
        applied.restore = list(rest.taken) if rest.by_value else []
        kept = set(rest.kept)
        report.changed = [each for each in report.changed if each.name in kept]
        line = self.ledger.line.after(rewrite, rest.model)
        self.ledger.keep(report, line, [applied], verdict=verdict, decision="kept in part")
        report.reason = f"{len(rest.taken)} of {len(rest.own)} taken back: whole, {why}"

    def _fastest(self, step: Step, started: float) -> None:
        """A step that tries several rewrites of the whole model and keeps the fastest."""
        context, before = self._context(step), self.current
        trials = Trials(
            line=self.ledger.line,
            original=self.original,
            candidates=step.trials,
            spares=step.spares,
            context=context,
            verifier=self.verifier,
            tuner=self.tuner,
            reach=self.reach,
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
            self.ledger.refuse(report, "nothing that was tried is faster within the budget")
            return
        assert best.verdict is not None
        outcome = best.outcomes[best.main]
        report.rewrite, report.parameters = title(best.passes), parameters_of(best.passes[best.main])
        report.changed, report.skipped, report.taken_back = entries(outcome), skipped(outcome), best.taken
        report.latency_ratio = best.ratio
        self.receipt.notes += best.notes
        decision = "kept" if best.is_whole else "kept in part"
        self.ledger.keep(report, best.line, best.applications(), verdict=best.verdict, decision=decision)

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
            reach=self.reach or Reach(None),
            target_size=self.budget.target_size,
            deadline=self.deadline,
        )
        trial = choosing.choose()
        report = self._report(step.rewrite, Outcome(skipped=choosing.skipped), before, before, started)
        report.rewrite, report.parameters = step.name, _auto_parameters(step)
        self.receipt.steps.append(report)
        self.receipt.notes += choosing.notes
        if trial is None:
            return
        if not trial.verdict.passed:
            self.ledger.refuse(report, "; ".join(trial.verdict.reasons))
        elif trial.applications:
            report.changed = trial.entries
            self.ledger.keep(report, self.ledger.line.lost(trial.model), trial.applications, verdict=trial.verdict)
        elif choosing.refuted is not None:
            report.reason = f"no strength holds: {'; '.join(choosing.refuted.reasons)}"
        report.seconds = time.monotonic() - started

    def _check_speed(self, step: Step, before: Model, report: StepReport) -> None:
        """A step asked for speed that gives none on the target is taken back, whatever bytes it saves."""
        if "latency" not in step.rewrite.effect.shrinks or not report.decision.startswith("kept"):
            return
        if self.recipe.goal != "latency" and "bytes" in step.rewrite.effect.shrinks:
            return
        report.latency_ratio = latency_ratio(before, self.current, self.data, self.context.target)
        if report.latency_ratio > MIN_SPEEDUP:
            reason = f"no faster on {self.receipt.target}: latency ratio {report.latency_ratio:.2f}"
            self.ledger.take_back(len(self.ledger.kept) - 1, reason)

    def _context(self, step: Step) -> Context:
        def progress(done: int, total: int, what: str) -> None:
            self.progress(done, total, what if what.startswith(step.name) else f"{step.name}: {what}")

        exclude = (*self.context.exclude, *step.exclude)
        return self.ledger.line.context(dataclasses.replace(self.context, exclude=exclude, progress=progress))

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
