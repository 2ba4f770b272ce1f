"""Give each weight its own strength: the fewest bytes whose divergence stays within the budget.

Every weight is changed alone once and the divergence from the original is measured. Near the
original the divergence grows with the squared error of the weight, so one measurement predicts all
strengths, and small contributions add up. The assignment minimizes

    sum of bytes + price * sum of predicted divergence

for the price at which the prediction meets the limit; then the whole is measured and the limit corrected,
since errors interact. Uneven bits for uneven sensitivity: Dong et al., HAWQ-V2, https://arxiv.org/abs/1911.03852.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field

import numpy as np

from onnxcomp.calibration.sensitivity import PROBE_ERROR, PROBED_WEIGHTS, added_divergence
from onnxcomp.calibration.sensitivity import Evaluate as Evaluate
from onnxcomp.contract import Context
from onnxcomp.graph.weights.roles import compose
from onnxcomp.model import Model
from onnxcomp.numerics.search.rate_allocation import Choice, fewest_bytes
from onnxcomp.pipeline.safety.reach import Reach, affected_share, largest_move
from onnxcomp.pipeline.weight_search.candidates import ANY_FAMILY, Assignment, Option, Table, build, total_bytes
from onnxcomp.verify import Verdict, Verifier

MOST_EVALUATIONS = 256  # single changes measured, at most
EVALUATED_VALUES = 5 * 10**8  # weight values that all measured models may have together
MEASURED_ERRORS = (1e-4, 0.3)  # relative squared errors outside are harmless or hopeless
DOMINATING = 1.5  # an option of more bytes and this many times the error is never taken
FEW_AFFECTED = 1 / 3  # of the samples that see a change of all weights: fewer bear their own part of the limit
CARRYING_SHARE = 0.3  # of the predicted divergence: a weight that has it is dealt with alone
CARRIED = 0.5  # of a divergence, at most, is left without the weight that carries it
DESCENTS = 20  # single changes tried on a whole assignment, at most; one for each dozen of evaluations
FEWEST_MOVES = 3  # tried on an assignment with all that follows; one for each 16 evaluations
SHORTLISTED = tuple(2.0**power for power in range(-1, 6))  # limits, relative to the one that is asked for
ALIKE = 1.08, 2.0  # bytes and errors of options that may change places when they are fitted to data
LEAST_MOVE = 0.01  # of all bytes: what a change should save for its price alone to count
CORRECTIONS = 6  # whole assignments measured on the way to the limit


def measure_influence(
    model: Model,
    table: Table,
    tuner: Verifier,
    reach: Reach,
    mild: Assignment,
    context: Context,
    *,
    deadline: float = math.inf,
    once: bool = False,
    bearable: float = math.inf,
) -> None:
    """Change each weight alone and measure, so that ``table.predicted`` can tell every option's divergence.

    Each weight is measured once, and, but with ``once``, the largest ones option by option as far as ``_evaluations``
    allows. What is not measured, the smallest weights and all that comes after the deadline, and what no sample
    reaches, stays as it is or becomes what it is in ``mild``. bearable: the divergence that samples which see a weight
    may have of it.
    """
    probe = Probe(model, table, tuner)
    ranked = sorted(table.options, key=lambda name: -table.options[name][0].size_bytes)
    for index, name in enumerate(ranked):
        context.progress(index, len(ranked), f"measuring {name}")
        table.options[name] = _undominated(table.options[name])
        if index >= PROBED_WEIGHTS or time.monotonic() > deadline:
            hold_to(table, name, mild)
        changed = [each for each in table.options[name] if each.error > 0]
        if not changed or index >= PROBED_WEIGHTS or time.monotonic() > deadline:
            table.influence[name, ANY_FAMILY] = 0.0
            continue
        option = _nearest(changed)
        found = probe.divergence(name, option)
        if not reach.counts(probe.moved[name]):
            probe.hard[name] = reach.influence(model, name)
            found = probe.divergence(name, option)
            if not probe.hard[name]:
                table.unreached.add(name)
                hold_to(table, name, mild)
        table.influence[name, ANY_FAMILY] = found / option.error
    planned = [] if once else _further(table, ranked)
    for index, (name, option) in enumerate(planned):
        context.progress(index, len(planned), f"measuring {name}")
        if time.monotonic() > deadline:
            break
        table.influence.setdefault((name, option.family), probe.divergence(name, option) / option.error)
    if not once:
        _hold_affected(table, probe, bearable)


def hold_to(table: Table, name: str, mild: Assignment) -> None:
    """Leave a weight no options but that of leaving it and that of ``mild``."""
    plain = table.options[name][0]
    table.options[name] = [plain] if mild[name].choice is None else [plain, mild[name]]


def _hold_affected(table: Table, probe: Probe, bearable: float) -> None:
    """Forbid what is bearable on the average only since few of the samples see the weight: those that do must bear it,
    too. Few are told by how many see a like change of all weights: where few are unsure, few see anything."""
    if not probe.shares:
        return
    usual = affected_share(probe.tuner.check(build(probe.model, table, probe.first)))
    for name, share in probe.shares.items():
        of_usual = 1.0 if usual is None else min(1.0, share / usual)
        if of_usual < FEW_AFFECTED:
            table.options[name] = [
                each for each in table.options[name] if table.predicted(name, each) <= of_usual * bearable
            ]


@dataclass
class Probe:
    """Measures single changes.

    hard: divergence for each unit of error by the hardest change, of weights that a small one does not show; none of
    their options counts for less. first: measured of each weight; moved: by how much that moved
    any one output; shares: of the samples that it concerned.
    """

    model: Model
    table: Table
    tuner: Verifier
    hard: dict[str, float] = field(default_factory=dict)
    first: Assignment = field(default_factory=dict)
    shares: dict[str, float] = field(default_factory=dict)
    moved: dict[str, float] = field(default_factory=dict)
    base: Verdict = field(init=False)

    def __post_init__(self) -> None:
        self.base = self.tuner.check(self.model)

    def divergence(self, name: str, option: Option) -> float:
        """What the option alone adds; the table remembers it."""
        assert option.choice is not None
        known = self.table.measured.get((name, option.choice))
        if known is None:
            verdict = self.tuner.check(compose(self.model, {name: self.table.variants[option.choice]}))
            share = affected_share(verdict)
            if name not in self.first and share is not None:
                self.shares[name] = share
            self.first.setdefault(name, option)
            self.moved.setdefault(name, largest_move(self.base, verdict))
            known = added_divergence(verdict.energy, self.base.energy)
        found = max(known, self.hard.get(name, 0.0) * option.error)
        self.table.measured[name, option.choice] = found
        return found


def _further(table: Table, ranked: Sequence[str]) -> list[tuple[str, Option]]:
    """What else to measure alone, as far as ``_evaluations`` allows: one option of each family for every weight,
    the largest first, then the rest."""
    worth = {name: [each for each in table.options[name] if _worth_measuring(table, name, each)] for name in ranked}
    first: list[tuple[str, Option]] = []
    for name in ranked:
        families = sorted({each.family for each in worth[name]})
        first.extend((name, _nearest([each for each in worth[name] if each.family == one])) for one in families)
    seen = {(name, option.choice) for name, option in first}
    rest = [(name, each) for name in ranked for each in worth[name] if (name, each.choice) not in seen]
    return [*first, *rest][: max(0, _evaluations(table) - len(table.measured))]


def _evaluations(table: Table) -> int:
    """How many single changes to measure: fewer, the larger and so the slower the model."""
    values = sum(options[0].size_bytes for options in table.options.values()) // 4
    return int(min(MOST_EVALUATIONS, EVALUATED_VALUES // max(1, values)))


def _worth_measuring(table: Table, name: str, option: Option) -> bool:
    known = option.choice is None or (name, option.choice) in table.measured
    return not known and MEASURED_ERRORS[0] <= option.error <= MEASURED_ERRORS[1]


def _nearest(options: Sequence[Option]) -> Option:
    """The option whose error is nearest to ``PROBE_ERROR``, on a logarithmic scale."""
    return min(options, key=lambda each: abs(math.log(each.error / PROBE_ERROR)))


def _undominated(options: Sequence[Option]) -> list[Option]:
    """The options without those that take more bytes than another one and leave much more error."""

    def beaten(option: Option) -> bool:
        return any(each.size_bytes <= option.size_bytes and each.error * DOMINATING < option.error for each in options)

    return [each for each in options if each.choice is None or not beaten(each)]


def shortlist(table: Table, limit: float, always: Assignment) -> None:
    """Leave each weight the options that assignments for limits around this one take, and those much like them.

    always: options that stay in any case. Fitted to data later, options cause a fraction of the divergence that is
    predicted now, some less than others.
    """
    chosen = [always, *(allot(table, share * limit) for share in SHORTLISTED)]
    for name, options in table.options.items():
        taken = [assignment[name] for assignment in chosen]
        table.options[name] = [
            each for each in options if each.choice is None or any(_alike(each, one) for one in taken)
        ]


def _alike(option: Option, other: Option) -> bool:
    size, error = ALIKE
    return 1 / size <= option.size_bytes / other.size_bytes <= size and option.error <= error * other.error


def allot(table: Table, limit: float) -> Assignment:
    """The assignment of fewest bytes whose predicted divergence is at most ``limit``."""
    items = [
        [Choice(option.size_bytes, table.predicted(name, option)) for option in options]
        for name, options in table.options.items()
    ]
    found = fewest_bytes(items, limit)
    return {name: options[at] for (name, options), at in zip(table.options.items(), found, strict=True)}


def assign(
    model: Model,
    table: Table,
    evaluate: Evaluate,
    limit: float,
    context: Context,
    *,
    goal_bytes: int | None = None,
    deadline: float = math.inf,
    descend: bool = True,
) -> Assignment:
    """The assignment of fewest bytes whose measured divergence is at most ``limit``.

    descend: try single changes on it by measurement, which finds what the prediction missed.
    goal_bytes: enough is enough: of the weights together; milder strengths are taken once it is reached.
    """
    best: Assignment = {name: options[0] for name, options in table.options.items()}
    best_bytes = total_bytes(best)
    predicted_limit = limit
    for index in range(CORRECTIONS):
        if time.monotonic() > deadline:
            break
        context.progress(index, CORRECTIONS, "choosing strengths")
        found = allot(table, predicted_limit)
        measured = evaluate(build(model, table, found))
        if measured <= limit and total_bytes(found) < best_bytes:
            best, best_bytes = found, total_bytes(found)
        if 0.93 * limit <= measured <= limit:
            break
        ratio = limit * 0.97 / measured if measured > 0 and math.isfinite(measured) else (4.0 if measured <= 0 else 0.2)
        predicted_limit *= float(np.clip(ratio, 0.1, 4.0))
        if measured > limit:  # where options are few, the same assignment would come again
            predicted_limit = min(predicted_limit, 0.999 * predicted_total(table, found))
    if goal_bytes is not None and best_bytes < goal_bytes:
        return _just_enough(table, best, goal_bytes)
    if not descend:
        return best
    return _descended(model, table, best, evaluate, limit, context, deadline=deadline)


def _descended(
    model: Model,
    table: Table,
    start: Assignment,
    evaluate: Evaluate,
    limit: float,
    context: Context,
    *,
    deadline: float,
) -> Assignment:
    """``start`` after single changes that save bytes and, measured as a whole, stay within the limit.

    The changes that save most for the divergence they are expected to add are tried first.
    """
    best = dict(start)

    def price(move: tuple[str, Option]) -> float:
        name, option = move
        added = table.predicted(name, option) - table.predicted(name, best[name])
        return added / (best[name].size_bytes - option.size_bytes)

    tried: set[tuple[str, int | None]] = set()
    count = min(DESCENTS, _evaluations(table) // 12)
    for index in range(count):
        moves = [
            (name, option)
            for name, options in table.options.items()
            for option in options
            if option.size_bytes < best[name].size_bytes and (name, option.choice) not in tried
        ]
        if not moves or time.monotonic() > deadline:
            break
        context.progress(index, count, "choosing strengths")
        name, option = min(moves, key=price)
        tried.add((name, option.choice))
        changed = best | {name: option}
        if evaluate(build(model, table, changed)) <= limit:
            best = changed
    return best


def moves_tried(table: Table) -> int:
    """How many single changes to try on an assignment where each takes a whole trial."""
    return max(FEWEST_MOVES, _evaluations(table) // 16)


def cheapest_move(
    table: Table, assignment: Assignment, room: float, refuted: Collection[tuple[str, int | None]]
) -> tuple[str, Option] | None:
    """The weight and the option of fewer bytes that add least divergence for a byte, at most ``room``; changes that
    save little come after all others. None where there is no such change but those in ``refuted``."""
    least = LEAST_MOVE * total_bytes(assignment)
    moves = []
    for name, options in table.options.items():
        now = assignment[name]
        for option in options:
            saved = now.size_bytes - option.size_bytes
            added = table.predicted(name, option) - table.predicted(name, now)
            if saved > 0 and added <= room and (name, option.choice) not in refuted:
                moves.append((saved < least, added / saved, name, option))
    best = min(moves, key=lambda each: each[:2], default=None)
    return None if best is None else best[2:]


def predicted_total(table: Table, assignment: Assignment) -> float:
    """The sum of what each weight's option alone should cause."""
    return sum(table.predicted(name, option) for name, option in assignment.items())


