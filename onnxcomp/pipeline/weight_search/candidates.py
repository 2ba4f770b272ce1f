"""What every weight can become: each candidate applied to all weights, with bytes and errors.

Fitting a candidate to calibration data takes most of the time of a search, and few candidates are in question for any
one weight. So all are first made without data, and only those on the shortlist of a weight are made again with data.
"""

from __future__ import annotations

import math
import time
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from onnxcomp.contract import Context, Outcome, Pass, Skip, parameters
from onnxcomp.errors import RecipeError
from onnxcomp.graph.ir.nodes import Array, Constant
from onnxcomp.graph.storage.stored import open_plain
from onnxcomp.graph.weights.roles import Weight, compose, constants_by_key, weights
from onnxcomp.model import Model
from onnxcomp.numerics.encodings.storage_options import estimate_bytes
from onnxcomp.pipeline.apply import apply_pass, limited_to, only_values, relative_errors, zero_shares
from onnxcomp.receipt import Entry

HOPELESS_ERROR = 0.5  # relative squared error: no stronger candidate of the family is worth trying
NOISE_ERROR = 0.005  # the same without data, where a few thousandths are the most that 8-bit rounding leaves
LEAST_GAIN_BYTES = 150  # what an option must save by estimate, lest storing it save nothing
ANY_FAMILY = -1  # the key of a weight's influence where its family was not measured


@dataclass(frozen=True)
class Option:
    """One weight by one of the candidates; ``choice`` is its position, None leaves the weight as it is."""

    choice: int | None
    size_bytes: int
    error: float
    family: int = 0  # of candidates that differ in strength only: their divergence grows with the error alike


@dataclass
class Table:
    """What every weight can become: options by weight, the rewritten models by choice.

    unreached: weights that no sample reaches; they keep to what is safe without data.
    """

    options: dict[str, list[Option]]
    variants: dict[int, Model]
    entries: dict[tuple[int, str], Entry] = field(default_factory=dict)  # of (choice, weight): for the receipt
    skipped: list[Skip] = field(default_factory=list)  # left alone by every choice, with the last one's reason
    influence: dict[tuple[str, int], float] = field(default_factory=dict)  # of (weight, family): divergence per error
    measured: dict[tuple[str, int], float] = field(default_factory=dict)  # of (weight, choice) alone
    unreached: set[str] = field(default_factory=set)
    _constants: dict[int, tuple[Model, dict[str, Constant]]] = field(default_factory=dict, repr=False)

    def values(self, choice: int, name: str) -> Array:
        """The values that a choice gives a weight."""
        variant = self.variants[choice]
        if choice not in self._constants or self._constants[choice][0] is not variant:
            self._constants[choice] = variant, constants_by_key(open_plain(variant))
        return self._constants[choice][1][name].values

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


def as_made(table: Table, assignment: Assignment, count: int) -> Assignment:
    """The assignment by choices of their own, beside the ``count`` candidates: they stay as they are made by now,
    whatever the candidates are fitted to later."""
    found = {}
    for name, option in assignment.items():
        if option.choice is not None:
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
) -> Table:
    """Apply each candidate to all weights and note bytes and errors.

    Where a candidate leaves every weight with more than ``most_error``, the stronger ones of its family are not
    tried. Raises RecipeError where there is no candidate, or one that is not a value pass.
    """
    if not candidates:
        raise RecipeError('"auto" is for passes that have a strength.')
    by_name = {each.name: each for each in weights(open_plain(model))}
    table = Table({}, {})
    families: dict[Hashable, int] = {}
    hopeless: set[int] = set()
    for index, rewrite in enumerate(candidates):
        family = families.setdefault(_family(rewrite), len(families))
        if family in hopeless or (table.variants and time.monotonic() > deadline):
            continue
        context.progress(index, len(candidates), f"{rewrite.pass_name()} at strength {index + 1}")
        after, outcome = apply_pass(model, rewrite, context)
        if not only_values(model, after, [each.name for each in outcome.changed]):
            raise RecipeError(f'{rewrite.pass_name()}: "auto" is for passes that change values only.')
        table.skipped.extend(outcome.skipped)
        found = _noted(table, index, family, model, after, outcome, by_name)
        for name, option in found.items():
            table.options.setdefault(name, []).append(option)
        if found and min(each.error for each in found.values()) > most_error:
            hopeless.add(family)
    return _completed(table, by_name)


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
    for at, index in enumerate(choices):
        if time.monotonic() > deadline:
            break
        rewrite = candidates[index]
        context.progress(at, len(choices), f"{rewrite.pass_name()} at strength {index + 1}")
        old = {name: each for name, found in table.options.items() for each in found if each.choice == index}
        after, outcome = apply_pass(model, rewrite, limited_to(context, old))
        family = next(iter(old.values())).family
        made = _noted(table, index, family, model, after, outcome, by_name)
        for name, option in old.items():
            options = table.options[name]
            options[options.index(option)] = made.get(name, replace(option, error=math.inf))
    table.influence.clear()
    table.measured.clear()
    _completed(table, by_name)


def _noted(
    table: Table,
    index: int,
    family: int,
    model: Model,
    after: Model,
    outcome: Outcome,
    by_name: Mapping[str, Weight],
) -> dict[str, Option]:
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
        found[name] = Option(index, size, errors[name], family)
    return found


def _completed(table: Table, by_name: Mapping[str, Weight]) -> Table:
    """With the option of leaving each weight as it is, without options that save next to nothing, and with only
    the weights skipped that no candidate changed."""
    names = set(table.options)
    for name, found in table.options.items():
        if found[0].choice is not None:
            found.insert(0, Option(None, by_name[name].stored_bytes, 0.0))
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


def total_bytes(assignment: Assignment) -> int:
    """Estimated bytes of all assigned weights."""
    return sum(option.size_bytes for option in assignment.values())
