"""Choose a pass and a strength for each weight: candidates, the search among them, what follows, and verification.

Trials are whole assignments, applied and verified. ``spending`` finds the strongest that the budget tolerates; where it
takes more bytes than what noise alone allows, as it is done without data, that is tried as well.
"""

from __future__ import annotations

import dataclasses
import functools
import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from onnxcomp.calibration import CalibrationData
from onnxcomp.clock import clock
from onnxcomp.contract import Choice, Context, Needs, Outcome, Pass, Quantity, Skip, own_choice
from onnxcomp.errors import RecipeError
from onnxcomp.memory import return_freed
from onnxcomp.model import Model
from onnxcomp.parallel import end_processes
from onnxcomp.pipeline.apply import apply_pass
from onnxcomp.pipeline.history.records import application, entries, title
from onnxcomp.pipeline.model_search.timing import Course
from onnxcomp.pipeline.objective import REACHED, Objective
from onnxcomp.pipeline.safety.reach import FEW_FACTOR, Reach, unreached_note
from onnxcomp.pipeline.weight_search import allocation as search
from onnxcomp.pipeline.weight_search.assembly import rewritten, with_values
from onnxcomp.pipeline.weight_search.assignment import Attempt, divergence_of, spent_share
from onnxcomp.pipeline.weight_search.candidates import (
    HOPELESS_ERROR,
    NOISE_ERROR,
    Assignment,
    Candidates,
    Table,
    WeightOption,
)
from onnxcomp.pipeline.weight_search.data_free import as_made, assign_by_noise, hold_to_noise
from onnxcomp.pipeline.weight_search.learned import Learned
from onnxcomp.pipeline.weight_search.pruned_options import compensation, foresee_compensation, leave_out_idle
from onnxcomp.pipeline.weight_search.runners_up import accounts
from onnxcomp.pipeline.weight_search.sensitivity import measure_influence
from onnxcomp.pipeline.weight_search.site_options import add_sites
from onnxcomp.pipeline.weight_search.spending import Spending
from onnxcomp.pipeline.weight_search.tuning import Tuning
from onnxcomp.pipeline.weight_search.ways import better_way
from onnxcomp.receipt import Application, Entry, WeightAccount
from onnxcomp.recipe import Choose
from onnxcomp.verify import ValueTrials, Verdict, Verifier

LOG = logging.getLogger(__name__)

JUDGED_SHARE = 1 / 3  # of the calibration samples: candidates that draw on data are not fitted to these
LEAST_JUDGED = 16
TABLES_BYTES = 300  # what shared decoding tables may take, which no estimate of one weight holds: much of a small model
CUT_SHORT = "the time budget ended the search"
NO_SEARCH = "the time budget left no time for a search: weights were held to the noise of 8 bits, as without data"
HELD_ERROR = 0.01  # of a node that came out wrong, by each weight alone: 20 dB, what about 4 bits leave
HALVINGS = 2
TABULATED, FITTED = 0.4, 0.5  # of the time that is left: candidates without data, and with data; the rest is for trials
MOST_LEFT = 0.3  # of the budget taken up, and what stands in the way of more is said
WORTH_SEARCHING = 0.005  # of the model's bytes, saved by the strongest options of all weights together
HARDLY_WORTH = "the strongest forms of all weights together save {saved:,.0f} bytes, {share:.2%} of the model"


