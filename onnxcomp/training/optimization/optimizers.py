"""Steps along gradients, relative to the size of what is moved.

    Adam   m <- b1 m + (1 - b1) g,  v <- b2 v + (1 - b2) g^2,   w <- w - rate * unit * m' / (sqrt(v') + eps)
    SGD    m <- b m + unit^2 g / |g unit|,                      w <- w - rate * m

unit: the size of a typical value of the array. A rate of 0.01 moves a weight by a hundredth of that in a step, whatever
scale the model is in, so that one default serves all (as LARS and LAMB do by layer, https://arxiv.org/abs/1904.00962).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
Named = dict[str, Array]

BETA1, BETA2, EPSILON = 0.9, 0.999, 1e-8
MOMENTUM = 0.9
LEAST_NORM = 1e-30


@dataclass
class Optimizer(ABC):
    """state: arrays that the next step depends on, by name; count: of the steps so far."""

    units: Mapping[str, Array]
    state: Named = field(default_factory=dict)
    count: int = 0

    def step(self, arrays: Named, gradients: Mapping[str, Array], rate: float) -> None:
        """Move the arrays, in place."""
        self.count += 1
        for name, gradient in gradients.items():
            arrays[name] = (arrays[name] - rate * self._move(name, gradient)).astype(np.float32)

    @abstractmethod
    def _move(self, name: str, gradient: Array) -> Array:
        """What an array moves by at a rate of 1; the moments are taken on."""

    def _held(self, name: str, like: Array) -> Array:
        return self.state.setdefault(name, np.zeros(like.shape, np.float32))


@dataclass
class Adam(Optimizer):
    """Kingma and Ba 2015, https://arxiv.org/abs/1412.6980, with steps in units of the arrays."""

    def _move(self, name: str, gradient: Array) -> Array:
        first, second = self._held(f"{name}/m", gradient), self._held(f"{name}/v", gradient)
        first += (1 - BETA1) * (gradient - first)
        second += (1 - BETA2) * (np.square(gradient) - second)
        size = np.sqrt(second / (1 - BETA2**self.count)) + least_of(second, EPSILON)
        moved: Array = self.units[name] * (first / (1 - BETA1**self.count)) / size
        return moved


@dataclass
class Sgd(Optimizer):
    """Gradient descent with momentum; each array's gradient is brought to the array's own size."""

    def _move(self, name: str, gradient: Array) -> Array:
        held = self._held(f"{name}/m", gradient)
        scaled = gradient * self.units[name]
        norm = float(np.sqrt(np.square(scaled, dtype=np.float64).mean())) if scaled.size else 0.0
        held *= MOMENTUM
        held += (1 - MOMENTUM) * scaled / max(norm, LEAST_NORM)
        moved: Array = self.units[name] * held
        return moved


OPTIMIZERS: dict[str, type[Optimizer]] = {"adam": Adam, "sgd": Sgd}


def least_of(second: Array, share: float) -> float:
    """What keeps Adam's divisor from zero: a share of the array's typical gradient, since losses have any scale."""
    typical = float(np.sqrt(second.mean(dtype=np.float64))) if second.size else 0.0
    return max(share * typical, LEAST_NORM)
