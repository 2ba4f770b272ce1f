"""What candidates make of one weight by itself, in any process: codes and their encoding, and how far off they are."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxcomp.clock import Moment
from onnxcomp.contract import Context, Outcome, Pass, Skip
from onnxcomp.contract.weight_pass import WeightPass
from onnxcomp.graph.weights.alone import LoneWeight
from onnxcomp.graph.weights.roles import Weight
from onnxcomp.graph.weights.value_pass import all_finite
from onnxcomp.numerics.encodings.encoding import Encoding
from onnxcomp.numerics.encodings.storage_options import estimate_bytes, estimate_coded_bytes, fixed_bytes
from onnxcomp.numerics.metrics.weight_error import relative_error
from onnxcomp.pipeline.apply import foreseen
from onnxcomp.pipeline.safety.noise_bound import NOISE_TOLERANCE, NoiseBound
from onnxcomp.receipt import Entry
from onnxcomp.tensors import Scratch, lent

Array = NDArray[Any]

SAMPLED_VALUES = 2**13  # of a weight, from which errors are told
UNSURE = 1.25  # times what noise allows: errors of a sample so far beyond may turn out to be within it
_PREPARE: Any = object()  # in place of what is known: to be looked up


@dataclass(frozen=True)
class Fit:
    """What a candidate makes of a weight. held: the codes of ``encoding``, or the values where that has none.

    error: relative and squared, of the node's output where data tell it. noise: times what symmetric 8-bit rounding
    per channel leaves, of the whole or of its channels, whichever is more. zeros: their share. entry: for the receipt.
    """

    held: Array
    encoding: Encoding | None
    shape: tuple[int, ...]
    error: float
    noise: float
    zeros: float
    size_bytes: int
    entry: Entry

    def bytes_that_count(self, *, coded: bool) -> int:
        """As store-compact stores it, or as an entropy coder packs it, for which the codes are counted."""
        if not coded or self.encoding is None or self._is_plain:
            return self.size_bytes
        return estimate_coded_bytes(self.shape, self.encoding.dtype, self.encoding, self.held)

    def kept(self, scratch: Scratch) -> Fit:
        """The same, on disk where it is large, as long as something refers to it."""
        return replace(self, held=lent(self.held, scratch)) if scratch.takes(self.held.nbytes) else self

    def values(self) -> Array:
        """The weight's values."""
        return self.held if self._is_plain else self.encoding.decode(self.held, self.shape)  # type: ignore[union-attr]

    @property
    def _is_plain(self) -> bool:
        return self.encoding is None or self.encoding.values_are_free

    @classmethod
    def of(cls, weight: Weight, bound: NoiseBound, entry: Entry) -> Fit:
        """What became of a weight that was changed. bound: of the weight as it was."""
        values, encoding = np.asarray(weight.values), weight.encoding
        zeros = 1 - np.count_nonzero(values) / max(1, values.size)
        size = estimate_bytes(weight.shape, weight.dtype, encoding, zeros=zeros)
        told = entry.details.get("error")
        error = relative_error(np.asarray(bound.weight.values), values) if told is None else float(told)
        codes = None if encoding is None or encoding.values_are_free else weight.codes()
        held = values if codes is None else codes
        return cls(held, encoding, weight.shape, error, bound.times(values), zeros, size, entry)


@dataclass(frozen=True)
class FitEstimate:
    """What a candidate would make of a weight, told by a sample of it."""

    choice: int
    size_bytes: int
    error: float
    noise: float
    zeros: float


@dataclass(frozen=True)
class FirstLook:
    """A weight looked at without data. estimates: by candidate, in order. mild: the fit of fewest bytes that noise
    allows and its choice, None where there is none. probe: the fit whose error is nearest to the wanted one."""

    name: str
    estimates: list[FitEstimate]
    mild: tuple[int, Fit] | None
    probe: tuple[int, Fit] | None
    skipped: list[Skip]