@dataclass
class Choosing:
    """One step whose pass and strength are chosen weight by weight.

    model: what the step is applied to. context: of the step, with all the calibration data. tuner: judges on the
    calibration part; None without data. reach: what the data show of each weight. course: where a goal of latency is
    timed; None: nowhere. last_moment: until when weights may be held to their noise where there was no time for more.
    held: weights of nodes that came out wrong before, which become no worse than HELD_ERROR. learned: what a search
    before this one left, and what this one leaves.
    skipped: what no candidate changed, notes: what a reader should know, accounts: what each weight could have become,
    once the choice is made.
    """

    step: Choose
    model: Model
    original: Model
    context: Context
    verifier: Verifier
    tuner: Verifier | None
    reach: Reach
    objective: Objective
    deadline: float
    last_moment: float = math.inf
    course: Course | None = None
    held: frozenset[str] = frozenset()
    learned: Learned = field(default_factory=Learned)
    tuning: Tuning = field(default_factory=Tuning)
    skipped: list[Skip] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    accounts: dict[str, WeightAccount] = field(default_factory=dict)
    held_back: dict[str, str] = field(default_factory=dict)  # weights that alone broke the budget: what became of them
    _held: dict[int, ValueTrials] = field(default_factory=dict)  # by judge
    refuted: Verdict | None = None  # the last of what was tried and broke the budget

    def _hold(self, judge: Verifier) -> ValueTrials:
        """What judges other values, kept for the whole step."""
        return self._held.setdefault(id(judge), judge.trials(self.model))

    def choose(self) -> Attempt | None:
        """The smallest of what verifies: the strongest that the budget tolerates, or what noise alone allows, as
        without data. What does not verify only where nothing does; None where nothing can change."""
        fit, tuner = self._parts_to_search()
        context = dataclasses.replace(self.context, calibration=fit)
        if tuner is not None:
            self._hold(tuner)
        if tuner is not None and self.learned.model is self.model:
            table, mild = self.learned.again(context, self.held, HELD_ERROR)
        else:
            table, mild = self._table(context, tuner)
        end_processes()  # trials have none
        return_freed()
        self.skipped = list(table.skipped)
        if not table.options:
            return None
        best, options = None, dict(table.options)
        is_searched = tuner is not None and not self._is_over()
        if tuner is not None and is_searched:
            spending = Spending(self, context, table, mild, tuner, self._goal(table))
            best = spending.strongest()
            if spending.chosen_from is not table:
                table = spending.chosen_from
                options = table.options
        if best is None or best.cost > table.total(mild):
            best = self._smaller(best, self._mild(context, table, mild))
        if is_searched:
            best = self._eased(context, table, best)
        self._say(table, best)
        LOG.info("%s: chosen at %s: %s", self.step.name, _costs(best), best.verdict.in_words())
        for name, option in best.assignment.items():
            LOG.debug("%s: %s: %s", self.step.name, name, _described(self.step, table, option))
        for name, fate in self.held_back.items():
            LOG.info("%s: %s: it alone broke the budget; %s", self.step.name, name, fate)
        assigned = best.assignment if best.verdict.passed else {}
        self.accounts = accounts(table, options, assigned, self.step.candidates)
        if self._is_over():
            self.notes.append(f"{self.step.name}: {CUT_SHORT if is_searched or tuner is None else NO_SEARCH}")
        return best

    def _after(self, share: float) -> float:
        """When that share of the time that is left will have passed."""
        now = clock()
        return self.deadline if math.isinf(self.deadline) else now + share * max(0.0, self.deadline - now)

    def _is_over(self) -> bool:
        return clock() > self.deadline

    def _mild(self, context: Context, table: Table, mild: Assignment) -> Attempt:
        """What noise alone allows; where one weight is in the way, without that."""
        trial = self.tried(context, table, mild)
        if trial.verdict.passed or self.tuner is None:
            return trial
        if self._is_over():
            return self._larger_half(context, table, mild, trial)
        alone, limit = functools.partial(self.divergence_alone, table), self.verifier.limit
        found = search.culprit(mild, alone, limit, self.tuning.carried)
        if found is None:
            return trial
        name, _ = found
        self.held_back[name] = "left as it was"
        return self.tried(context, table, mild | {name: table.options[name][0]})

    def _larger_half(self, context: Context, table: Table, mild: Assignment, trial: Attempt) -> Attempt:
        """What noise alone allows of the weights that save most, half of them or half of that, where the whole did not
        verify and there is no time to find out why."""
        names = sorted(mild, key=lambda name: table.cost(name, mild[name]) - table.cost(name, table.options[name][0]))
        for _ in range(HALVINGS):
            names = names[: len(names) // 2]
            if trial.verdict.passed or not names or clock() > self.last_moment:
                break
            rest = {name: mild[name] if name in names else options[0] for name, options in table.options.items()}
            trial = self.tried(context, table, rest)
        return trial

    def _smaller(self, best: Attempt | None, mild: Attempt) -> Attempt:
        if best is not None and (not mild.verdict.passed or best.cost <= mild.cost):
            return best
        return mild

    def _say(self, table: Table, best: Attempt) -> None:
        changed = {name for name, option in best.assignment.items() if option.choice is not None}
        kept = table.unreached & changed  # a weight without an option that saves enough is in no assignment
        for names, fate in ((kept, "kept at 8 bits"), (table.unreached - kept, "left as before")):
            if names:
                self.notes.append(unreached_note(names, fate))
        self.notes += [f"{name}: it alone broke the budget; {fate}" for name, fate in self.held_back.items()]
        if self.refuted is None or self.tuner is None or not best.verdict.passed:
            return
        spent = spent_share(best.verdict, self.verifier)
        if spent < MOST_LEFT:
            why = "; ".join(self.refuted.reasons)
            self.notes.append(
                f"{self.step.name}: {spent:.0%} of the budget is taken up; what saves more broke it: {why}"
            )

    def _table(self, context: Context, tuner: Verifier | None) -> tuple[Table, Assignment]:
        """What each weight can become, and what noise alone allows. All candidates are first told by samples of the
        weights and without data; where there are data to judge by, those in question for a weight are made with them.
        """
        passes, sites = self.step.candidates, self.step.site_passes
        if not passes and not sites:
            raise RecipeError('"auto" is for passes that have a strength.')
        objective = self.objective if sites else self.objective.in_bytes()
        options: dict[str, Any] = {"objective": objective, "tuning": self.tuning}
        until = self.deadline if tuner is None else self._after(TABULATED)
        with_data = Candidates(self.model, passes, context, until, self.last_moment)
        table = self._looked(with_data, tuner, options)
        if sites:
            add_sites(table, self.model, sites, context, first=2 * len(passes))
        self._hold_back(table)
        self._leave_small_change(table)
        mild = assign_by_noise(self.model, table)
        if not passes or not table.options or tuner is None or not _is_free_of_data(passes):
            return table, mild
        mild = as_made(table, mild, len(passes))
        if self._is_over():
            return table, mild
        self.learned.foresee(table)
        measure_influence(self.model, table, tuner, self.reach, mild, context, once=True, deadline=self.deadline)
        search.shortlist(table, tuner.search_limit, mild)
        until = self._after(FITTED)
        given = dataclasses.replace(context, deadline=until)
        dataclasses.replace(with_data, context=given, deadline=until).again(table, mild)
        leave_out_idle(table)
        self._hold_back(table)
        self._leave_small_change(table)
        mild = {name: mild[name] for name in table.options}
        if not self._is_over():
            self.learned.keep(self.model, table, mild)
        return table, mild

    def _looked(self, with_data: Candidates, tuner: Verifier | None, options: dict[str, Any]) -> Table:
        if not _is_free_of_data(with_data.passes):
            return with_data.make_all(most_error=HOPELESS_ERROR, **options)
        plain = with_data.without_data()
        if tuner is None:
            return plain.look(most_error=NOISE_ERROR, **options)
        table = plain.look(most_error=HOPELESS_ERROR, probe_error=self.tuning.probe_error, **options)
        foresee_compensation(table, compensation(table, with_data))
        return table

    def _hold_back(self, table: Table) -> None:
        """Few samples license little more than none; of nodes that came out wrong each weight is off by little."""
        if self.reach.few:
            hold_to_noise(self.model, table, table.options, FEW_FACTOR)
        for name in self.held & table.options.keys():
            table.options[name] = [each for each in table.options[name] if each.error <= HELD_ERROR]

    def _leave_small_change(self, table: Table) -> None:
        """A search takes minutes, for which nobody wants half a percent: a model may be nodes for the most part."""
        if not table.objective.is_of_bytes or self._goal(table) is not None:
            return
        saved = sum(own[0].size_bytes - min(each.size_bytes for each in own) for own in table.options.values())
        share = saved / max(1, self.model.size_bytes)
        if share < WORTH_SEARCHING:
            table.skipped += [Skip(name, HARDLY_WORTH.format(saved=saved, share=share)) for name in table.options]
            table.options = {}

    def _parts_to_search(self) -> tuple[CalibrationData | None, Verifier | None]:
        """What candidates are fitted to, and the judge of them.

        Candidates that draw on data look better on these than they are, each to another degree: the judge gets a
        part of the calibration samples that they have not seen. What follows the choice has all of them.
        """
        data = self.context.calibration
        passes = (*self.step.candidates, *self.step.site_passes)
        draws_on_data = any(each.draws_on_data(calibration=True) for each in passes)
        if self.tuner is None or data is None or not draws_on_data:
            return data, self.tuner
        fit, rest = fitting_part(data, self.context.seed)
        return fit, self.tuner.on(rest)

    def _goal(self, table: Table) -> float | None:
        """What the weights of the table may cost for the whole model to reach its size goal, where that is of bytes."""
        goal = self.objective.limit(Quantity.BYTES, self.original.size_bytes)
        if not table.objective.is_of_bytes or math.isinf(goal):
            return None
        rest = self.model.size_bytes - sum(options[0].size_bytes for options in table.options.values())
        return int(min(REACHED * goal, goal - TABLES_BYTES) - rest)

    def _eased(self, context: Context, table: Table, best: Attempt) -> Attempt:
        """The mildest trial that still reaches the goal of latency, where ``best`` does: found by bisection on the
        predicted divergence, each one verified and timed."""
        if not best.verdict.passed or not self._is_fast(best):
            return best
        low, high = 0.0, search.predicted_total(table, best.assignment)
        for _ in range(self.tuning.eased):
            middle = (low + high) / 2
            found = search.allot(table, middle)
            if found == best.assignment or clock() > self.deadline:
                break
            trial = self.tried(context, table, found)
            if trial.verdict.passed and self._is_fast(trial):
                best, high = trial, middle
            else:
                low = middle
        return best

    def _is_fast(self, trial: Attempt) -> bool:
        """Whether a trial reaches the goal of latency, where there is one that can be timed."""
        if trial.model is None or self.course is None or not self.objective.has_goal(Quantity.LATENCY):
            return False
        took = self.course.milliseconds({"original": self.original, "trial": trial.model})
        return took["trial"] <= REACHED * self.objective.limit(Quantity.LATENCY, took["original"])

    def divergence_alone(self, table: Table, assignment: Assignment) -> float:
        """How far an assignment, without what follows it, is from the original on the verification part."""
        return divergence_of(self._hold(self.verifier), table)(assignment)

    def tried(self, context: Context, table: Table, assignment: Assignment) -> Attempt:
        """An assignment, verified: each weight as its choice left it, all applied to the same model."""
        noted: list[Entry] = []
        applications: list[Application] = []
        model, written = rewritten(self.model, table, assignment)
        for each in written:
            noted.extend(entries(each.outcome))
            self._apply(applications, each.rewrite, each.context, each.choice)
            applications[-1].fitted &= each.context.calibration is not self.context.calibration
        candidates = self.step.candidates
        plain = dataclasses.replace(context, calibration=None)
        values = {option.choice for option in assignment.values() if option.choice is not None} - table.rewrites.keys()
        for choice in sorted(values):
            names = sorted(name for name, option in assignment.items() if option.choice == choice)
            noted.extend(table.fits[choice, name].entry for name in names)
            given = context if choice < len(candidates) else plain
            self._apply(applications, candidates[choice % len(candidates)], given, own_choice(names))
        model = with_values(model, table, assignment)
        context = dataclasses.replace(context, calibration=self.context.calibration)
        return_freed()
        for index, following in enumerate(self.step.then):
            ways = self.learned.ways
            if index not in ways:
                ways[index] = better_way(following, model, context, self.tuner)
            rewrite = ways[index]
            model, outcome = apply_pass(model, rewrite, context)
            noted.extend(entries(outcome))
            if outcome.changed:
                applications.append(application(rewrite, context, outcome))
        verdict = self.verifier.check(model)
        if not verdict.passed:
            self.refuted = verdict
        trial = Attempt(model, noted, applications, verdict, assignment, table.total(assignment))
        LOG.debug("%s: tried %d weights, %s: %s", self.step.name, len(noted), _costs(trial), verdict.in_words())
        return trial

    def _apply(self, done: list[Application], rewrite: Pass, context: Context, choice: Choice) -> None:
        """Note one more application of the same choice."""
        applied = application(rewrite, context, Outcome(), choice)
        applied.beside, applied.fitted = bool(done), applied.on_data
        done.append(applied)


def _costs(trial: Attempt) -> str:
    return f"a cost of {trial.cost:,.0f}"


def _described(step: Choose, table: Table, option: WeightOption) -> str:
    """What a weight becomes, and what that costs."""
    if option.choice is None:
        return f"left as it is, {option.size_bytes:,.0f} bytes"
    if option.choice in table.rewrites:
        return f"rewritten by choice {option.choice}, {option.size_bytes:,.0f} bytes"
    return f"{title([step.candidates[option.choice % len(step.candidates)]])}, {option.size_bytes:,.0f} bytes"


def _is_free_of_data(candidates: Sequence[Pass]) -> bool:
    """Whether candidates can be looked at without data."""
    return all(each.needed() is Needs.NOTHING for each in candidates)


def fitting_part(data: CalibrationData, seed: int) -> tuple[CalibrationData, CalibrationData]:
    """The calibration samples that candidates of a search are fitted to, and those that they are judged by."""
    return data.split(seed=seed, fraction=JUDGED_SHARE, minimum=LEAST_JUDGED)
