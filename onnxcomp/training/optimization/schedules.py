"""How fast steps are, by how far the training is: 1 at the fastest.

warm-up   rises from 0 over the first steps
cosine    (1 + cos(pi t)) / 2 down to a hundredth,   linear  1 - t,   constant  1
"""

from __future__ import annotations

import math
from collections.abc import Callable

LAST = 0.01  # of the rate, at the end

SHAPES: dict[str, Callable[[float], float]] = {
    "cosine": lambda t: LAST + (1 - LAST) * 0.5 * (1 + math.cos(math.pi * t)),
    "linear": lambda t: LAST + (1 - LAST) * (1 - t),
    "constant": lambda t: 1.0,
}


def rate_at(shape: str, step: int, steps: int, warm_up: int) -> float:
    """The share of the rate at a step, counted from 0."""
    if step < warm_up:
        return (step + 1) / warm_up
    done = (step - warm_up) / max(1, steps - warm_up)
    return SHAPES[shape](min(1.0, done))