@dataclass(frozen=True)
class Looking:
    """How to look at a weight.

    families: of the candidates; within one, each is stronger than those before it. most_error, most_noise: beyond, the
    stronger ones of a family are not tried. probe_error: see ``FirstLook``; None: no probe. pruned: share of zeros
    from which on they are a mask, which tells nothing of what rounding does. least_gain: bytes that a fit saves.
    coded: whether bytes are counted as an entropy coder packs them.
    until: when only the first candidate is still tried, and last_moment: when none is.
    """

    candidates: Mapping[int, WeightPass]
    families: Sequence[int]
    context: Context
    most_error: float
    probe_error: float | None
    pruned: float
    least_gain: int
    coded: bool
    until: Moment
    last_moment: Moment
    most_noise: float = math.inf

    def __call__(self, weight: LoneWeight, known: Mapping[int, Any]) -> FirstLook:
        """Try all candidates on a sample of the weight, and make those that are needed of the whole.

        known: what the candidates prepared for the whole.
        """
        skipped: list[Skip] = []
        if self.last_moment.is_past:
            return FirstLook(weight.name, [], None, None, [Skip(weight.name, "the time budget was used up")])
        estimates = self._estimates(weight, skipped)
        whole = _Whole(weight, known, self.candidates, self.context)
        saving = [each for each in estimates if each.size_bytes + self.least_gain < weight.values.nbytes]
        mild = next(self._allowed(whole, saving), None)
        probe = None
        useful = [each for each in saving if each.error > 0]
        if useful and self.probe_error is not None:
            wanted = self.probe_error
            useful = [each for each in useful if each.zeros <= self.pruned] or useful
            nearest = min(useful, key=lambda each: abs(math.log(each.error / wanted)))
            probe = whole.fit(nearest.choice)
        return FirstLook(weight.name, estimates, mild, probe, skipped[-1:])

    def _estimates(self, weight: LoneWeight, skipped: list[Skip]) -> list[FitEstimate]:
        sample = weight.sample(SAMPLED_VALUES)
        bound = NoiseBound.of(sample.opened())
        found: list[FitEstimate] = []
        hopeless: set[int] = set()
        for choice, rewrite in self.candidates.items():
            family = self.families[choice]
            if family in hopeless or (found and self.until.is_past):
                continue
            fit = fitted(sample, rewrite, _PREPARE, self.context, bound, skipped)
            if fit is None:
                continue
            size = self._of_whole(fit, weight, sample.share)
            found.append(FitEstimate(choice, size, fit.error, fit.noise, fit.zeros))
            if fit.error > self.most_error or fit.noise > self.most_noise:
                hopeless.add(family)
        return found

    def _of_whole(self, fit: Fit, weight: LoneWeight, share: float) -> int:
        """The bytes of the whole weight, by those of a sample: codebooks are shared, all else grows with it."""
        size = fit.bytes_that_count(coded=self.coded)
        if share == 1:
            return size
        fixed = min(size, fixed_bytes(fit.shape, fit.encoding))
        return math.ceil(fixed + (size - fixed) / share)

    def _allowed(self, whole: _Whole, estimates: Sequence[FitEstimate]) -> Iterator[tuple[int, Fit]]:
        """What noise allows, the fewest bytes first."""
        for each in sorted(estimates, key=lambda one: one.size_bytes):
            made = whole.fit(each.choice) if each.noise <= UNSURE * NOISE_TOLERANCE else None
            if made is not None and made[1].noise <= NOISE_TOLERANCE:
                yield made


def looked_at(task: tuple[LoneWeight, Mapping[int, Any], Looking]) -> FirstLook:
    """A weight looked at in the way that is meant for it."""
    weight, known, looking = task
    return looking(weight, known)


class _Whole:
    """Makes choices of a whole weight, each once."""

    def __init__(
        self, weight: LoneWeight, known: Mapping[int, Any], candidates: Mapping[int, WeightPass], context: Context
    ) -> None:
        self._weight, self._known, self._candidates, self._context = weight, known, candidates, context
        self._bound = NoiseBound.of(weight.opened())
        self._made: dict[int, Fit | None] = {}

    def fit(self, choice: int) -> tuple[int, Fit] | None:
        """The choice and what it makes, None where it cannot be made."""
        if choice not in self._made:
            rewrite = self._candidates[choice]
            known = self._known.get(choice)
            self._made[choice] = fitted(self._weight, rewrite, known, self._context, self._bound, [])
        made = self._made[choice]
        return None if made is None else (choice, made)


@dataclass(frozen=True)
class Fitting:
    """Makes what some candidates make of a weight. until: when no further one is begun."""

    candidates: Sequence[Pass]
    context: Context
    until: Moment

    def __call__(self, task: tuple[LoneWeight, Mapping[int, Any]]) -> dict[int, Fit]:
        """task: a weight, and what is known of it by choice. The fits of the choices that can be made."""
        weight, known = task
        bound = NoiseBound.of(weight.opened())
        found = {}
        for choice, own in known.items():
            if self.until.is_past:
                break
            rewrite = self.candidates[choice]
            assert isinstance(rewrite, WeightPass)
            fit = fitted(weight, rewrite, own, self.context, bound, [])
            if fit is not None:
                found[choice] = fit
        return found


def fitted(
    weight: LoneWeight, rewrite: WeightPass, known: Any, context: Context, bound: NoiseBound, skipped: list[Skip]
) -> Fit | None:
    """What a pass makes of the weight; None where it leaves it alone, and ``skipped`` gets the reason.

    known: what the pass prepared for it; _PREPARE: it is to look at this graph.
    """
    own = weight.opened()
    outcome = Outcome()
    reason = rewrite.obstacle(own)
    if reason is None:
        with foreseen(weight.name, rewrite):
            if known is _PREPARE:
                known = rewrite.prepare(own.graph, [own], context).get(own.name)
            rewrite.edit(own, known, context.alone(), outcome)
    else:
        outcome.skip(own.name, reason)
    skipped += outcome.skipped
    if not outcome.changed:
        return None
    done = outcome.changed[0]
    fit = Fit.of(own, bound, Entry(done.name, done.what, dict(done.details)))
    return fit if math.isfinite(fit.error) and all_finite(np.asarray(own.values)) else None
