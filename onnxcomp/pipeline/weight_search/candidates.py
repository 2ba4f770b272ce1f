"""What every weight can become: each candidate applied to all weights, with bytes and errors.

Fitting a candidate to calibration data takes most of the time of a search, and few candidates are in question for any
one weight. So all are first made without data, and only those on the shortlist of a weight are made again with data.
"""

from __future__ import annotations

import math
import time
from collections.abc import Collection, Hashable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from onnxcomp.contract import Choice, Context, Fields, Outcome, Pass, Quantity, SitePass, Skip, own_choice, parameters
from onnxcomp.errors import RecipeError
from onnxcomp.graph.ir.nodes import Array, Constant
from onnxcomp.graph.ir.query import constants_by_key
from onnxcomp.graph.stored.opening import open_plain
from onnxcomp.graph.weights.roles import Weight, compose, weights
from onnxcomp.model import Model
from onnxcomp.numerics.encodings.storage_options import estimate_bytes
from onnxcomp.pipeline.apply import apply_choice, apply_pass, only_values, relative_errors, zero_shares
from onnxcomp.pipeline.objective import Objective
from onnxcomp.pipeline.weight_search.tuning import Tuning
from onnxcomp.receipt import Entry

HOPELESS_ERROR = 0.5  # relative squared error: no stronger candidate of the family is worth trying
NOISE_ERROR = 0.005  # the same without data, where a few thousandths are the most that 8-bit rounding leaves
LEAST_GAIN_BYTES = 150  # what an option must save by estimate, lest storing it save nothing
ANY_FAMILY = -1  # the key of a weight's influence where its family was not measured


@dataclass(frozen=True)
class WeightOption:
    """One weight by one of the candidates; ``choice`` is its position, None leaves the weight as it is.

    family: of candidates that differ in strength only: their divergence grows with the error alike. macs: of one run
    where the weight takes part; None: as many as it takes part in as it is.
    """

    choice: int | None
    size_bytes: int
    error: float
    family: int = 0
    macs: float | None = None


@dataclass(frozen=True)
class Rewrite:
    """A choice that changes the graph at its sites: a pass, the fields to set, and the context to write it in."""

    rewrite: SitePass
    fields: Fields
    context: Context


@dataclass
class Table:
    """What every weight can become: options by weight, the rewritten models by choice.

    unreached: weights that no sample reaches; they keep to what is safe without data. rewrites: of the choices that
    rewrite the graph, for which there is no such model: the passes at the choice's fields, in the order in which they
    are written. macs: of one run, by weight as it is, as far as known.
    """

    options: dict[str, list[WeightOption]]
    variants: dict[int, Model]
    entries: dict[tuple[int, str], Entry] = field(default_factory=dict)  # of (choice, weight): for the receipt
    skipped: list[Skip] = field(default_factory=list)  # left alone by every choice, with the last one's reason
    influence: dict[tuple[str, int], float] = field(default_factory=dict)  # of (weight, family): divergence per error
    measured: dict[tuple[str, int], float] = field(default_factory=dict)  # of (weight, choice) alone
    unreached: set[str] = field(default_factory=set)
    rewrites: dict[int, Rewrite] = field(default_factory=dict)
    macs: dict[str, float] = field(default_factory=dict)
    objective: Objective = field(default_factory=Objective)
    tuning: Tuning = field(default_factory=Tuning)
    _constants: dict[int, tuple[Model, dict[str, Constant]]] = field(default_factory=dict, repr=False)

    def values(self, choice: int, name: str) -> Array:
        """The values that a choice gives a weight."""
        variant = self.variants[choice]
        if choice not in self._constants or self._constants[choice][0] is not variant:
            self._constants[choice] = variant, constants_by_key(open_plain(variant))
        return self._constants[choice][1][name].values

    def cost(self, name: str, option: WeightOption) -> float:
        """What an option takes by the objective."""
        macs = self.macs.get(name, 0.0) if option.macs is None else option.macs
        return self.objective.cost({Quantity.BYTES: option.size_bytes, Quantity.MACS: macs})

    def total(self, assignment: Mapping[str, WeightOption]) -> float:
        """What the assigned weights take together by the objective."""
        return sum(self.cost(name, option) for name, option in assignment.items())

    def saves(self, name: str, option: WeightOption) -> bool:
        """Whether an option takes less than the weight as it is by so much that it counts."""
        plain = self.options[name][0]
        if not self.objective.is_of_bytes:
            return self.cost(name, option) < self.cost(name, plain)
        return option.size_bytes + LEAST_GAIN_BYTES < plain.size_bytes

    def predicted(self, name: str, option: WeightOption) -> float:
        """The divergence that this option alone causes, measured or by the weight's influence."""
        if option.choice is None or not option.error:
            return 0.0
        known = self.measured.get((name, option.choice))
        if known is not None:
            return known
        of_weight = self.influence[name, ANY_FAMILY]
        return self.influence.get((name, option.family), of_weight) * option.error


