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
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxcomp.calibration.sensitivity import PROBE_ERROR, PROBED_WEIGHTS, divergence_alone
from onnxcomp.calibration.sensitivity import Evaluate as Evaluate
from onnxcomp.contract import Context, Pass, Skip, parameters
from onnxcomp.errors import RecipeError
from onnxcomp.graph.surgery import open_graph
from onnxcomp.graph.weights import Weight, compose, weights
from onnxcomp.model import Model
from onnxcomp.numerics.allotment import Choice, fewest_bytes
from onnxcomp.numerics.storage import estimate_bytes
from onnxcomp.pipeline.rewrite import apply_pass, only_values, relative_errors, zero_shares
from onnxcomp.receipt import Entry

Array = NDArray[Any]

MOST_EVALUATIONS = 256  # single changes measured, at most
EVALUATED_VALUES = 5 * 10**8  # weight values that all measured models may have together
MEASURED_ERRORS = (1e-4, 0.3)  # relative squared errors outside are harmless or hopeless
HOPELESS_ERROR = 0.5  # relative squared error: no stronger candidate of the family is worth trying
NOISE_ERROR = 0.005  # the same without data, where a few thousandths are the most that 8-bit rounding leaves
LEAST_GAIN_BYTES = 150  # what an option must save by estimate, lest storing it save nothing
DOMINATING = 1.5  # an option of more bytes and this many times the error is never taken
CARRYING_SHARE = 0.3  # of the predicted divergence: a weight that has it is dealt with alone
ANY_FAMILY = -1  # the key of a weight's influence where its family was not measured
DESCENTS = 20  # single changes tried on a whole assignment, at most; one for each dozen of evaluations
CORRECTIONS = 6  # whole assignments measured on the way to the limit


@dataclass(frozen=True)
class Option:
    """One weight by one of the candidates; ``choice`` is its position, None leaves the weight as it is."""

    choice: int | None
    size_bytes: int
    error: float
    family: int = 0  # of candidates that differ in strength only: their divergence grows with the error alike


@dataclass
class Table:
    """What every weight can become: options by weight, the rewritten models by choice."""

    options: dict[str, list[Option]]
    variants: dict[int, Model]
    entries: dict[tuple[int, str], Entry] = field(default_factory=dict)  # of (choice, weight): for the receipt
    skipped: list[Skip] = field(default_factory=list)  # left alone by every choice, with the last one's reason
    influence: dict[tuple[str, int], float] = field(default_factory=dict)  # of (weight, family): divergence per error
    measured: dict[tuple[str, int], float] = field(default_factory=dict)  # of (weight, choice) alone

    def predicted(self, name: str, option: Option) -> float:
        """The divergence that this option alone causes, measured or by the weight's influence."""
        if option.choice is None or not option.error:
            return 0.0
        known = self.measured.get((name, option.choice))
        if known is not None:
            return known
        of_weight = self.influence[name, ANY_FAMILY]
        return self.influence.get((name, option.family), of_weight) * option.error


Assignment = dict[str, Option]


def tabulate(
    model: Model,
    candidates: Sequence[Pass],
    context: Context,
    *,
    most_error: float = HOPELESS_ERROR,
    deadline: float = math.inf,
) -> Table:
    """Apply each candidate to all weights and note bytes and errors.

    Where a candidate leaves every weight with more than ``most_error``, the stronger ones of its family are not
    tried. Raises RecipeError where there is no candidate, or one that is not a value pass.
    """
    if not candidates:
        raise RecipeError('"auto" is for passes that have a strength.')
    by_name = {each.name: each for each in weights(open_graph(model))}
    table = Table({}, {})
    families: dict[Hashable, int] = {}
    hopeless: set[int] = set()
    for index, rewrite in enumerate(candidates):
        family = families.setdefault(_family(rewrite), len(families))
        if family in hopeless or (table.variants and time.monotonic() > deadline):
            continue
        context.progress(index, len(candidates), f"{rewrite.pass_name()} at strength {index + 1}")
        after, outcome = apply_pass(model, rewrite, context)
        names = [each.name for each in outcome.changed]
        if not only_values(model, after, names):
            raise RecipeError(f'{rewrite.pass_name()}: "auto" is for passes that change values only.')
        table.variants[index] = after
        table.skipped.extend(outcome.skipped)
        errors, zeros = relative_errors(model, after, names), zero_shares(after, names)
        errors |= {each.name: each.details["error"] for each in outcome.changed if "error" in each.details}
        for each in outcome.changed:
            table.entries[index, each.name] = Entry(each.name, each.what, dict(each.details))
        for name in names:
            weight = by_name[name]
            size = estimate_bytes(weight.shape, weight.dtype, after.encodings.get(name), zeros=zeros[name])
            table.options.setdefault(name, []).append(Option(index, size, errors[name], family))
        if names and min(errors.values()) > most_error:
            hopeless.add(family)
    return _completed(table, by_name)


