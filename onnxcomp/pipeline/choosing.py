"""Choose a pass and a strength for each weight: candidates, the search among them, what follows, and verification.

Trials are whole assignments, applied and verified. A search proposes one for a limit of its own; the limit grows and
shrinks until what verifies takes up the budget (``search`` has the assignment for one limit).
"""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from onnxcomp.budget import Goal
from onnxcomp.calibration import CalibrationData
from onnxcomp.contract import Context, Needs, Pass, Skip
from onnxcomp.model import Model
from onnxcomp.pipeline import search
from onnxcomp.pipeline.account import application, entries
from onnxcomp.pipeline.noise import assign_by_noise
from onnxcomp.pipeline.rewrite import apply_pass
from onnxcomp.pipeline.table import (
    HOPELESS_ERROR,
    NOISE_ERROR,
    Assignment,
    Table,
    build,
    fit_again,
    tabulate,
    total_bytes,
)
from onnxcomp.pipeline.takeback import STRICTER, VERIFY_ATTEMPTS, energy_of
from onnxcomp.receipt import Application, Entry
from onnxcomp.recipe import Step
from onnxcomp.verify import Verdict, Verifier

JUDGED_SHARE = 1 / 3  # of the calibration samples: candidates that draw on data are not fitted to these
LEAST_JUDGED = 16
RECOVERED = 2.0  # of the search's own limit: where to begin when passes follow that bring the outputs nearer again
LEAST_SPENT = 0.1  # of the budget, that a result is counted to take up where single changes follow
UNCERTAIN = 0.05  # of the predicted divergence: single changes are tried that should go so far over the budget
NEARLY = 0.9  # of the limit: with such passes no stronger one is tried
MOST_TIGHTENED = 0.3
LIMITS_TRIED = 24  # limits of a search that end in an assignment known already cost next to nothing
STRONGER = 2.0  # and one whose budget has another unit, with this much more, until it fails
ENOUGH = 0.75  # of the budget: no stronger one is tried
CLOSE = 1.15  # a limit this close to one that failed is not worth another try
GOAL_SHARE = 0.97  # of a size goal: the rest is left to shared decoding tables, which no estimate of one weight holds


@dataclass(frozen=True)
class Trial:
    """One assignment of strengths, applied and verified."""

    model: Model
    entries: list[Entry]
    applications: list[Application]
    verdict: Verdict
    assignment: Assignment

    @property
    def size_bytes(self) -> int:
        """Of the assigned weights, estimated."""
        return total_bytes(self.assignment)


