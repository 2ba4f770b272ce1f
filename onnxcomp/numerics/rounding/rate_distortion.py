"""Codes that an entropy coder writes in few bits: rate-distortion optimized quantization.

    minimize over codes    sum over rows r of ( d H d^T / price[r] + sum over codes of -log2 p(code) ),    d = q - w

p is how often each code is taken, which the codes themselves decide: both are found in turn, as in entropy-constrained
quantizers (Chou, Lookabaugh & Gray 1989). The price of a bit is a multiple of what a finer grid pays for it: the error
D of a row of k values falls by 2 ln 2 D / k for one bit more of it (Sullivan & Wiegand 1998). Each row has its own:
outputs of little power count as much as others, since what follows may scale them up.
"""

from __future__ import annotations

import math
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxcomp.numerics.arrays.entropy import code_lengths
from onnxcomp.numerics.quantizers.level_set import Lattice
from onnxcomp.numerics.rounding.coordinate_descent import Descent, by_chunks
from onnxcomp.numerics.rounding.level_set_fit import Problem

Array = NDArray[Any]

SWEEPS = 5  # over all columns, at most, each with the frequencies that the one before left
SETTLED = 1e-3  # share of the codes that a sweep changes: with fewer there is no further one


def likelier_codes(problem: Problem, lattice: Lattice, codes: Array, *, trade: float) -> Array:
    """Codes uint8 (g, r, k), from those of little error to those that are written in few bits as well.

    trade: what a bit may cost in error, in units of what a finer grid pays for it.
    """
    levels = lattice.level.size
    price = trade * 2 * math.log(2) * problem.error(lattice, codes) / max(1, codes.shape[2])
    for _ in range(SWEEPS):
        before = codes
        swept = partial(_swept, before, code_lengths(before, levels), price)
        codes = by_chunks(problem.weights, problem.moment, lattice, problem.fixed, swept)
        if np.count_nonzero(codes != before) <= SETTLED * codes.size:
            break
    return codes


def _swept(codes: Array, lengths: Array, price: Array, part: Descent, where: tuple[slice, slice]) -> Array:
    return part.traded(codes[where], lengths, price[where])
