"""Give each weight its own strength: the least cost whose divergence stays within the budget.

Every weight is changed alone once and the divergence from the original is measured (``sensitivity``). One measurement
predicts all strengths, and small contributions add up. The assignment minimizes

    sum of cost + price * sum of predicted divergence

for the price at which the prediction meets the limit; then the whole is measured and the limit corrected,
since errors interact. Uneven bits for uneven sensitivity: Dong et al., HAWQ-V2, https://arxiv.org/abs/1911.03852.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence

import numpy as np

from onnxcomp.clock import clock
from onnxcomp.contract import Context
from onnxcomp.numerics.search.rate_allocation import PricedOption, least_cost, least_harm
from onnxcomp.pipeline.weight_search.candidates import Assignment, Table, WeightOption
from onnxcomp.pipeline.weight_search.pruned_options import is_pruned, without_pruned
from onnxcomp.pipeline.weight_search.sensitivity import evaluations

Evaluate = Callable[[Assignment], float]
"""The divergence of a model with each weight at its assigned strength, infinite for one that fails."""


def shortlist(table: Table, limit: float, always: Assignment) -> None:
    """Leave each weight the options that assignments for limits around this one take, and those much like them.

    always: options that stay in any case, as do those that need no making. Made with data later, options cause a
    fraction of the divergence that is predicted now, some less than others; that of pruned ones is foreseen least, so
    that what would be taken without them is made, too. Of large models no limits far beyond this one count, and pruned
    options only where they promise to save for the limit that a search begins with.
    """
    tuning, plain = table.tuning, without_pruned(table)
    total = sum(options[0].size_bytes for options in table.options.values())
    shares = [each for each in tuning.shortlisted if each <= tuning.pruned_within or total <= tuning.large_bytes]
    dense, pruned = ([allot(each, share * limit) for share in shares] for each in (plain, table))
    if total > tuning.large_bytes and not _promises(table, plain, tuning.recovered * limit):
        pruned = dense
        for name, options in table.options.items():
            table.options[name] = [each for each in options if each in plain.options[name] or each == always[name]]
    few = [found for found, share in zip(pruned, shares, strict=True) if share <= tuning.pruned_within]
    heavy = tuning.heavy * total
    for name, options in table.options.items():
        is_large = options[0].size_bytes > tuning.pruned_bytes  # of which pruned options take long to make
        taken = [assignment[name] for assignment in dense]
        taken += [always[name]] if total <= tuning.large_bytes else []
        masked = [assignment[name] for assignment in (() if is_large else pruned)]
        alone = [assignment[name] for assignment in few]
        taken += rungs(table, name, taken) if table.objective.coded or options[0].size_bytes >= heavy else []
        table.options[name] = [
            each
            for each in options
            if each.choice is None
            or each.choice in table.rewrites
            or each == always[name]
            or any(_alike(table, each, one) for one in taken)
            or (is_pruned(table, each) and (each in alone or any(_alike(table, each, one) for one in masked)))
        ]


def _promises(table: Table, plain: Table, limit: float) -> bool:
    """Whether a table is predicted to save more than one without some options by more than the search is uncertain."""
    costs = [each.total(allot(each, limit)) for each in (table, plain)]
    return costs[0] <= table.tuning.promising * costs[1]


def rungs(table: Table, name: str, taken: Sequence[WeightOption]) -> list[WeightOption]:
    """Options of a weight between those that are taken: of each tuning.rung of bytes the one of least cost and error.

    Steps of a grid are many strengths next to each other, and limits far apart take few of a large weight.
    """
    sizes = [each.size_bytes for each in taken if each.choice is not None]
    if not sizes:
        return []
    found: list[WeightOption] = []
    for each in sorted(table.options[name], key=lambda one: (-one.size_bytes, one.error)):
        if each.choice is None or not min(sizes) < each.size_bytes < max(sizes):
            continue
        better = [one for one in table.options[name] if one.size_bytes <= each.size_bytes and one.error < each.error]
        near = [one.size_bytes for one in (*found, *taken) if one.choice is not None]
        if not better and all(abs(math.log(each.size_bytes / one)) >= math.log(table.tuning.rung) for one in near):
            found.append(each)
    return found


def _alike(table: Table, option: WeightOption, other: WeightOption) -> bool:
    size, error = table.tuning.alike
    return 1 / size <= option.size_bytes / other.size_bytes <= size and option.error <= error * other.error


def allot(table: Table, limit: float, factors: Mapping[tuple[str, int | None], float] | None = None) -> Assignment:
    """The assignment of least cost whose predicted divergence is at most ``limit``. factors: by weight and choice, of
    what is predicted, where it counts for more or less."""
    return _at(table, least_cost(_items(table, factors or {}), limit))


def allot_within(table: Table, cost: float) -> Assignment:
    """The assignment of least predicted divergence whose cost is at most ``cost``, where one is so low."""
    return _at(table, least_harm(_items(table, {}), cost))


def _items(table: Table, factors: Mapping[tuple[str, int | None], float]) -> list[list[PricedOption]]:
    return [
        [
            PricedOption(table.cost(name, each), factors.get((name, each.choice), 1.0) * table.predicted(name, each))
            for each in options
        ]
        for name, options in table.options.items()
    ]


def _at(table: Table, positions: Sequence[int]) -> Assignment:
    return {name: options[at] for (name, options), at in zip(table.options.items(), positions, strict=True)}


def assign(
    table: Table,
    evaluate: Evaluate,
    limit: float,
    context: Context,
    *,
    enough: float | None = None,
    deadline: float = math.inf,
    descend: bool = True,
) -> Assignment:
    """The assignment of least cost whose measured divergence is at most ``limit``.

    descend: try single changes on it by measurement, which finds what the prediction missed.
    enough: the cost of all together at which milder strengths are taken.
    """
    best: Assignment = {name: options[0] for name, options in table.options.items()}
    least = table.total(best)
    predicted_limit = limit
    for index in range(table.tuning.corrections):
        if clock() > deadline:
            break
        context.progress(index, table.tuning.corrections, "choosing strengths")
        found = allot(table, predicted_limit)
        measured = evaluate(found)
        if measured <= limit and table.total(found) < least:
            best, least = found, table.total(found)
        if 0.93 * limit <= measured <= limit:
            break
        ratio = limit * 0.97 / measured if measured > 0 and math.isfinite(measured) else (4.0 if measured <= 0 else 0.2)
        predicted_limit *= float(np.clip(ratio, 0.1, 4.0))
        if measured > limit:  # where options are few, the same assignment would come again
            predicted_limit = min(predicted_limit, 0.999 * predicted_total(table, found))
    if enough is not None and least < enough:
        return _just_enough(table, best, enough)
    if not descend:
        return best
    return _descended(table, best, evaluate, limit, context, deadline=deadline)


def _descended(
    table: Table,
    start: Assignment,
    evaluate: Evaluate,
    limit: float,
    context: Context,
    *,
    deadline: float,
) -> Assignment:
    """``start`` after single changes that lower the cost and, measured as a whole, stay within the limit.

    The changes that save most for the divergence they are expected to add are tried first.
    """
    best = dict(start)

    def price(move: tuple[str, WeightOption]) -> float:
        name, option = move
        added = table.predicted(name, option) - table.predicted(name, best[name])
        return added / (table.cost(name, best[name]) - table.cost(name, option))

    tried: set[tuple[str, int | None]] = set()
    count = min(table.tuning.descents, evaluations(table) // 12)
    for index in range(count):
        moves = [
            (name, option)
            for name, options in table.options.items()
            for option in options
            if table.cost(name, option) < table.cost(name, best[name]) and (name, option.choice) not in tried
        ]
        if not moves or clock() > deadline:
            break
        context.progress(index, count, "choosing strengths")
        name, option = min(moves, key=price)
        tried.add((name, option.choice))
        changed = best | {name: option}
        if evaluate(changed) <= limit:
            best = changed
    return best


def moves_tried(table: Table) -> int:
    """How many single changes to try on an assignment where each takes a whole trial."""
    return max(table.tuning.fewest_moves, evaluations(table) // 16)


def cheapest_move(
    table: Table, assignment: Assignment, room: float, refuted: Mapping[str, float]
) -> tuple[str, WeightOption] | None:
    """The weight and the option of lower cost that add least divergence for what they save, at most ``room``; changes
    that save little come after all others. None where there is no such change but to errors that are as large as one
    that failed for the weight (``refuted``)."""
    least = table.tuning.least_move * table.total(assignment)
    moves = []
    for name, options in table.options.items():
        now = assignment[name]
        for option in options:
            saved = table.cost(name, now) - table.cost(name, option)
            added = table.predicted(name, option) - table.predicted(name, now)
            if saved > 0 and added <= room and option.error < refuted.get(name, math.inf):
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
    if name is None or shares[name] < table.tuning.carrying_share * sum(shares.values()):
        return False
    refused = assignment[name].error
    table.options[name] = [each for each in table.options[name] if each.error < refused]
    return True


def culprit(
    assignment: Assignment, measure: Callable[[Assignment], float], limit: float, carried: float
) -> tuple[str, float] | None:
    """The weight that carries the failure of an assignment, and the divergence that goes with it: left as it was, it
    alone brings the rest within the limit. carried: of the divergence of all, the most that may be left then. Found by
    halving; None where there is no such weight."""
    whole = measure(assignment)
    most = min(limit, carried * whole)
    names = [name for name, option in assignment.items() if option.choice is not None]
    if whole <= limit:
        return None
    while len(names) > 1:
        halves = names[: len(names) // 2], names[len(names) // 2 :]
        names = next((half for half in halves if measure(_without(assignment, half)) <= most), [])
    rest = measure(_without(assignment, names)) if names else math.inf
    return (names[0], whole - rest) if rest <= most else None


def _without(assignment: Assignment, names: Collection[str]) -> Assignment:
    """With these weights as they were."""
    return {name: option for name, option in assignment.items() if name not in names}


def _just_enough(table: Table, strongest: Assignment, enough: float) -> Assignment:
    """The mildest assignment within the goal, no stronger than what was found to hold."""
    found = allot_within(table, enough)
    is_milder = predicted_total(table, found) <= predicted_total(table, strongest)
    return found if is_milder and table.total(found) <= enough else strongest
