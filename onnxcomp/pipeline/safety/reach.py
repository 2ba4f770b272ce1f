"""What the samples show of each weight.

    reached      some compared number moves where the weight is set to zero, or its sign is turned
    unreached    none does: a branch that was not taken, an expert that was not chosen, a state that was zero

An error of an unreached weight is seen by nobody before the model is in use. Such a weight is in the state of "no
data": it becomes no worse than 8 bits per channel make it, whatever the budget would tolerate.
"""

from __future__ import annotations

import contextlib
import functools
import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxcomp.errors import OnnxcompError, TimeIsUp
from onnxcomp.graph.ir.nodes import Node
from onnxcomp.graph.ir.query import is_onnx
from onnxcomp.graph.stored.opening import open_plain
from onnxcomp.graph.weights.roles import Weight, weights, with_arrays
from onnxcomp.model import Model
from onnxcomp.pipeline.safety.gradient_reach import reached_by_gradients
from onnxcomp.verify import DEFAULT_MAX_DIVERGENCE, ValueTrials, Verdict, Verifier

Array = NDArray[Any]

# A weight without which the outputs change by less is not seen: a thirty-thousandth of the budget is a thousandth of
# the outputs' spread, and about what rounding in float16 does.
UNSEEN_SHARE = 3e-5
TURNED_ERROR = 4.0  # the relative squared error of a weight whose sign is turned
QUICK_SAMPLES = 16  # most weights show on these; the others are tried on all
LARGE_BYTES, LARGE_QUICK_SAMPLES = 2**27, 2  # the same of models from this size on, each run of which takes long
LARGE_OPTIMIZATION = "basic"  # weights in another order for each of these sessions take longer than they save
FEW_SAMPLES = 8  # distinct ones, at most: they tell little of any weight
WANTED_SAMPLES = 32
FEW_FACTOR = 4.0  # times the error that is safe without data, which few samples license
OWN_STATES = "on its own states"  # what measures of a closed loop begin with
COUNTED = ("labels", "top1")  # measures of samples that differ or do not
NAMED = 3  # weights named in a note
FEW = 4  # weights tried before it pays to keep what the model makes of the samples in front of each


@dataclass
class Reach:
    """What the samples of ``tuner`` show, each weight tried once when it is first asked for; None: they show nothing.

    few: there are so few that no weight may go far beyond what is safe without data.
    """

    tuner: Verifier | None
    few: bool = False
    _known: dict[tuple[str, tuple[int, ...]], float] = field(default_factory=dict)
    _reached: set[tuple[str, tuple[int, ...]]] = field(default_factory=set)  # by the gradients of large models
    _quick: list[Verifier] | None = None
    _base: dict[int, tuple[Model, Verdict]] = field(default_factory=dict)
    _looks: _Looks | None = None

    def unreached(self, model: Model, names: Iterable[str], is_over: Callable[[], bool] = lambda: False) -> set[str]:
        """Those of the weights that no sample reaches. Of large models gradients tell of most weights at once; of the
        others a few samples are tried first, since most weights show on any.

        Raises TimeIsUp where ``is_over`` says so between two weights.
        """
        if self.tuner is None:
            return set(names)
        found = set()
        with self.looking_at(model) as by_name:
            unsure = self._unsure(model, {name: by_name[name] for name in names if name in by_name}, is_over)
            judges = [*self._few_samples(), self.tuner] if unsure else []
            for name in unsure:
                if is_over():
                    raise TimeIsUp("the time budget was used up while it was looked which weights the samples reach")
                if not self._is_seen(model, by_name[name], judges):
                    found.add(name)
        return found

    def _unsure(self, model: Model, asked: Mapping[str, Weight], is_over: Callable[[], bool]) -> list[str]:
        """The weights of which gradients do not show that samples reach them."""
        assert self.tuner is not None
        keys = {name: (name, each.shape) for name, each in asked.items()}
        new = {name: asked[name] for name, key in keys.items() if key not in self._known and key not in self._reached}
        if model.size_bytes >= LARGE_BYTES:
            found = reached_by_gradients(model, new, self.tuner, self._counted, is_over)
            self._reached |= {keys[name] for name in found}
        return [name for name, key in keys.items() if key not in self._reached]

    @contextlib.contextmanager
    def looking_at(self, model: Model) -> Iterator[dict[str, Weight]]:
        """The weights of a model of which many may be asked for meanwhile: what is kept for that goes at the end."""
        self._looks = _Looks(model)
        try:
            yield self._looks.weights
        finally:
            self._looks = None

    def influence(self, model: Model, name: str) -> float:
        """Divergence for each unit of the weight's relative squared error, by the hardest change; 0 where no sample
        reaches it."""
        assert self.tuner is not None
        looks = self._looks if self._looks is not None and self._looks.model is model else _Looks(model)
        return self._shown(model, looks.weights[name], [self.tuner])

    def counts(self, divergence: float) -> bool:
        """Whether a divergence is more than what counts for nothing."""
        return divergence > self._counted

    @property
    def _counted(self) -> float:
        assert self.tuner is not None
        return UNSEEN_SHARE * min(self.tuner.search_limit or math.inf, DEFAULT_MAX_DIVERGENCE)

    def _is_seen(self, model: Model, weight: Weight, judges: Sequence[Verifier]) -> bool:
        """Whether samples reach a weight. Zeros show neither by their loss nor turned round: for them tell the other
        weights of a node that reads them, all of them, where it has any."""
        if np.any(weight.values):
            return bool(self._shown(model, weight, judges))
        assert self._looks is not None
        beside = (self._looks.beside_zeros(role.node) for role in weight.roles)
        return any(others and all(self._shown(model, each, judges) for each in others) for others in beside)

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
        looks = self._looks if self._looks is not None and self._looks.model is model else _Looks(model)
        after = looks.judged(judge, values)
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
            is_large = self.tuner.original.size_bytes >= LARGE_BYTES
            count = LARGE_QUICK_SAMPLES if is_large else QUICK_SAMPLES
            target = replace(self.tuner.target, optimization=LARGE_OPTIMIZATION) if is_large else self.tuner.target
            if self.tuner.samples > 2 * count:
                with contextlib.suppress(OnnxcompError):  # on these alone the metric may have nothing to measure
                    self._quick.append(self.tuner.on(self.tuner.data.first(count), target=target))
        return self._quick


