"""Bits whose probabilities are mixed from counts in several contexts, many bits at a time.

    stretch_k = log2((n1 + 3 p) / (n0 + 3 (1 - p)))       counts in context k, p of all the node's bits so far
    P(1)      = squash(sum_k w_k stretch_k)               the weights learn from the coding gain

Whoever reads makes the same numbers from what it has read: whole numbers, in doubles that hold them exactly in
whatever order they are added. That is the mixing of PAQ (http://mattmahoney.net/dc/dce.html#Section_432), for arrays:
counts and weights are brought up to date after each array, the weights by the sum of the errors over the square root
of their number.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxcomp.packing.coders.logarithms import squashed, stretch

Array = NDArray[Any]

PRIOR = 3  # bits that the node's own probability counts for in a context
P_BITS = 16
P_LEAST = 32
WEIGHT_BITS = 12
WEIGHT_MOST = 7 << WEIGHT_BITS
MOVED_MOST = 1 << (WEIGHT_BITS - 2)  # by which a weight changes at a time
RATE_BITS = 18  # errors times stretches, in units of 2^-25, to a weight's step
STEADY = 16  # the square root of the number of bits above which a step grows with their number no more
LEARNT_FROM = 2**13  # of more bits every second, third, ... is learnt from


class MixingNode:
    """One question about symbols, such as whether they are zero: counts and weights.

    Contexts are (k, n) numbers: row after row below the sizes, each above those of the rows before it.
    """

    def __init__(self, sizes: Sequence[int]) -> None:
        self._counts = np.zeros((sum(sizes), 2), np.int64)
        self._all = np.zeros(2, np.int64)
        self._weights = np.full(len(sizes), float((5 << WEIGHT_BITS) // (4 * len(sizes))))

    def ones(self, contexts: Array) -> tuple[Array, Array]:
        """(n,) int32 probabilities of a one, of 65536, and the (k, n) stretches that they come from."""
        zeros, ones = map(int, self._all)
        prior = min(2**P_BITS - P_LEAST, max(P_LEAST, ((5 * ones + 2) << P_BITS) // (5 * (zeros + ones) + 4)))
        table = stretch(self._counts * 2**P_BITS + (PRIOR * (2**P_BITS - prior), PRIOR * prior))
        stretches = table.take(contexts)
        mixed = self._weights @ stretches
        mixed *= 2.0**-WEIGHT_BITS
        return squashed(np.floor(mixed, out=mixed)), stretches

    def learn(self, bits: Array, ones: Array, stretches: Array, contexts: Array) -> None:
        """Bring counts and weights up to date with (n,) bits that were coded."""
        every = max(1, bits.size // LEARNT_FROM)
        seen, known = bits[::every], contexts[:, ::every]
        errors = (seen * 2**P_BITS - ones[::every]).astype(np.float64)
        step = max(1, min(int(np.sqrt(errors.size)), STEADY) if errors.size < STEADY**2 else errors.size // STEADY)
        gains = np.floor((stretches[:, ::every] @ errors) / float(step << RATE_BITS))
        self._weights += np.minimum(MOVED_MOST, np.maximum(-MOVED_MOST, gains))
        np.minimum(WEIGHT_MOST, np.maximum(-WEIGHT_MOST, self._weights), out=self._weights)
        counted = np.bincount((known * 2 + seen).reshape(-1), minlength=self._counts.size)
        self._counts += counted.reshape(self._counts.shape)
        ones_seen = int(np.count_nonzero(seen))
        self._all += (seen.size - ones_seen, ones_seen)