Assignment = dict[str, WeightOption]


def as_made(table: Table, assignment: Assignment, count: int) -> Assignment:
    """The assignment by choices of their own, beside the ``count`` candidates: they stay as they are made by now,
    whatever the candidates are fitted to later."""
    found = {}
    for name, option in assignment.items():
        if option.choice is not None and option.choice not in table.rewrites:
            own = replace(option, choice=option.choice + count, family=option.family + count)
            table.variants[option.choice + count] = table.variants[option.choice]
            table.entries[option.choice + count, name] = table.entries[option.choice, name]
            option = own
        found[name] = option
    return found


def tabulate(
    model: Model,
    candidates: Sequence[Pass],
    context: Context,
    *,
    most_error: float = HOPELESS_ERROR,
    deadline: float = math.inf,
    last_moment: float = math.inf,
    objective: Objective | None = None,
    tuning: Tuning | None = None,
) -> Table:
    """Apply each candidate to all weights and note bytes and errors. The first has time until ``last_moment``.

    Where a candidate leaves every weight with more than ``most_error``, or there are no weights to change, the stronger
    ones of its family are not tried. Raises RecipeError for one that is neither a value pass nor one of sites.
    """
    by_name = {each.name: each for each in weights(open_plain(model))}
    is_idle = not any(context.selects(name, *each.node_names) for name, each in by_name.items())
    table = Table({}, {}, objective=objective or Objective(), tuning=tuning or Tuning())
    families: dict[Hashable, int] = {}
    hopeless: set[int] = set()
    for index, rewrite in enumerate(candidates):
        family = families.setdefault(_family(rewrite), len(families))
        if family in hopeless or (table.variants and time.monotonic() > deadline):
            continue
        context.progress(index, len(candidates), f"{rewrite.pass_name()} at strength {index + 1}")
        given = context if table.variants else replace(context, deadline=last_moment)
        after, outcome = apply_pass(model, rewrite, given)
        if not only_values(model, after, [each.name for each in outcome.changed]):
            raise RecipeError(f'{rewrite.pass_name()}: "auto" is for passes that change values, or say their sites.')
        table.skipped.extend(outcome.skipped)
        found = _noted(table, index, family, model, after, outcome, by_name)
        for name, option in found.items():
            table.options.setdefault(name, []).append(option)
        if is_idle or (found and min(each.error for each in found.values()) > most_error):
            hopeless.add(family)
    return completed(table, {name: each.size_bytes for name, each in by_name.items()})


