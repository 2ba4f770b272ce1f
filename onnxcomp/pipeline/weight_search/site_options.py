"""What the sites of passes that rewrite the graph can become, beside what values can: options of one table.

A site that has the name of a weight is that weight: it is rewritten or gets other values, not both.

An error of a rewritten weight does other harm than rounding does: a direction of its inputs that is left out may matter
little or much, and is told by few samples. So options that stand ``beside`` values are those of large weights that take
fewer bytes at an error not much larger, each is measured, and which is taken is ``settled`` before all else is chosen.
"""

from __future__ import annotations

import dataclasses
import functools
import logging
import math
from collections.abc import Callable, Iterator, Mapping, Sequence

from onnxcomp.contract import Context, Fields, Quantity, Site, SitePass
from onnxcomp.errors import RecipeError
from onnxcomp.model import Model
from onnxcomp.pipeline.apply import survey
from onnxcomp.pipeline.weight_search.allocation import allot
from onnxcomp.pipeline.weight_search.candidates import Assignment, Rewrite, Table, WeightOption, completed
from onnxcomp.pipeline.weight_search.sensitivity import Probe, evaluations
from onnxcomp.verify import Verifier

LOG = logging.getLogger(__name__)

LARGE_SHARE = 0.02  # of the cost foreseen, that a weight must have to be rewritten
FEWER_BYTES = 0.85  # of what is foreseen for a weight, that an option takes at most
FEWER_CODED = 1.0  # the same of coded bytes, of which more than foreseen are needed in the end
MORE_ERROR = 8.0  # times that of what is foreseen, that is worth a look
STEP = 1.25  # of errors from one option that is measured to the next
LEAST_ERROR = 1e-12
MOST_RUNGS = 12  # of one weight


def add_sites(table: Table, model: Model, passes: Sequence[SitePass], context: Context, *, first: int) -> None:
    """Add the options of these passes' sites in the model to the table.

    first: a number from which on choices and families are free. Raises RecipeError where sites do not say what their
    options take and how far these are from the original.
    """
    whole = dataclasses.replace(context, deadline=math.inf)  # a rewrite that is cut short would be another choice
    size_bytes = {name: float(found[0].size_bytes) for name, found in table.options.items()}
    choices: dict[object, int] = {}
    for index, rewrite in enumerate(passes):
        found = survey(model, rewrite, context)
        table.skipped.extend(found.skipped)
        for site in found.sites:
            _refuse_unknown(rewrite, site)
            size_bytes[site.name] = site.costs[Quantity.BYTES]
            table.macs[site.name] = site.costs.get(Quantity.MACS, 0.0)
            for each in site.options:
                choice = choices.setdefault((index, _key(each.fields)), first + len(choices))
                table.rewrites[choice] = Rewrite(rewrite, each.fields, whole)
                size, macs = int(each.costs[Quantity.BYTES]), each.costs.get(Quantity.MACS)
                option = WeightOption(choice, size, each.error or 0.0, first + index, macs)
                table.options.setdefault(site.name, []).append(option)
    completed(table, size_bytes)


def _key(fields: Fields) -> tuple[tuple[str, object], ...]:
    return tuple(sorted(fields.items()))


def _refuse_unknown(rewrite: SitePass, site: Site) -> None:
    known = all(each.error is not None and Quantity.BYTES in each.costs for each in site.options)
    if not known or Quantity.BYTES not in site.costs:
        raise RecipeError(
            f'{rewrite.pass_name()}: "auto" needs bytes and error of what {site.name} can become, which are unknown.'
        )


