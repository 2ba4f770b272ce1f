"""What every weight can become by the candidates of a search, with bytes and errors.

Making a weight takes most of the time of a search, and few candidates are in question for any one weight. So all are
first tried on samples of each weight's values and without data, and only those on its shortlist are made, with data.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from onnxcomp.calibration.statistics.moments import Moments
from onnxcomp.clock import Moment, clock
from onnxcomp.contract import Context, Fields, Outcome, Pass, Quantity, SitePass, Skip, own_choice, parameters
from onnxcomp.contract.weight_pass import WeightPass
from onnxcomp.errors import RecipeError, TimeIsUp
from onnxcomp.graph.stored.opening import open_plain
from onnxcomp.graph.weights.alone import LoneWeight
from onnxcomp.graph.weights.roles import weights
from onnxcomp.model import Model
from onnxcomp.parallel import in_processes, in_threads, one_thread
from onnxcomp.pipeline.apply import apply_choice, only_values
from onnxcomp.pipeline.objective import Objective
from onnxcomp.pipeline.safety.noise_bound import NOISE_TOLERANCE, NoiseBound
from onnxcomp.pipeline.weight_search.fits import FirstLook, Fit, Fitting, Looking, looked_at
from onnxcomp.pipeline.weight_search.pioneers import FAR_NOISE, Pioneers, split
from onnxcomp.pipeline.weight_search.tuning import Tuning
from onnxcomp.receipt import Entry

HOPELESS_ERROR = 0.5  # relative squared error: no stronger candidate of the family is worth trying
NOISE_ERROR = 0.005  # the same without data, where a few thousandths are the most that 8-bit rounding leaves
LEAST_GAIN_BYTES = 150  # what an option must save by estimate, lest storing it save nothing
PROCESSES_FROM = 2**20  # weight values that are worth the seconds that processes take to start
NO_GAIN = "no strength saves enough bytes"
ANY_FAMILY = -1  # the key of a weight's influence where its family was not measured


@dataclass(frozen=True)
class WeightOption:
    """One weight by one of the candidates; ``choice`` is its position, None leaves the weight as it is.

    size_bytes: stored, or packed where the objective counts coded bytes.
    family: of candidates that differ in strength only: their divergence grows with the error alike. macs: of one run
    where the weight takes part; None: as many as it takes part in as it is. noise, zeros: see ``Fit``.
    """

    choice: int | None
    size_bytes: int
    error: float
    family: int = 0
    macs: float | None = None
    noise: float = 0.0
    zeros: float = 0.0


@dataclass(frozen=True)
class Rewrite:
    """A choice that changes the graph at its sites: a pass, the fields to set, and the context to write it in."""

    rewrite: SitePass
    fields: Fields
    context: Context


@dataclass
class Table:
    """What every weight can become: options by weight.

    fits: what was made so far, of (choice, weight); options without one are estimates. unreached: weights that no
    sample reaches; they keep to what is safe without data. unseen: weights of whose inputs the data show nothing.
    rewrites: of the choices that rewrite the graph, for which there are no fits: the passes at the choice's fields,
    in the order in which they are written. macs: of one run, by weight as it is, as far as known. nodes: of the model.
    """

    options: dict[str, list[WeightOption]]
    fits: dict[tuple[int, str], Fit] = field(default_factory=dict)
    skipped: list[Skip] = field(default_factory=list)  # left alone by every choice, with the last one's reason
    influence: dict[tuple[str, int], float] = field(default_factory=dict)  # of (weight, family): divergence per error
    measured: dict[tuple[str, int], float] = field(default_factory=dict)  # of (weight, choice) alone
    unreached: set[str] = field(default_factory=set)
    unseen: set[str] = field(default_factory=set)
    rewrites: dict[int, Rewrite] = field(default_factory=dict)
    macs: dict[str, float] = field(default_factory=dict)
    nodes: int = 0
    objective: Objective = field(default_factory=Objective)
    tuning: Tuning = field(default_factory=Tuning)
    last_rewritten: dict[object, Any] = field(default_factory=dict)  # see ``assembly.rewritten`` and ``measured``

    @property
    def masked_from(self) -> float:
        """The share of zeros from which on they are a mask, which takes bytes of its own where codes are stored; to an
        entropy coder zero is a code like others."""
        return math.inf if self.objective.coded else self.tuning.pruned

    def is_made(self, name: str, option: WeightOption) -> bool:
        """Whether the weight's values by the option are there, or there are none to be made."""
        return option.choice is None or option.choice in self.rewrites or (option.choice, name) in self.fits

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
            table.fits[option.choice + count, name] = table.fits[option.choice, name]
            option = own
        found[name] = option
    return found