def _completed(table: Table, by_name: Mapping[str, Weight]) -> Table:
    """With the option of leaving each weight as it is, without options that save next to nothing, and with only
    the weights skipped that no candidate changed."""
    names = set(table.options)
    for name, found in table.options.items():
        found.insert(0, Option(None, by_name[name].size_bytes, 0.0))
        plain = found[0].size_bytes
        table.options[name] = [
            each
            for each in found
            if each.choice is None or (math.isfinite(each.error) and each.size_bytes + LEAST_GAIN_BYTES < plain)
        ]
    table.options = {name: found for name, found in table.options.items() if len(found) > 1}
    for name in names - table.options.keys():
        table.skipped.append(Skip(name, "no strength saves enough bytes"))
    left = {each.name: each for each in table.skipped if each.name not in table.options}
    table.skipped = list(left.values())
    return table


def _family(rewrite: Pass) -> Hashable:
    """What a candidate is, but for its strength."""
    strength = rewrite.strength()
    fields = [each.name for each in parameters(type(rewrite)) if strength is None or each.name != strength.name]
    return (rewrite.pass_name(), *(getattr(rewrite, name) for name in fields))


def build(model: Model, table: Table, assignment: Mapping[str, Option]) -> Model:
    """The model with each weight at its assigned strength."""
    chosen = {name: table.variants[option.choice] for name, option in assignment.items() if option.choice is not None}
    return compose(model, chosen)


# --- with data -----------------------------------------------------------------------------------------


def measure_influence(
    model: Model, table: Table, evaluate: Evaluate, context: Context, *, deadline: float = math.inf
) -> None:
    """Change each weight alone and measure, so that ``table.predicted`` can tell every option's divergence.

    Each weight is measured once, and the largest ones option by option as far as ``_evaluations`` allows.
    What is not measured, the smallest weights and all that comes after the deadline, stays mild.
    """
    base = evaluate(model)
    ranked = sorted(table.options, key=lambda name: -table.options[name][0].size_bytes)
    for index, name in enumerate(ranked):
        context.progress(index, len(ranked), f"measuring {name}")
        table.options[name] = _undominated(table.options[name])
        changed = [each for each in table.options[name] if each.error > 0]
        if index >= PROBED_WEIGHTS or time.monotonic() > deadline:
            table.options[name] = _mildest(table.options[name])
            changed = []
        if not changed:
            table.influence[name, ANY_FAMILY] = 0.0
            continue
        option = _nearest(changed)
        table.influence[name, ANY_FAMILY] = _measure(model, table, name, option, evaluate, base) / option.error
    planned = _further(table, ranked)
    for index, (name, option) in enumerate(planned):
        context.progress(index, len(planned), f"measuring {name}")
        if time.monotonic() > deadline:
            return
        found = _measure(model, table, name, option, evaluate, base)
        table.influence.setdefault((name, option.family), found / option.error)


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


def _measure(model: Model, table: Table, name: str, option: Option, evaluate: Evaluate, base: float) -> float:
    assert option.choice is not None
    found = divergence_alone(model, name, table.variants[option.choice], evaluate, base)
    table.measured[name, option.choice] = found
    return found


def _mildest(options: Sequence[Option]) -> list[Option]:
    """The options of leaving the weight and of its smallest error."""
    changed = [each for each in options if each.choice is not None]
    left = [each for each in options if each.choice is None]
    return [*left, min(changed, key=lambda each: each.error)] if changed else left


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


def total_bytes(assignment: Assignment) -> int:
    """Estimated bytes of all assigned weights."""
    return sum(option.size_bytes for option in assignment.values())