def beside(
    table: Table,
    model: Model,
    passes: Sequence[SitePass],
    found: Assignment,
    tuner: Verifier,
    limit: float,
    context: Context,
    *,
    deadline: float,
) -> Table | None:
    """The table with what these passes can make of large weights in place of what is ``found``, None where they are not
    predicted to save more than the search is uncertain by. limit: of the search; context: of what rewrites, with data
    that the judge has not seen."""
    least = LARGE_SHARE * table.total(found)
    large = [name for name, option in found.items() if table.cost(name, option) >= least and option.choice is not None]
    if not large or not passes:
        return None
    wide = dataclasses.replace(
        table, options={name: list(own) for name, own in table.options.items()},
        rewrites=dict(table.rewrites), macs=dict(table.macs), skipped=[],
    )  # fmt: skip
    context = dataclasses.replace(context, draws_gradients=False)
    first = 1 + max((option.choice or 0 for own in table.options.values() for option in own), default=0)
    add_sites(wide, model, passes, context.limited_to(large), first=max(first, *wide.rewrites, 0))
    new = wide.rewrites.keys() - table.rewrites.keys()
    probe, most = Probe(model, wide, tuner), max(1, evaluations(table) // len(large))
    for name in large:
        own = [each for each in wide.options[name] if each.choice in new]
        steps = _rungs(own, found[name], FEWER_CODED if table.objective.coded else FEWER_BYTES)[: min(most, MOST_RUNGS)]
        harmless = _measured(probe, name, steps, limit, context, deadline)
        wide.options[name] = [*table.options[name], *harmless]
    wide.options = {name: wide.options[name] for name in table.options}
    costs = [each.total(allot(each, limit)) for each in (wide, table)]
    LOG.debug("beside: with weights rewritten a cost of %.0f is predicted, %.0f without", *costs)
    return wide if costs[0] <= table.tuning.promising * costs[1] else None


def settled(
    wide: Table, table: Table, limit: float, alone: Callable[[Table, Assignment], float], most: float, context: Context
) -> Table | None:
    """The wider of two tables with the weights that are rewritten settled, and how far at the most: they have no values
    to choose from, all others those that they had. Of what is no further from the original than ``most`` (``alone``
    says how far) that of least cost by what is foreseen for the others; None where nothing is.

    In a search among both kinds a failure would be answered by less of everything, until nothing is rewritten. context:
    for what is rewritten from now on, with all the data.
    """
    contexts = {at: dataclasses.replace(each.context, calibration=context.calibration, draws_gradients=True)
                for at, each in wide.rewrites.items() if at not in table.rewrites}  # fmt: skip
    renewed = wide.rewrites | {at: dataclasses.replace(wide.rewrites[at], context=own) for at, own in contexts.items()}
    wide = dataclasses.replace(wide, rewrites=renewed)
    taken = [name for name, each in allot(wide, limit).items() if each.choice in contexts]
    rungs = {name: [each for each in wide.options[name] if each.choice in contexts] for name in taken}
    able = {name: _bearable(wide, name, own, alone, most) for name, own in rungs.items()}
    foreseen = allot(table, limit)
    for chosen in sorted(_settlements(wide, able), key=lambda each: wide.total(foreseen | each)):
        divergence = alone(wide, chosen) if len(chosen) > 1 else 0.0  # one was tried already
        LOG.debug("beside: %s rewritten: divergence %.3g", ", ".join(chosen), divergence)
        if divergence <= most:
            fixed = {name: _milder(wide, name, able[name], each, foreseen[name]) for name, each in chosen.items()}
            return dataclasses.replace(wide, options=table.options | fixed)
    return None


def _milder(
    wide: Table, name: str, own: Sequence[WeightOption], chosen: WeightOption, foreseen: WeightOption
) -> list[WeightOption]:
    """What is chosen for a weight and what is milder and takes fewer bytes than foreseen still, mildest first."""
    most, least = wide.predicted(name, chosen), wide.cost(name, foreseen)
    milder = [each for each in own if wide.predicted(name, each) < most and wide.cost(name, each) < least]
    return [*milder, chosen]


def _bearable(
    wide: Table, name: str, own: Sequence[WeightOption], alone: Callable[[Table, Assignment], float], most: float
) -> Sequence[WeightOption]:
    """Those of a weight's options, the mildest first, up to the strongest that alone is within ``most``."""
    own = sorted(own, key=functools.partial(wide.predicted, name))
    within, over = 0, len(own)
    while within < over:
        middle = (within + over) // 2
        divergence = alone(wide, {name: own[middle]})
        LOG.debug("beside: %s in %d bytes alone: divergence %.3g", name, own[middle].size_bytes, divergence)
        within, over = (middle + 1, over) if divergence <= most else (within, middle)
    return own[:within]


def _settlements(wide: Table, able: Mapping[str, Sequence[WeightOption]]) -> list[Assignment]:
    """Which weights may be rewritten, and how far: each by itself, and all that can be at about the same harm."""
    found: list[Assignment] = []
    harms = {wide.predicted(name, each) for name, own in able.items() for each in own}
    for names in ([*able], *([name] for name in able)):
        for harm in harms:
            within = {name: [each for each in able[name] if wide.predicted(name, each) <= harm] for name in names}
            chosen = {name: min(own, key=lambda each: wide.cost(name, each)) for name, own in within.items() if own}
            if chosen and chosen not in found:
                found.append(chosen)
    return found


def _rungs(options: Sequence[WeightOption], found: WeightOption, share: float = FEWER_BYTES) -> list[WeightOption]:
    """Of options that take at most a share of the bytes foreseen those of fewest, in steps of error, mildest first."""
    steps: dict[int, WeightOption] = {}
    for each in sorted(options, key=lambda one: (one.size_bytes, one.error)):
        if each.size_bytes <= share * found.size_bytes and each.error <= MORE_ERROR * found.error:
            steps.setdefault(math.floor(math.log(max(each.error, LEAST_ERROR)) / math.log(STEP)), each)
    return [each for _, each in sorted(steps.items())]


def _measured(
    probe: Probe, name: str, options: Sequence[WeightOption], limit: float, context: Context, deadline: float
) -> Iterator[WeightOption]:
    """Those of a weight's options, mildest first, that alone keep within the limit."""
    for each in options:
        list(probe.measure([(name, each)], context, deadline))
        divergence = probe.table.measured.get((name, each.choice or 0), math.inf)
        words = "beside: %s, %s: divergence %.3g at error %.3g, %d bytes"
        LOG.debug(words, name, probe.table.rewrites[each.choice or 0].fields, divergence, each.error, each.size_bytes)
        if divergence > limit:
            return
        yield each
