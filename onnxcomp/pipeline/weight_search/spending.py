"""Spend an accuracy budget: the strongest assignment that verifies, with all that follows it.

A search proposes an assignment for a limit of its own (``search``); the limit grows and shrinks until what verifies
takes up the budget. Where one weight alone carries a failure, that weight is held back, and not all of them.
"""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass, field
from typing import Any, Protocol

from onnxcomp.clock import clock
from onnxcomp.contract import Context
from onnxcomp.model import Model
from onnxcomp.pipeline.history.rollback import STRICTER, VERIFY_ATTEMPTS
from onnxcomp.pipeline.safety.reach import Reach
from onnxcomp.pipeline.weight_search import allocation as search
from onnxcomp.pipeline.weight_search.assignment import Attempt, divergence_of, spent_share
from onnxcomp.pipeline.weight_search.candidates import Assignment, Table
from onnxcomp.pipeline.weight_search.experience import Experience
from onnxcomp.pipeline.weight_search.learned import Learned
from onnxcomp.pipeline.weight_search.pruned_options import without_pruned
from onnxcomp.pipeline.weight_search.sensitivity import hold_to, measure_influence
from onnxcomp.pipeline.weight_search.site_options import beside, settled
from onnxcomp.pipeline.weight_search.tuning import Tuning
from onnxcomp.recipe import Choose
from onnxcomp.verify import Verdict, Verifier

LOG = logging.getLogger(__name__)


class Work(Protocol):
    """What is asked of the step whose budget is spent."""

    step: Choose
    model: Model
    context: Context
    verifier: Verifier
    reach: Reach
    deadline: float
    held_back: dict[str, str]
    learned: Learned

    def tried(self, context: Context, table: Table, assignment: Assignment) -> Attempt:
        """An assignment, verified with all that follows."""

    def divergence_alone(self, table: Table, assignment: Assignment) -> float:
        """How far an assignment, without what follows it, is from the original on the verification part."""