def retreat(table: Table, assignment: Assignment) -> bool:
    """After a result that did not verify: where one weight carries most of the predicted divergence, forbid its
    option and all that leave more error, since its measurement was too kind. False where no weight stands out."""
    shares = {name: table.predicted(name, option) for name, option in assignment.items()}
    name = max(shares, key=lambda each: shares[each], default=None)
    if name is None or shares[name] < CARRYING_SHARE * sum(shares.values()):
        return False
    refused = assignment[name].error
    table.options[name] = [each for each in table.options[name] if each.error < refused]
    return True


def culprit(assignment: Assignment, energy: Callable[[Assignment], float], limit: float) -> tuple[str, float] | None:
    """The weight that carries the failure of an assignment, and the divergence that goes with it: left as it was, it
    alone brings the rest within the limit. Found by halving; None where there is no such weight."""
    whole = energy(assignment)
    most = min(limit, CARRIED * whole)
    names = [name for name, option in assignment.items() if option.choice is not None]
    if whole <= limit:
        return None
    while len(names) > 1:
        halves = names[: len(names) // 2], names[len(names) // 2 :]
        names = next((half for half in halves if energy(_without(assignment, half)) <= most), [])
    rest = energy(_without(assignment, names)) if names else math.inf
    return (names[0], whole - rest) if rest <= most else None


def _without(assignment: Assignment, names: Collection[str]) -> Assignment:
    """With these weights as they were."""
    return {name: option for name, option in assignment.items() if name not in names}


def _just_enough(table: Table, strongest: Assignment, goal_bytes: int) -> Assignment:
    """The mildest assignment within the goal, no stronger than what was found to hold."""
    limit = sum(table.predicted(name, option) for name, option in strongest.items())
    best = strongest
    for _ in range(40):
        limit *= 0.8
        found = allot(table, limit)
        if total_bytes(found) > goal_bytes:
            break
        best = found
    return best