@dataclass
class Choosing:
    """One step whose pass and strength are chosen weight by weight.

    model: what the step is applied to. context: of the step, with all the calibration data. tuner: judges on the
    calibration part; None without data. skipped: what no candidate changed, once the choice is made.
    """

    step: Step
    model: Model
    original: Model
    context: Context
    verifier: Verifier
    tuner: Verifier | None
    target_size: Goal | None
    deadline: float
    skipped: list[Skip] = field(default_factory=list)

    def choose(self) -> Trial | None:
        """The strongest trial that verifies, else the one that noise alone allows; None where nothing can change."""
        step = self.step
        fit, tuner = self._parts_to_search(step)
        context = dataclasses.replace(self.context, calibration=fit)
        table = self._table(context, tuner)
        self.skipped = list(table.skipped)
        if not table.options:
            return None
        mild = assign_by_noise(self.model, table)
        trial = self._by_divergence(step, context, table, tuner) if tuner is not None else None
        if trial is None or (time.monotonic() > self.deadline and trial.size_bytes > total_bytes(mild)):
            trial = self._tried(step, context, table, mild)
        return trial

    def _table(self, context: Context, tuner: Verifier | None) -> Table:
        """What each weight can become. Where candidates draw on data, all are made without, and those in question for
        a weight again with data."""
        candidates, limits = self.step.candidates, {"deadline": self.deadline}
        most_error = NOISE_ERROR if tuner is None else HOPELESS_ERROR
        if tuner is None or not _fit_later(candidates, context):
            return tabulate(self.model, candidates, context, most_error=most_error, **limits)
        plain = dataclasses.replace(context, calibration=None)
        table = tabulate(self.model, candidates, plain, most_error=most_error, **limits)
        if table.options:
            mild = assign_by_noise(self.model, table)
            search.measure_influence(self.model, table, energy_of(tuner), context, once=True, **limits)
            search.shortlist(table, tuner.search_limit, mild)
            fit_again(table, self.model, candidates, context, **limits)
        return table

    def _parts_to_search(self, step: Step) -> tuple[CalibrationData | None, Verifier | None]:
        """What candidates are fitted to, and the judge of them.

        Candidates that draw on data look better on these than they are, each to another degree: the judge gets a
        part of the calibration samples that they have not seen. What follows the choice has all of them.
        """
        data = self.context.calibration
        draws_on_data = any(each.draws_on_data(calibration=True) for each in step.candidates)
        if self.tuner is None or data is None or not draws_on_data:
            return data, self.tuner
        fit, rest = fitting_part(data, self.context.seed)
        return fit, self.tuner.on(rest)

    def _by_divergence(self, step: Step, context: Context, table: Table, tuner: Verifier) -> Trial | None:
        """The strongest trial that verifies, or None. Where the budget is in another unit than the divergence
        (labels, the user's score), or passes follow that bring the outputs nearer again, stronger ones are tried
        until one fails."""
        evaluate, limit = energy_of(tuner), tuner.search_limit
        search.measure_influence(self.model, table, evaluate, context, deadline=self.deadline)
        goal = self._goal_bytes(table)
        options: dict[str, Any] = {"goal_bytes": goal, "deadline": self.deadline}
        options["descend"] = not step.then  # what follows changes what single changes do
        if step.then:
            limit *= RECOVERED
        best: Trial | None = None
        held, broken = 0.0, math.inf  # the last limit of the search that verified, the least that did not
        known: dict[tuple[int | None, ...], Trial] = {}
        for _ in range(LIMITS_TRIED):
            found = search.assign(self.model, table, evaluate, limit, context, **options)
            key = tuple(option.choice for option in found.values())
            if key not in known and len(known) == VERIFY_ATTEMPTS:
                break
            trial = known[key] = known.get(key) or self._tried(step, context, table, found)
            if self._holds(step, trial.verdict):
                best = trial if best is None else min(best, trial, key=lambda each: each.size_bytes)
                held = limit
                if self._is_enough(step, trial.verdict, limit) or limit * CLOSE >= broken:
                    break
                limit = math.sqrt(limit * broken) if math.isfinite(broken) else limit * self._loosening(trial.verdict)
            elif best is not None or step.then or not search.retreat(table, found):
                broken = min(broken, limit)
                limit = math.sqrt(limit * held) if held else limit * self._tightening(step, trial.verdict)
            if best is not None and (time.monotonic() > self.deadline or limit <= held * math.sqrt(CLOSE)):
                break
        if step.then and best is not None and (goal is None or best.size_bytes > goal):
            best = self._strengthened(step, context, table, best)
        return best

    def _strengthened(self, step: Step, context: Context, table: Table, best: Trial) -> Trial:
        """A trial that verified after single changes that save bytes, each verified with all that follows.

        Tried is what the budget left over should bear, by prediction and what that was worth for the whole.
        """
        refuted: set[tuple[str, int | None]] = set()
        for _ in range(search.moves_tried(table)):
            left = 1 / max(self._spent(best.verdict), LEAST_SPENT) - 1 + UNCERTAIN
            room = left * search.predicted_total(table, best.assignment)
            move = search.cheapest_move(table, best.assignment, room, refuted)
            if move is None or time.monotonic() > self.deadline:
                break
            name, option = move
            trial = self._tried(step, context, table, best.assignment | {name: option})
            if self._holds(step, trial.verdict):
                best = trial
            else:
                refuted.add((name, option.choice))
        return best

    def _holds(self, step: Step, verdict: Verdict) -> bool:
        """Whether a trial may be taken: one that passes follow goes on until it fails, and so keeps a distance."""
        if not step.then or self._counts_otherwise():
            return verdict.passed
        return verdict.passed_safely and verdict.energy <= self.verifier.search_limit

    def _counts_otherwise(self) -> bool:
        """Whether the budget is in another unit than the search's divergence."""
        return self.tuner is not None and self.tuner.metric != self.verifier.metric

    def _is_enough(self, step: Step, verdict: Verdict, limit: float) -> bool:
        """Whether to stop at a result that verified: the search may not go beyond its own limit, and little of the
        budget is left below it. A budget in another unit than the search's is spent until a result fails."""
        assert self.tuner is not None
        if self._counts_otherwise():
            return False
        if step.then:
            return self._spent(verdict) >= NEARLY
        return limit >= self.tuner.search_limit or verdict.energy >= ENOUGH * self.verifier.limit

    def _spent(self, verdict: Verdict) -> float:
        """The share of the budget that a trial takes up, one standard error included."""
        safe = (verdict.divergence + verdict.interval[1]) / 2
        return max(_share(safe, self.verifier.limit), _share(verdict.energy, self.verifier.search_limit))

    def _loosening(self, verdict: Verdict) -> float:
        """By how much the search's limit may grow after a result that verified with budget to spare."""
        if self._counts_otherwise() or verdict.energy <= 0:
            return STRONGER
        return min(STRONGER, max(CLOSE, 1 / self._spent(verdict)))

    def _tightening(self, step: Step, verdict: Verdict) -> float:
        """By how much the search's limit must shrink after a result that did not verify."""
        if not math.isfinite(verdict.energy) or not self._spent(verdict):
            return STRICTER
        if step.then and not self._counts_otherwise():
            return min(0.9, max(MOST_TIGHTENED, 0.97 / self._spent(verdict)))
        return min(0.95, max(0.5, 0.97 * self.verifier.limit / verdict.energy))

    def _goal_bytes(self, table: Table) -> int | None:
        """What the weights of the table may take for the whole model to reach its size goal."""
        if self.target_size is None:
            return None
        rest = self.model.size_bytes - sum(options[0].size_bytes for options in table.options.values())
        return int(GOAL_SHARE * self.target_size.limit(self.original.size_bytes) - rest)

    def _tried(self, step: Step, context: Context, table: Table, assignment: Assignment) -> Trial:
        """An assignment, verified: each weight as its choice left it, all applied to the same model."""
        noted: list[Entry] = []
        applications: list[Application] = []
        for index, rewrite in enumerate(step.candidates):
            names = sorted(name for name, option in assignment.items() if option.choice == index)
            if not names:
                continue
            noted.extend(table.entries[index, name] for name in names)
            applied = application(rewrite, context, include=names)
            applied.beside, applied.fitted = bool(applications), applied.on_data
            applications.append(applied)
        model = build(self.model, table, assignment)
        context = dataclasses.replace(context, calibration=self.context.calibration)
        for rewrite in step.then:
            model, outcome = apply_pass(model, rewrite, context)
            noted.extend(entries(outcome))
            if outcome.changed:
                applications.append(application(rewrite, context))
        verdict = self.verifier.check(model)
        return Trial(model, noted, applications, verdict, assignment)


def _share(used: float, limit: float) -> float:
    """Used over a limit; of a limit of zero nothing, or more than there is."""
    if limit:
        return used / limit
    return math.inf if used > 0 else 0.0


def _fit_later(candidates: Sequence[Pass], context: Context) -> bool:
    """Whether candidates can be made without data first and draw on it later."""
    with_data = any(each.draws_on_data(calibration=True) for each in candidates)
    return context.calibration is not None and with_data and all(each.needed() is Needs.NOTHING for each in candidates)


def fitting_part(data: CalibrationData, seed: int) -> tuple[CalibrationData, CalibrationData]:
    """The calibration samples that candidates of a search are fitted to, and those that they are judged by."""
    return data.split(seed=seed, fraction=JUDGED_SHARE, minimum=LEAST_JUDGED)