@dataclass
class Spending:
    """The search for the strongest trial. mild: what noise alone allows. tuner: the judge of the search. goal: the
    cost of the table's weights that is enough."""

    work: Work
    context: Context
    table: Table
    mild: Assignment
    tuner: Verifier
    goal: float | None
    failures: int = 0
    held_back: int = 0
    known: dict[tuple[int | None, ...], Attempt] = field(default_factory=dict)
    failed: dict[tuple[int | None, ...], Attempt] = field(default_factory=dict)
    held: dict[tuple[int | None, ...], Attempt] = field(default_factory=dict)  # what verified in the search under way
    experience: Experience = field(default_factory=Experience)
    chosen_from: Table = field(init=False)  # by ``strongest``: its table, or that with weights rewritten

    def __post_init__(self) -> None:
        self.chosen_from = self.table

    @property
    def tuning(self) -> Tuning:
        """What the search goes by."""
        return self.table.tuning

    def strongest(self) -> Attempt | None:
        """The strongest trial that verifies, or None. Where the budget is in another unit than the divergence
        (labels, the user's score), or passes follow that bring the outputs nearer again, stronger ones are tried
        until one fails."""
        work, table, limit = self.work, self.table, self.limit
        options: dict[str, Any] = {"deadline": work.deadline, "tolerable": limit}
        if not work.learned.is_measured:
            measure_influence(work.model, table, self.tuner, work.reach, self.mild, self.context, **options)
            if clock() <= work.deadline and work.learned.model is work.model:
                work.learned.keep(work.model, table, self.mild, is_measured=True)
        rewritten = self._with_rewritten(limit)
        if rewritten is None:
            return self._spent_on(table, limit)
        mild, held_back = dict(self.mild), dict(work.held_back)
        self.chosen_from, first = rewritten, self._spent_on(rewritten, limit)
        foreseen = table.total(search.allot(table, limit))
        if first is not None and (first.cost <= self.tuning.promising * foreseen or clock() > work.deadline):
            return first
        of_first = dict(work.held_back)
        self.mild, self.experience, self.failures, self.held_back = mild, Experience(), 0, 0
        work.held_back.clear()
        work.held_back.update(held_back)
        other = self._spent_on(table, limit)
        if other is None or (first is not None and first.cost <= self.tuning.promising * other.cost):
            work.held_back.clear()
            work.held_back.update(of_first)
            return first
        self.chosen_from = table
        return other

    def _with_rewritten(self, limit: float) -> Table | None:
        """The table with large weights rewritten by what the step has for that, where this promises less."""
        work, table = self.work, self.table
        if not work.step.also or self._counts_otherwise() or clock() > work.deadline:
            return None
        foreseen = search.allot(table, limit)
        options: dict[str, Any] = {"deadline": work.deadline}
        wide = beside(table, work.model, work.step.also, foreseen, self.tuner, limit, self.context, **options)
        if wide is None:
            return None
        base = work.divergence_alone(table, {})
        most = base + self.tuning.rewritten * (work.verifier.search_limit - base)
        found = settled(wide, table, limit, work.divergence_alone, most, work.context)
        return found if found is not None and search.promises(found, table, limit) else None

    def _spent_on(self, table: Table, limit: float) -> Attempt | None:
        """The same of this table."""
        self.table = without_pruned(table)
        has_choice = any(len(options) > 1 for options in self.table.options.values())
        best = self._strongest(limit) if has_choice else None
        self.table, self.known = table, {}
        if self._pruning_promises(best, limit):
            other = self._strongest(limit)
            if best is None or (other is not None and other.cost <= self.tuning.promising * best.cost):
                best = other
        return best

    @property
    def limit(self) -> float:
        """Of the search, to begin with."""
        return self.tuner.search_limit * (self.tuning.recovered if self.work.step.then else 1.0)

    def _pruning_promises(self, best: Attempt | None, limit: float) -> bool:
        """Whether options that prune are predicted to save more within a limit than a search is uncertain by: what it
        finds without them stands, and is found as though there were none."""
        if self.table.options == without_pruned(self.table).options or clock() > self.work.deadline:
            return False
        if self.goal is not None and best is not None and best.cost <= self.goal:
            return False
        return best is None or search.promises(self.table, without_pruned(self.table), limit)

    def _strongest(self, first: float) -> Attempt | None:
        """The same of the options that the table has now: by stricter limits alone and, where several failed, once more
        with a weight held back that carries a failure. first: the limit of the search to begin with."""
        options, mild, held_back = dict(self.table.options), dict(self.mild), dict(self.work.held_back)
        patient = self._searched(first, may_hold_back=False)
        if self.failures < 2 or clock() > self.work.deadline:
            return patient
        self.table.options, self.mild, self.known = dict(options), dict(mild), {}
        other = self._searched(first, may_hold_back=True)
        if patient is None or (other is not None and other.cost < patient.cost):
            return other
        self.table.options, self.mild = options, mild
        self.work.held_back.clear()
        self.work.held_back.update(held_back)
        return patient

    def _searched(self, first: float, *, may_hold_back: bool) -> Attempt | None:
        """The strongest trial of one way to answer failures."""
        work, limit, self.failures, self.held = self.work, first, 0, {}
        best: Attempt | None = None
        held, broken = 0.0, math.inf  # the last limit of the search that verified, the least that did not
        for _ in range(self.tuning.limits_tried):
            trial = self._at(limit)
            if trial is None:
                break
            LOG.debug("search: limit %.3g: %s, cost %.0f", limit, trial.verdict.in_words(), trial.cost)
            if self._holds(trial.verdict):
                best = trial if best is None else min(best, trial, key=lambda each: each.cost)
                self._keep(best)
                held = limit
                if self._is_enough(trial.verdict, limit) or limit * self._close >= broken:
                    break
                limit = math.sqrt(limit * broken) if math.isfinite(broken) else limit * self._loosening(trial.verdict)
            elif best is None and self._fails(trial, limit, may_hold_back):
                limit = first
            else:
                broken = min(broken, limit)
                limit = math.sqrt(limit * held) if held else limit * self._tightening(trial.verdict)
            if clock() > work.deadline or (best is not None and limit <= held * math.sqrt(self._close)):
                break
        if work.step.then and best is not None and (self.goal is None or best.cost > self.goal):
            best = self._worth_most(self._strengthened(best))
        return best

    @property
    def _close(self) -> float:
        """Limits this close to each other make no difference that is worth a trial: more where one takes long."""
        is_slow = search.moves_tried(self.table) <= self.tuning.fewest_moves
        return self.tuning.close**2 if is_slow else self.tuning.close

    def _at(self, limit: float) -> Attempt | None:
        """What the search proposes for a limit, verified; None where that would be one trial too many."""
        work = self.work
        options: dict[str, Any] = {"enough": self.goal, "deadline": work.deadline}
        options["descend"] = not work.step.then  # what follows changes what single changes do
        evaluate = divergence_of(self.tuner.trials(work.model), self.table)
        found = search.assign(self.table, evaluate, limit, self.context, **options)
        key = _key(found)
        if key not in self.known:
            if len(self.known) == VERIFY_ATTEMPTS:
                return None
            self.known[key] = self._tried(found)
        return self.known[key]

    def _tried(self, assignment: Assignment) -> Attempt:
        """An assignment, verified with all that follows, which the search learns from; one that failed before is
        not made again."""
        key = _key(assignment)
        before = self.failed.get(key)
        if before is not None and not self._holds(before.verdict):
            return before
        trial = self.work.tried(self.context, self.table, assignment)
        self.experience.note(assignment, self._spent(trial.verdict))
        (self.held if self._holds(trial.verdict) else self.failed)[key] = trial.lost()
        return trial

    def _worth_most(self, best: Attempt) -> Attempt:
        """Of all that verified in this search the one that is worth most, where all of the budget is worth no more than
        a small change of the cost: the cheapest of many is the luckiest, too, and next to it are some with much less
        divergence. It is made once more where it is not ``best``."""

        def value(trial: Attempt) -> float:
            return math.log(max(trial.cost, 1.0)) + self.tuning.least_move * self._spent(trial.verdict)

        found = min((best, *self.held.values()), key=value)
        is_other = _key(found.assignment) != _key(best.assignment) and not self._counts_otherwise()
        return self._tried(found.assignment) if is_other and clock() <= self.work.deadline else best

    def _keep(self, best: Attempt) -> None:
        """Let the models of all other attempts go."""
        self.known = {key: each if each is best else each.lost() for key, each in self.known.items()}

    def _fails(self, trial: Attempt, limit: float, may_hold_back: bool) -> bool:
        """Whether a failure is answered by fewer options; else a stricter limit has to do."""
        if may_hold_back:
            return self._hold_back(trial, limit)
        self.failures += self._is_surprising(trial.verdict, limit)
        return not self.work.step.then and search.retreat(self.table, trial.assignment)

    def _hold_back(self, trial: Attempt, limit: float) -> bool:
        """Whether one weight carries the failure of a trial that the search found within ``limit``; the table then has
        no such option of it any more. A first failure is answered by a stricter limit: most are of many weights."""
        if clock() > self.work.deadline:
            return False
        self.failures += 1
        may_seek = self.failures > 1 and self.held_back < self.tuning.held_back
        if may_seek and self._is_surprising(trial.verdict, limit):
            self.held_back += 1
            most = self.work.verifier.search_limit * (self.tuning.recovered if self.work.step.then else 1.0)
            alone = self.work.divergence_alone
            found = search.culprit(trial.assignment, lambda rest: alone(self.table, rest), most, self.tuning.carried)
            if found is not None and found[1] > self.tuning.unforeseen * self.table.predicted(
                found[0], trial.assignment[found[0]]
            ):
                self._forbid(found[0], trial.assignment)
                return True
        return not self.work.step.then and search.retreat(self.table, trial.assignment)

    def _is_surprising(self, verdict: Verdict, limit: float) -> bool:
        """Whether a trial broke the budget by far more than the search can be mistaken. What is counted otherwise is
        spent until it breaks."""
        return not self._counts_otherwise() and not verdict.quadratic_divergence <= self.tuning.surprising * limit

    def _forbid(self, name: str, assignment: Assignment) -> None:
        """Leave a weight a tenth of the error that carried a failure, then what noise alone allows, then none."""
        now, mild, options = assignment[name], self.mild[name], self.table.options[name]
        milder = [each for each in options if each.error <= self.tuning.less_error * now.error]
        if name not in self.work.held_back and len(milder) > 1:
            self.table.options[name] = milder
            self.work.held_back[name] = "held back"
            return
        if now == mild:
            self.mild[name] = options[0]
        hold_to(self.table, name, self.mild)
        self.work.held_back[name] = "left as it was" if self.mild[name].choice is None else "kept at 8 bits"

    def _strengthened(self, best: Attempt) -> Attempt:
        """A trial that verified after others of less cost, each verified with all that follows.

        Tried is what the trials so far promise, then single changes: what the budget left over should tolerate, by
        prediction and what that was worth for the whole.
        """
        table, count = self.table, search.moves_tried(self.table)
        refuted: dict[str, float] = {}
        best, done = self._learned(best, math.ceil(self.tuning.learned * count))
        for _ in range(count - done):
            left = 1 / max(self._spent(best.verdict), self.tuning.least_spent) - 1 + self.tuning.uncertain
            room = left * search.predicted_total(table, best.assignment)
            move = search.cheapest_move(table, best.assignment, room, refuted)
            if move is None or clock() > self.work.deadline:
                break
            name, option = move
            trial = self._tried(best.assignment | {name: option})
            if self._holds(trial.verdict):
                best = trial
                self._keep(best)
            else:
                refuted[name] = option.error
        return best

    def _learned(self, best: Attempt, most: int) -> tuple[Attempt, int]:
        """The cheapest that verifies of ``most`` assignments that should take up the budget by all trials before, and
        how many were tried."""
        for done in range(most):
            found = None if clock() > self.work.deadline else self._promised(best)
            if found is None:
                return best, done
            trial = self._tried(found)
            if self._holds(trial.verdict):
                best = trial
                self._keep(best)
        return best, most

    def _promised(self, best: Attempt) -> Assignment | None:
        """What should take up the budget, costs less than the best by more than a little, and was not tried yet."""
        factors = self.experience.factors(self.table)
        if not factors or self._counts_otherwise():
            return None
        known = {_key(found) for found, _ in self.experience.trials}
        is_near = self._spent(best.verdict) >= self.tuning.nearly
        shares = [each for each in self.tuning.aimed if each <= 1 or not is_near]
        most = (1 - self.tuning.least_move) * best.cost
        proposed = (search.allot(self.table, share, factors) for share in shares)
        return next((each for each in proposed if self.table.total(each) <= most and _key(each) not in known), None)

    def _holds(self, verdict: Verdict) -> bool:
        """Whether a trial may be taken: one that passes follow goes on until it fails, and so keeps a distance."""
        if not self.work.step.then or self._counts_otherwise():
            return verdict.passed
        return verdict.passed_safely and verdict.quadratic_divergence <= self.work.verifier.search_limit

    def _counts_otherwise(self) -> bool:
        """Whether the budget is in another unit than the search's divergence."""
        return self.tuner.metric != self.work.verifier.metric

    def _is_enough(self, verdict: Verdict, limit: float) -> bool:
        """Whether to stop at a result that verified: the search may not go beyond its own limit, and little of the
        budget is left below it. A budget in another unit than the search's is spent until a result fails."""
        if self._counts_otherwise():
            return False
        if self.work.step.then:
            return self._spent(verdict) >= self.tuning.nearly
        enough = self.tuning.enough * self.work.verifier.limit
        return limit >= self.tuner.search_limit or verdict.quadratic_divergence >= enough

    def _spent(self, verdict: Verdict) -> float:
        """The share of the budget that a result takes up, by what has to hold of it."""
        return spent_share(verdict, self.work.verifier)

    def _loosening(self, verdict: Verdict) -> float:
        """By how much the search's limit may grow after a result that verified with budget to spare."""
        if self._counts_otherwise() or verdict.quadratic_divergence <= 0:
            return self.tuning.stronger
        return min(self.tuning.stronger, max(self.tuning.close, 1 / self._spent(verdict)))

    def _tightening(self, verdict: Verdict) -> float:
        """By how much the search's limit must shrink after a result that did not verify."""
        if not 0 < verdict.quadratic_divergence < math.inf:  # what failed otherwise than by its size says nothing of it
            return STRICTER
        if self.work.step.then and not self._counts_otherwise():
            return min(0.9, max(self.tuning.most_tightened, 0.97 / self._spent(verdict)))
        return min(0.95, max(0.5, 0.97 * self.work.verifier.limit / verdict.quadratic_divergence))


def _key(assignment: Assignment) -> tuple[int | None, ...]:
    return tuple(option.choice for option in assignment.values())