@dataclass
class Candidates:
    """Makes the options of a table. context: without data where ``look`` is to do without. last_moment: until when what
    noise allows is made after the deadline.

    Passes that change weights one by one are tried by processes, weight by weight; others on the whole model.
    """

    model: Model
    passes: Sequence[Pass]
    context: Context
    deadline: float = math.inf
    last_moment: float = math.inf

    def __post_init__(self) -> None:
        found: dict[Hashable, int] = {}
        self.families = [found.setdefault(_family(each), len(found)) for each in self.passes]
        self._graph = open_plain(self.model)
        self._weights = {each.name: each for each in weights(self._graph)}
        self._node_count = sum(1 for _ in self._graph.nodes())
        self._lone: dict[str, LoneWeight] = {}

    def look(self, *, most_error: float = HOPELESS_ERROR, probe_error: float | None = None, **options: Any) -> Table:
        """What every weight can become, told by samples of its values; made is what noise allows, and what has about
        ``probe_error``, where that is given.

        Where a candidate leaves a weight with more than ``most_error``, the stronger ones of its family are not tried
        on it. Raises RecipeError for a candidate that is neither a value pass nor one of sites.
        """
        table = Table({}, nodes=self._node_count, **options)
        alone = {at: each for at, each in enumerate(self.passes) if isinstance(each, WeightPass)}
        looking = Looking(
            alone, self.families, self._own_context(), most_error, probe_error, table.masked_from,
            LEAST_GAIN_BYTES, table.objective.coded, Moment(self.deadline), Moment(self.last_moment),
        )  # fmt: skip
        names = self._editable(table) if alone else []
        self._look_at(names, looking, table)
        table.options = {name: table.options[name] for name in names if name in table.options}
        for at in range(len(self.passes)):
            if at not in alone:
                self._note_fits(table, at, self._on_the_whole(at, None, table))
        return completed(table, self._size_bytes())

    def fit(self, table: Table, choices: Mapping[str, Sequence[int]]) -> None:
        """Make these choices of the weights in the context, with data where it has some; options that cannot be made,
        and those that are not by the deadline, are no options any more."""
        alone = {name: [each for each in own if isinstance(self.passes[each], WeightPass)]
                 for name, own in choices.items()}  # fmt: skip
        names = self._by_size(name for name, own in alone.items() if own)
        try:
            known = self._known({name: alone[name] for name in names})
        except TimeIsUp:
            names, known = [], {}
        tasks = [(self._alone(name), {each: known[each].get(name) for each in alone[name]}) for name in names]
        if self.context.calibration is not None:
            table.unseen = {name for name, (_, own) in zip(names, tasks, strict=True) if self._shows_nothing(own)}
        for name, own in choices.items():
            for each in own:
                table.fits.pop((each, name), None)
        fitting = Fitting(self.passes, self._own_context(), Moment(self.deadline))
        for index, found in enumerate(self._mapped(fitting, tasks)):
            self.context.progress(index, len(names), f"fitting {names[index]}")
            for choice, fit in found.items():
                self._note_fits(table, choice, {names[index]: fit})
        for at, rewrite in enumerate(self.passes):
            rest = [name for name, own in choices.items() if at in own and not isinstance(rewrite, WeightPass)]
            if rest:
                self._note_fits(table, at, self._on_the_whole(at, rest, table))
        for name, found in table.options.items():
            table.options[name] = [each for each in found if table.is_made(name, each)]
        completed(table, self._size_bytes())

    def make_all(self, *, most_error: float, **options: Any) -> Table:
        """The table with every choice made in the context, but for those that are hopeless or save nothing."""
        table = Table({}, nodes=self._node_count, **options)
        names = self._editable(table)
        hopeless: dict[str, set[int]] = {name: set() for name in names}
        for at, family in enumerate(self.families):
            if table.fits and clock() > self.deadline:
                break
            self.fit(table, {name: [at] for name in names if family not in hopeless[name]})
            for name in names:
                fit = table.fits.get((at, name))
                if fit is not None and fit.error > most_error:
                    hopeless[name].add(family)
        return completed(table, self._size_bytes())

    def without_data(self) -> Candidates:
        """The same candidates in a context without data."""
        return replace(self, context=replace(self.context, calibration=None))

    def again(self, table: Table, mild: Assignment) -> None:
        """Make all options anew in this context. Influences have to be measured again. Weights for which there was no
        time are left what they are in ``mild``."""
        count = len(self.passes)
        plain = {name: found[0] for name, found in table.options.items()}
        self.fit(table, {
            name: [each.choice for each in found if each.choice is not None and each.choice < count]
            for name, found in table.options.items()
        })  # fmt: skip
        for name, option in mild.items():
            if option.choice is not None and name not in table.options:
                table.options[name] = [plain[name], option]
        table.influence.clear()
        table.measured.clear()

    # --- inside ---

    def _look_at(self, names: Sequence[str], looking: Looking, table: Table) -> None:
        """Look at weights, of which those of no shape of their own wait for the first of theirs."""
        far = FAR_NOISE * NOISE_TOLERANCE
        least = replace(looking, most_error=NOISE_ERROR, most_noise=far, probe_error=None)  # for what is not measured
        probed = 0 if looking.probe_error is None else table.tuning.probed_weights
        ways = {name: looking if at < probed else least for at, name in enumerate(names)}
        pioneers, done = Pioneers(self._weights, LEAST_GAIN_BYTES), 0
        only_noise = {name for name in names if ways[name] is least}
        for part, is_first in zip(split(names, self._weights, only_noise), (True, False), strict=True):
            choices = {
                name: list(looking.candidates) if is_first
                else pioneers.worth(name, looking.candidates, only_noise=name in only_noise)
                for name in part
            }  # fmt: skip
            table.skipped.extend(Skip(name, NO_GAIN) for name, own in choices.items() if not own)
            choices = {name: own for name, own in choices.items() if own}
            known = self._known(choices)
            tasks = [
                (self._alone(name), {each: known[each][name] for each in own if name in known[each]},
                 replace(ways[name], candidates={each: looking.candidates[each] for each in own}))
                for name, own in choices.items()
            ]  # fmt: skip
            for look in self._mapped(looked_at, tasks):
                self.context.progress(done, len(names), f"trying strengths of {look.name}")
                done += 1
                pioneers.add(look)
                self._note(table, look)

    def _mapped(self, work: Callable[[Any], Any], tasks: Sequence[Any]) -> Iterator[Any]:
        """Results in order, from processes where there is more to do than it takes to start them."""
        values = sum(each.size for each in self._weights.values())
        return (in_processes if values >= PROCESSES_FROM else in_threads)(work, tasks, self.context.jobs)

    def _editable(self, table: Table) -> list[str]:
        """The weights that may be changed, the largest first."""
        outcome = Outcome()
        found = [each.name for each in self.context.editable_weights(self._graph, outcome)]
        table.skipped.extend(outcome.skipped)
        return self._by_size(found)

    def _by_size(self, names: Iterable[str]) -> list[str]:
        return sorted(names, key=lambda name: -self._weights[name].size)

    def _alone(self, name: str) -> LoneWeight:
        if name not in self._lone:
            self._lone[name] = LoneWeight.of(self._weights[name])
        return self._lone[name]

    def _own_context(self) -> Context:
        """What a pass is given that changes one weight, wherever that is: the rest is in what it prepared."""
        return Context(seed=self.context.seed, max_opset=self.context.max_opset)

    def _size_bytes(self) -> dict[str, float]:
        return {name: each.size_bytes for name, each in self._weights.items()}

    def _known(self, choices: Mapping[str, Sequence[int]]) -> dict[int, Mapping[str, Any]]:
        """What each pass prepares for the weights that it is to change, by choice."""
        found: dict[int, Mapping[str, Any]] = {}
        with one_thread():
            for at in sorted({each for own in choices.values() for each in own}):
                rewrite = self.passes[at]
                assert isinstance(rewrite, WeightPass)
                named = [self._weights[name] for name, own in choices.items() if at in own]
                able = [each for each in named if rewrite.obstacle(each) is None]
                found[at] = rewrite.prepare(self._graph, able, self.context)
        return found

    def _shows_nothing(self, known: Mapping[int, Any]) -> bool:
        """Whether the data show nothing of a weight's inputs, by what passes that draw on them know."""
        drawn = [own for at, own in known.items() if self.passes[at].draws_on_data(calibration=True)]
        return bool(drawn) and not any(map(_is_seen, drawn))

    def _note(self, table: Table, look: FirstLook) -> None:
        options = [
            WeightOption(
                each.choice, each.size_bytes, each.error, self.families[each.choice], noise=each.noise, zeros=each.zeros
            )
            for each in look.estimates
        ]
        if options:
            table.options[look.name] = options
        table.skipped.extend(look.skipped)
        for made in (look.mild, look.probe):
            if made is not None:
                self._note_fits(table, made[0], {look.name: made[1]})

    def _note_fits(self, table: Table, choice: int, fits: Mapping[str, Fit]) -> None:
        """Keep what was made, and put its figures in the place of estimates."""
        for name, fit in fits.items():
            table.fits[choice, name] = fit.kept(self.model.scratch)
            size = fit.bytes_that_count(coded=table.objective.coded)
            made = WeightOption(choice, size, fit.error, self.families[choice], noise=fit.noise, zeros=fit.zeros)
            options = table.options.setdefault(name, [])
            at = next((at for at, each in enumerate(options) if each.choice == choice), len(options))
            options[at : at + 1] = [made]

    def _on_the_whole(self, at: int, names: Sequence[str] | None, table: Table) -> dict[str, Fit]:
        """What a pass that knows no single weights makes of the named ones, or all."""
        rewrite = self.passes[at]
        self.context.progress(at, len(self.passes), f"{rewrite.pass_name()} at strength {at + 1}")
        chosen = None if names is None else own_choice(names)
        after, outcome = apply_choice(self.model, rewrite, chosen, self.context)
        if not only_values(self.model, after, [each.name for each in outcome.changed]):
            raise RecipeError(f'{rewrite.pass_name()}: "auto" is for passes that change values, or say their sites.')
        table.skipped.extend(outcome.skipped)
        changed = {each.name: each for each in weights(open_plain(after))}
        return {
            each.name: Fit.of(
                changed[each.name],
                NoiseBound.of(self._weights[each.name]),
                Entry(each.name, each.what, dict(each.details)),
            )
            for each in outcome.changed
        }


