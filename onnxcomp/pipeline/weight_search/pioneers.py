"""Small weights of one shape stand for each other: what comes to nothing on the first few is not tried on the rest.

    300 weights of 9 x 9, 36 candidates each:   8 x 36 fits tell that two candidates save bytes, then 292 x 2 fits
    a candidate that rounds far beyond noise    is not tried on weights of which nothing but that would be kept

What a fit takes is hardly less for 81 values than for 8,000, and a model can have thousands of such weights. Where only
what noise allows will be kept, as without data, large weights of any shape stand for each other in the same way.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from onnxcomp.graph.weights.roles import Weight
from onnxcomp.pipeline.safety.noise_bound import NOISE_TOLERANCE
from onnxcomp.pipeline.weight_search.fits import FirstLook, FitEstimate

SMALL_VALUES = 2**12  # of a weight for which others may stand
PIONEERS = 8  # weights of a shape that are tried by all candidates
NEAR_SAVING = 0.05  # of a weight's bytes: a fit that misses saving enough by less may do so on another weight
FAR_NOISE = 10.0  # times what noise allows: no weight of the shape comes within it

LARGE = ((), frozenset[str](), "large")  # the kind of large weights of which only noise counts

Kind = tuple[tuple[int, ...], frozenset[str], str]


def split(
    names: Sequence[str], weights: Mapping[str, Weight], only_noise: Collection[str] = ()
) -> tuple[list[str], list[str]]:
    """The weights to look at first, in order, and those of which these tell what is worth trying. only_noise: those of
    which nothing will be kept that goes beyond noise."""
    counts: dict[Kind, int] = defaultdict(int)
    first: list[str] = []
    rest: list[str] = []
    for name in names:
        kind = _kind(weights[name], only_noise=name in only_noise)
        if kind is None or not _is_plain(weights[name]):
            first.append(name)
            continue
        (first if counts[kind] < PIONEERS else rest).append(name)
        counts[kind] += 1
    return first, rest


@dataclass
class Pioneers:
    """What the weights that were looked at first tell of others of their shape. least_gain: bytes that a fit saves."""

    weights: Mapping[str, Weight]
    least_gain: int
    _found: dict[Kind, list[Sequence[FitEstimate]]] = field(default_factory=lambda: defaultdict(list))

    def add(self, look: FirstLook) -> None:
        """Take in what a weight could become."""
        kind = _kind(self.weights[look.name], only_noise=True)
        if kind is not None:
            self._found[kind].append(look.estimates)

    def worth(self, name: str, choices: Iterable[int], *, only_noise: bool) -> list[int]:
        """The choices to try on a weight: what saved bytes on one of its shape, or nearly, and what none of them could
        become by it. only_noise: nothing will be kept of it that goes beyond noise."""
        kind = _kind(self.weights[name], only_noise=only_noise)
        if kind is None:
            return list(choices)
        found: dict[int, list[FitEstimate]] = defaultdict(list)
        for estimates in self._found[kind]:
            for each in estimates:
                found[each.choice].append(each)
        size = self.weights[name].size_bytes
        most = math.inf if kind is LARGE else size * (1 + NEAR_SAVING) - self.least_gain
        near = {
            choice for choice, several in found.items()
            if any(each.size_bytes < most and (not only_noise or _is_near(each)) for each in several)
        }  # fmt: skip
        return [each for each in choices if each in near or (not only_noise and each not in found)]


def _is_near(estimate: FitEstimate) -> bool:
    return estimate.noise <= FAR_NOISE * NOISE_TOLERANCE


def _kind(weight: Weight, *, only_noise: bool) -> Kind | None:
    """What others like it are known by, None for a weight that speaks for itself."""
    if weight.size <= SMALL_VALUES:
        return weight.shape, weight.kinds, str(weight.dtype)
    return LARGE if only_noise else None


def _is_plain(weight: Weight) -> bool:
    """Whether most values differ: rounded, clustered and pruned weights become less, and none stands for them."""
    if weight.encoding is not None:
        return False
    some = np.asarray(weight.values).reshape(-1)[:: max(1, weight.size // SMALL_VALUES)]
    return len(np.unique(some)) > some.size // 2
