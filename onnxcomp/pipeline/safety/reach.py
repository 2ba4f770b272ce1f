"""What the samples show of each weight.

    reached      some compared number moves where the weight is set to zero, or its sign is turned
    unreached    none does: a branch that was not taken, an expert that was not chosen, a state that was zero

An error of an unreached weight is seen by nobody before the model is in use. Such a weight is in the state of "no
data": it becomes no worse than 8 bits per channel make it, whatever the budget would tolerate.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np

from onnxcomp.errors import OnnxcompError, TimeIsUp
from onnxcomp.graph.stored.opening import open_plain
from onnxcomp.graph.weights.roles import Weight, weights, with_arrays
from onnxcomp.model import Model
from onnxcomp.verify import DEFAULT_MAX_DIVERGENCE, ValueTrials, Verdict, Verifier

# A weight without which the outputs change by less is not seen: a thirty-thousandth of the budget is a thousandth of
# the outputs' spread, and about what rounding in float16 does.
UNSEEN_SHARE = 3e-5
TURNED_ERROR = 4.0  # the relative squared error of a weight whose sign is turned
QUICK_SAMPLES = 16  # most weights show on these; the others are tried on all
LARGE_BYTES, LARGE_QUICK_SAMPLES = 2**27, 4  # the same of models from this size on, each run of which takes long
FEW_SAMPLES = 8  # distinct ones, at most: they tell little of any weight
WANTED_SAMPLES = 32
FEW_FACTOR = 4.0  # times the error that is safe without data, which few samples license
OWN_STATES = "on its own states"  # what measures of a closed loop begin with
COUNTED = ("labels", "top1")  # measures of samples that differ or do not
NAMED = 3  # weights named in a note
MANY = 8  # weights to try, for which it pays to keep what the model makes of the samples before them


@dataclass
class Reach:
    """What the samples of ``tuner`` show, each weight tried once when it is first asked for; None: they show nothing.

    few: there are so few that no weight may go far beyond what is safe without data.
    """

    tuner: Verifier | None
    few: bool = False
    _known: dict[tuple[str, tuple[int, ...]], float] = field(default_factory=dict)
    _quick: list[Verifier] | None = None
    _base: dict[int, tuple[Model, Verdict]] = field(default_factory=dict)
    _held: dict[int, ValueTrials] = field(default_factory=dict)  # by judge, while many weights are tried

    def unreached(
        self, model: Model, names: Iterable[str], is_over: Callable[[], bool] = lambda: False
    ) -> set[str]:
        """Those of the weights that no sample reaches. A few samples are tried first: most weights show on any.

        Raises TimeIsUp where ``is_over`` says so between two weights.
        """
        if self.tuner is None:
            return set(names)
        by_name = _weights(model)
        asked = [by_name[name] for name in names if name in by_name]
        judges = [*self._few_samples(), self.tuner]
        found = set()
        if sum((each.name, each.shape) not in self._known for each in asked) >= MANY:
            self._held = {id(each): each.trials(model) for each in judges}
        try:
            for weight in asked:
                if is_over():
                    raise TimeIsUp("the time budget was used up while it was looked which weights the samples reach")
                if not self._shown(model, weight, judges):
                    found.add(weight.name)
        finally:
            self._held = {}
        return found

    def influence(self, model: Model, name: str) -> float:
        """Divergence for each unit of the weight's relative squared error, by the hardest change; 0 where no sample
        reaches it."""
        assert self.tuner is not None
        return self._shown(model, _weights(model)[name], [self.tuner])

    def counts(self, divergence: float) -> bool:
        """Whether a divergence is more than what counts for nothing."""
        assert self.tuner is not None
        return divergence > UNSEEN_SHARE * min(self.tuner.search_limit or math.inf, DEFAULT_MAX_DIVERGENCE)

    def _shown(self, model: Model, weight: Weight, judges: Sequence[Verifier]) -> float:
        key = weight.name, weight.shape
        for judge in judges:
            if key not in self._known:
                found = self._tried(model, weight, judge)
                if found or judge is self.tuner:
                    self._known[key] = found
        return self._known[key]

    def _tried(self, model: Model, weight: Weight, judge: Verifier) -> float:
        """What the weight's loss does for each unit of error, else what its turned sign does, else 0."""
        return self._moved(model, weight, 0.0, judge) or self._moved(model, weight, -1.0, judge) / TURNED_ERROR

    def _moved(self, model: Model, weight: Weight, factor: float, judge: Verifier) -> float:
        """By how much an output moves when the weight is multiplied by a factor; 0 for what counts for nothing."""
        before = self._before(model, judge)
        values = {weight.name: np.asarray(weight.values * weight.dtype.type(factor))}
        held = self._held.get(id(judge))
        after = judge.check(with_arrays(model, values)) if held is None else held.check(values)
        if after.failed:  # a weight without which the model does not run is reached
            return judge.limit
        moved = largest_move(before, after)
        return moved if self.counts(moved) else 0.0

    def _before(self, model: Model, judge: Verifier) -> Verdict:
        known = self._base.get(id(judge))
        if known is None or known[0] is not model:
            known = self._base[id(judge)] = model, judge.check(model)
        return known[1]

    def _few_samples(self) -> list[Verifier]:
        assert self.tuner is not None
        if self._quick is None:
            self._quick = []
            count = QUICK_SAMPLES if self.tuner.original.size_bytes < LARGE_BYTES else LARGE_QUICK_SAMPLES
            if self.tuner.samples > 2 * count:
                with contextlib.suppress(OnnxcompError):  # on these alone the metric may have nothing to measure
                    self._quick.append(self.tuner.on(self.tuner.data.first(count)))
        return self._quick


def _weights(model: Model) -> dict[str, Weight]:
    return {each.name: each for each in weights(open_plain(model))}


def largest_move(before: Verdict, after: Verdict) -> float:
    """By how much the divergence of any one output on the samples differs, squared: one verdict's worst hides the
    others. What comes of a few steps on a model's own states does not count: that is soon diluted."""
    left, right = _energies(before), _energies(after)
    return max((abs(right.get(key, 0.0) - left.get(key, 0.0)) for key in left.keys() | right.keys()), default=0.0)


def _energies(verdict: Verdict) -> dict[tuple[str, str], float]:
    if not verdict.outputs:
        return {("", ""): verdict.quadratic_divergence}
    return {
        (each.name, each.measure): dataclasses.replace(verdict, outputs=(each,)).quadratic_divergence
        for each in verdict.outputs
        if not each.measure.startswith(OWN_STATES)
    }


def affected_share(verdict: Verdict) -> float | None:
    """The share of the samples that bear the divergence, None where it cannot be told: one of few labels that flip
    concerns few samples whatever made it flip."""
    worst = max(verdict.outputs, key=lambda each: each.value, default=None)
    share: float | None = getattr(verdict, "affected_share", None)
    return None if worst is None or worst.measure.endswith(COUNTED) or not share else share


def unreached_note(names: Iterable[str], kept: str) -> str:
    """What to say of weights that no sample reaches; ``kept``: what became of them."""
    ranked = sorted(names)
    more = f" and {len(ranked) - NAMED} more" if len(ranked) > NAMED else ""
    return f"{', '.join(ranked[:NAMED])}{more}: no sample reaches {'it' if len(ranked) == 1 else 'them'}; {kept}"