def _is_seen(known: Any) -> bool:
    """Whether what is known of a weight's inputs says that there were some other than zero."""
    return known is not None and (not isinstance(known, Moments) or bool(np.any(known.peak)))


def completed(table: Table, size_bytes: Mapping[str, float]) -> Table:
    """With the option of leaving each weight as it is, without options that save next to nothing, and with only
    the weights skipped that no candidate changed. size_bytes: of each weight as it is."""
    names = set(table.options)
    for name, found in table.options.items():
        if not found or found[0].choice is not None:
            found.insert(0, WeightOption(None, int(size_bytes[name]), 0.0))
        table.options[name] = [
            each for each in found if each.choice is None or (math.isfinite(each.error) and table.saves(name, each))
        ]
    table.options = {name: found for name, found in table.options.items() if len(found) > 1}
    for name in names - table.options.keys():
        table.skipped.append(Skip(name, NO_GAIN))
    left = {each.name: each for each in table.skipped if each.name not in table.options}
    table.skipped = list(left.values())
    return table


def _family(rewrite: Pass) -> Hashable:
    """What a candidate is, but for its strength."""
    strength = rewrite.strength()
    fields = [each.name for each in parameters(type(rewrite)) if strength is None or each.name != strength.name]
    return (rewrite.pass_name(), *(getattr(rewrite, name) for name in fields))