def fit_again(
    table: Table, model: Model, candidates: Sequence[Pass], context: Context, *, deadline: float = math.inf
) -> None:
    """Make the options of the table anew in another context, each for the weights that still have it.

    What cannot be made again is no option any more; after the deadline options stay as they were made before.
    Influences have to be measured again.
    """
    by_name = {each.name: each for each in weights(open_plain(model))}
    present = {each.choice for found in table.options.values() for each in found}
    choices = sorted(choice for choice in present if choice is not None and choice < len(candidates))
    done: set[int] = set()
    for at, index in enumerate(choices):
        if time.monotonic() > deadline:
            break
        rewrite = candidates[index]
        context.progress(at, len(choices), f"{rewrite.pass_name()} at strength {index + 1}")
        old = {name: each for name, found in table.options.items() for each in found if each.choice == index}
        after, outcome = apply_choice(model, rewrite, own_choice(old), context)
        if outcome.is_cut_short:
            break
        done.add(index)
        family = next(iter(old.values())).family
        made = _noted(table, index, family, model, after, outcome, by_name)
        for name, option in old.items():
            options = table.options[name]
            options[options.index(option)] = made.get(name, replace(option, error=math.inf))
    _keep_as_made(table, set(choices) - done, len(candidates))
    table.influence.clear()
    table.measured.clear()
    completed(table, {name: each.size_bytes for name, each in by_name.items()})


def _keep_as_made(table: Table, choices: Collection[int], count: int) -> None:
    """Give options that there was no time to make again choices of their own: a receipt tells them by these."""
    for name, found in table.options.items():
        table.options[name] = [
            as_made(table, {name: each}, count)[name] if each.choice in choices else each for each in found
        ]


def _noted(
    table: Table,
    index: int,
    family: int,
    model: Model,
    after: Model,
    outcome: Outcome,
    by_name: Mapping[str, Weight],
) -> dict[str, WeightOption]:
    """The options that an applied candidate gives, by weight; the table keeps the rewritten model and its entries."""
    names = [each.name for each in outcome.changed]
    errors, zeros = relative_errors(model, after, names), zero_shares(after, names)
    errors |= {each.name: each.details["error"] for each in outcome.changed if "error" in each.details}
    table.variants[index] = after
    for each in outcome.changed:
        table.entries[index, each.name] = Entry(each.name, each.what, dict(each.details))
    found = {}
    for name in names:
        weight = by_name[name]
        size = estimate_bytes(weight.shape, weight.dtype, after.encodings.get(name), zeros=zeros[name])
        found[name] = WeightOption(index, size, errors[name], family)
    return found


def completed(table: Table, size_bytes: Mapping[str, float]) -> Table:
    """With the option of leaving each weight as it is, without options that save next to nothing, and with only
    the weights skipped that no candidate changed. size_bytes: of each weight as it is."""
    names = set(table.options)
    for name, found in table.options.items():
        if found[0].choice is not None:
            found.insert(0, WeightOption(None, int(size_bytes[name]), 0.0))
        table.options[name] = [
            each for each in found if each.choice is None or (math.isfinite(each.error) and table.saves(name, each))
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


def build(model: Model, table: Table, assignment: Mapping[str, WeightOption]) -> Model:
    """The model with each weight at its assigned strength."""
    return with_values(rewritten(model, table, assignment)[0], table, assignment)


def with_values(model: Model, table: Table, assignment: Mapping[str, WeightOption]) -> Model:
    """The model with the chosen values alone."""
    chosen = {
        name: table.variants[option.choice]
        for name, option in assignment.items()
        if option.choice is not None and option.choice not in table.rewrites
    }
    return compose(model, chosen)


@dataclass(frozen=True)
class Written:
    """A pass that rewrote the graph, and where."""

    rewrite: SitePass
    context: Context
    choice: Choice
    outcome: Outcome


def rewritten(model: Model, table: Table, assignment: Mapping[str, WeightOption]) -> tuple[Model, list[Written]]:
    """The model with what changes the graph alone, pass after pass."""
    groups: dict[int, tuple[Rewrite, dict[str, Fields]]] = {}
    for name, option in sorted(assignment.items()):
        if option.choice in table.rewrites:
            made = table.rewrites[option.choice]
            groups.setdefault(option.family, (made, {}))[1][name] = made.fields
    done = []
    for _, (made, choice) in sorted(groups.items(), key=lambda group: group[0]):
        model, outcome = apply_choice(model, made.rewrite, choice, made.context)
        done.append(Written(made.rewrite, made.context, choice, outcome))
    return model, done