@dataclass
class _Looks:
    """What judges a model with a weight changed, again and again: from the fifth weight on by its part behind that."""

    model: Model
    _counts: Counter[int] = field(default_factory=Counter)
    _trials: dict[int, ValueTrials] = field(default_factory=dict)

    @functools.cached_property
    def weights(self) -> dict[str, Weight]:
        """The model's weights by name."""
        return {each.name: each for each in weights(open_plain(self.model))}

    @functools.cached_property
    def _others(self) -> dict[Node, list[Weight]]:
        """The weights other than zero that each node reads."""
        found: dict[Node, list[Weight]] = {}
        for weight in self.weights.values():
            if np.any(weight.values):
                for node in dict.fromkeys(role.node for role in weight.roles):
                    found.setdefault(node, []).append(weight)
        return found

    def beside_zeros(self, node: Node) -> list[Weight]:
        """The weights other than zero that a node reads, or, where it only repeats zeros, that their readers do."""
        readers = [reader for each in node.outputs for reader in each.outputs] if is_onnx(node, "Expand") else [node]
        return [each for reader in readers for each in self._others.get(reader, [])]

    def judged(self, judge: Verifier, values: Mapping[str, Array]) -> Verdict:
        """The verdict on the model with these values."""
        self._counts[id(judge)] += 1
        if self._counts[id(judge)] <= FEW:
            return judge.check(with_arrays(self.model, values))
        if id(judge) not in self._trials:
            self._trials[id(judge)] = judge.trials(self.model)
        return self._trials[id(judge)].check(values)


def largest_move(before: Verdict, after: Verdict) -> float:
    """By how much the divergence of any one output on the samples differs, squared: one verdict's worst hides the
    others. What comes of a few steps on a model's own states does not count: that is soon diluted."""
    left, right = _energies(before), _energies(after)
    return max((abs(right.get(key, 0.0) - left.get(key, 0.0)) for key in left.keys() | right.keys()), default=0.0)


def _energies(verdict: Verdict) -> dict[tuple[str, str], float]:
    if not verdict.outputs:
        return {("", ""): verdict.quadratic_divergence}
    return {
        (each.name, each.measure): replace(verdict, outputs=(each,)).quadratic_divergence
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
