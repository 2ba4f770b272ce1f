"""How much the outputs depend on each weight: one is changed alone, and the divergence from the original measured.

Near the original the divergence grows with the squared error, so a single measurement, at about the error of
4 to 5 bits, tells what any other change of that weight will do:

    divergence of a change  ~  influence * relative squared error of the node's output

Uneven sensitivity is what uneven bits answer to: Dong et al., HAWQ-V2, https://arxiv.org/abs/1911.03852, where
it is a Hessian's trace; here the outputs themselves are compared.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

from onnxcomp.clock import clock
from onnxcomp.contract import Context
from onnxcomp.graph.stored.opening import open_plain
from onnxcomp.graph.weights.roles import weights
from onnxcomp.memory import return_freed
from onnxcomp.model import Model
from onnxcomp.numerics.search.shrinkage import shrunk
from onnxcomp.parallel import in_threads
from onnxcomp.pipeline.safety.reach import Reach, affected_share, largest_move
from onnxcomp.pipeline.weight_search.assignment import measured
from onnxcomp.pipeline.weight_search.candidates import ANY_FAMILY, Assignment, Table, WeightOption
from onnxcomp.pipeline.weight_search.pruned_options import is_pruned
from onnxcomp.verify import ValueTrials, Verdict, Verifier

LEAST_DIVERGENCE = 1e-9  # what is counted for a change that no sample shows


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
    tolerable: float = math.inf,
) -> None:
    """Change each weight alone and measure, so that ``table.predicted`` can tell every option's divergence.

    Each weight is measured once, and, but with ``once``, the largest ones option by option as far as ``evaluations``
    allows; of a model that is too large for that (``probes``), groups of neighbours are. What is not measured, the
    smallest weights and all that comes after the deadline, and what no sample reaches, stays as it is or becomes what
    it is in ``mild``. tolerable: the divergence that samples which see a weight may have of it.
    """
    return_freed()
    probe = Probe(model, table, tuner)
    ranked = sorted(table.options, key=lambda name: -table.options[name][0].size_bytes)
    first: list[tuple[str, WeightOption]] = []
    for index, name in enumerate(ranked):
        changed = [each for each in table.options[name] if each.error > 0 and table.is_made(name, each)]
        table.options[name] = _undominated(table, name)
        if index >= table.tuning.probed_weights or not changed:
            hold_to(table, name, mild)
            table.influence[name, ANY_FAMILY] = 0.0
        else:
            left = [each for each in changed if each in table.options[name]] or changed
            plain = [each for each in left if not is_pruned(table, each)]  # zeros have an influence of their own
            first.append((name, _nearest(table, plain or left)))
    most = probes(table)
    if len(first) > most:
        _measure_together(probe, first, 1 if once else most, mild, context, deadline)
        return
    with reach.looking_at(probe.model):
        _measure_alone(probe, first, reach, mild, context, deadline)
    if once:
        return
    for name, option in probe.measure(_further(table, ranked), context, deadline):
        if (name, option.choice) in table.measured:
            table.influence.setdefault((name, option.family), probe.divergence(name, option) / option.error)
    _settle(table, probe)
    _hold_affected(table, probe, tolerable)


def _settle(table: Table, probe: Probe) -> None:
    """Bring what was measured of each weight's options nearer to what their errors tell of each other.

    Where a few hard samples carry most of a divergence, rounding moves them this way or that: of many options the one
    that is measured least is the luckiest, and would be taken. So the logarithm of each one's divergence for its error
    moves towards their median, as far as noise explains how much they differ. Options that prune stand apart.
    """
    for name in table.options:
        told = [(each, (name, each.choice)) for each in table.options[name] if each.choice is not None and each.error]
        for pruned in (False, True):
            alike = [(each, key) for each, key in told if key in probe.noise and is_pruned(table, each) == pruned]
            ratios = np.log([table.measured[key] / each.error for each, key in alike])
            if len(alike) < table.tuning.settled_by or not np.isfinite(ratios).all():
                continue
            noise = float(np.median([probe.noise[key] for _, key in alike]))
            for (each, key), ratio in zip(alike, shrunk(ratios, noise, table.tuning.own_harm), strict=True):
                table.measured[key] = each.error * math.exp(ratio)


def _measure_alone(
    probe: Probe,
    changes: Sequence[tuple[str, WeightOption]],
    reach: Reach,
    mild: Assignment,
    context: Context,
    deadline: float,
) -> None:
    """The influence of each weight by a change of its own."""
    table = probe.table
    for name, option in probe.measure(changes, context, deadline):
        if (name, option.choice) not in table.measured:  # too late
            hold_to(table, name, mild)
            table.influence[name, ANY_FAMILY] = 0.0
            continue
        found = probe.divergence(name, option)
        if not reach.counts(probe.moved[name]):
            probe.hard[name] = reach.influence(probe.model, name)
            found = probe.divergence(name, option)
            if not probe.hard[name]:
                table.unreached.add(name)
                hold_to(table, name, mild)
        table.influence[name, ANY_FAMILY] = found / option.error


def _measure_together(
    probe: Probe,
    changes: Sequence[tuple[str, WeightOption]],
    count: int,
    mild: Assignment,
    context: Context,
    deadline: float,
) -> None:
    """The influence of weights of a model that is too large to be run for each: neighbours are changed together, in so
    many groups, and what that does is put down to their errors alike. Weights whose inputs no sample shows stay as they
    are in ``mild``."""
    table = probe.table
    for name, _ in changes:
        if name in table.unseen:
            table.unreached.add(name)
            hold_to(table, name, mild)
            table.influence[name, ANY_FAMILY] = 0.0
    place = {each.name: at for at, each in enumerate(weights(open_plain(probe.model)))}
    seen = sorted((each for each in changes if each[0] not in table.unseen), key=lambda each: place.get(each[0], 0))
    groups = [dict(seen[part[0] : part[-1] + 1]) for part in np.array_split(np.arange(len(seen)), count) if part.size]

    def verdict(group: Assignment) -> Verdict | None:
        return measured(probe.trials, table, group) if clock() <= deadline else None

    for index, found in enumerate(in_threads(verdict, groups, context.jobs)):
        context.progress(index, len(groups), f"measuring {next(iter(groups[index]))} and its neighbours")
        base = probe.base.quadratic_divergence
        added = None if found is None else added_divergence(found.quadratic_divergence, base)
        for name in groups[index]:
            if added is None:
                hold_to(table, name, mild)
            errors = sum(option.error for option in groups[index].values())
            table.influence[name, ANY_FAMILY] = 0.0 if added is None else added / errors


def _hold_affected(table: Table, probe: Probe, tolerable: float) -> None:
    """Forbid what is tolerable on the average only since few of the samples see the weight: those that do must
    tolerate it, too. Few are told by how many see a like change of all weights: where few are unsure, few see
    anything."""
    if not probe.shares:
        return
    usual = affected_share(measured(probe.trials, table, probe.first))
    for name, share in probe.shares.items():
        of_usual = 1.0 if usual is None else min(1.0, share / usual)
        if of_usual < table.tuning.few_affected:
            table.options[name] = [
                each for each in table.options[name] if table.predicted(name, each) <= of_usual * tolerable
            ]


@dataclass
class Probe:
    """Measures single changes.

    hard: divergence for each unit of error by the hardest change, of weights that a small one does not show; none of
    their options counts for less. first: measured of each weight; moved: by how much that moved
    any one output; shares: of the samples that it concerned; noise: the standard error of what was measured of an
    option, relative to that.
    """

    model: Model
    table: Table
    tuner: Verifier
    hard: dict[str, float] = field(default_factory=dict)
    first: Assignment = field(default_factory=dict)
    shares: dict[str, float] = field(default_factory=dict)
    moved: dict[str, float] = field(default_factory=dict)
    noise: dict[tuple[str, int], float] = field(default_factory=dict)
    trials: ValueTrials = field(init=False)
    base: Verdict = field(init=False)

    def __post_init__(self) -> None:
        self.trials = self.tuner.trials(self.model)
        self.base = self.trials.check({})

    def measure(
        self, changes: Sequence[tuple[str, WeightOption]], context: Context, deadline: float
    ) -> Iterator[tuple[str, WeightOption]]:
        """Measure single changes, as many at a time as there are jobs, and give each back in order, whether it was
        measured or the deadline came before."""

        def verdict(change: tuple[str, WeightOption]) -> Verdict | None:
            name, option = change
            if clock() > deadline or (name, option.choice) in self.table.measured:
                return None
            return self._verdict(name, option)

        for index, found in enumerate(in_threads(verdict, changes, context.jobs)):
            name, option = changes[index]
            context.progress(index, len(changes), f"measuring {name}")
            if found is not None:
                self._note(name, option, found)
            yield name, option

    def divergence(self, name: str, option: WeightOption) -> float:
        """What the option alone adds; the table remembers it."""
        assert option.choice is not None
        if (name, option.choice) not in self.table.measured:
            self._note(name, option, self._verdict(name, option))
        known = self.table.measured[name, option.choice]
        found = max(known, self.hard.get(name, 0.0) * option.error)
        self.table.measured[name, option.choice] = found
        return found

    def _verdict(self, name: str, option: WeightOption) -> Verdict:
        return measured(self.trials, self.table, {name: option})

    def _note(self, name: str, option: WeightOption, verdict: Verdict) -> None:
        assert option.choice is not None
        share = affected_share(verdict)
        if name not in self.first and share is not None:
            self.shares[name] = share
        self.first.setdefault(name, option)
        self.moved.setdefault(name, largest_move(self.base, verdict))
        added = added_divergence(verdict.quadratic_divergence, self.base.quadratic_divergence)
        self.table.measured[name, option.choice] = added
        if verdict.divergence > 0:
            low, high = verdict.interval
            self.noise[name, option.choice] = (high - low) / 4 / verdict.divergence


def _further(table: Table, ranked: Sequence[str]) -> list[tuple[str, WeightOption]]:
    """What else to measure alone, as far as ``evaluations`` allows: one option of each family for every weight,
    the largest first, then the rest."""
    worth = {name: [each for each in table.options[name] if _worth_measuring(table, name, each)] for name in ranked}
    first: list[tuple[str, WeightOption]] = []
    for name in ranked:
        families = sorted({each.family for each in worth[name]})
        first.extend((name, _nearest(table, [each for each in worth[name] if each.family == one])) for one in families)
    seen = {(name, option.choice) for name, option in first}
    rest = [(name, each) for name in ranked for each in worth[name] if (name, each.choice) not in seen]
    wanted = sorted([*first, *rest], key=lambda change: is_pruned(table, change[1]))  # these last, all else as it is
    return wanted[: max(0, evaluations(table) - len(table.measured))]


def evaluations(table: Table) -> int:
    """How many single changes to measure: fewer, the larger and so the slower the model."""
    values = sum(options[0].size_bytes for options in table.options.values()) // 4
    most = min(table.tuning.most_evaluations, _openings(table))
    return int(min(most, table.tuning.evaluated_values // max(1, values)))


def probes(table: Table) -> int:
    """How many weights may be changed one by one to learn their influence."""
    values = sum(options[0].size_bytes for options in table.options.values()) // 4
    most = min(table.tuning.probed_values // max(1, values), _openings(table))
    return int(max(table.tuning.fewest_probes, most))


def _openings(table: Table) -> int:
    """How often the model may be opened: ONNX Runtime takes a second for ten thousand nodes, however small."""
    return table.tuning.opened_nodes // max(1, table.nodes)


def _worth_measuring(table: Table, name: str, option: WeightOption) -> bool:
    known = option.choice is None or (name, option.choice) in table.measured
    return not known and table.tuning.measured_errors[0] <= option.error <= table.tuning.measured_errors[1]


def _nearest(table: Table, options: Sequence[WeightOption]) -> WeightOption:
    """The option whose error is nearest to ``Tuning.probe_error``, on a logarithmic scale."""
    return min(options, key=lambda each: abs(math.log(each.error / table.tuning.probe_error)))


def hold_to(table: Table, name: str, mild: Assignment) -> None:
    """Leave a weight no options but that of leaving it and that of ``mild``."""
    plain = table.options[name][0]
    table.options[name] = [plain] if mild[name].choice is None else [plain, mild[name]]


def _undominated(table: Table, name: str) -> list[WeightOption]:
    """A weight's options without those that take more than another one and leave much more error; errors of pruned ones
    are compared with each other's only, since they do more harm."""
    options = table.options[name]
    costs = [table.cost(name, each) for each in options]

    def beaten(option: WeightOption, cost: float) -> bool:
        factor = table.tuning.dominating
        return any(
            other <= cost and each.error * factor < option.error
            for each, other in zip(options, costs, strict=True)
            if is_pruned(table, option) or not is_pruned(table, each)
        )

    return [each for each, cost in zip(options, costs, strict=True) if each.choice is None or not beaten(each, cost)]


def added_divergence(divergence: float, base: float) -> float:
    """What one more change adds to the divergence ``base``; more than 0, infinite where the model fails."""
    added = divergence - base
    return max(added, LEAST_DIVERGENCE) if math.isfinite(added) else math.inf
