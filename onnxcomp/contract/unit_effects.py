"""What it does to the outputs that units go, to first order: Taylor importance.

    e_u = sum over what reads unit u of  g w  =  the unit's values times the gradient with respect to them

g is the gradient of a random direction of the outputs (``training.influence``), so that half of E e_u^2 is what the
model loses without the unit (Molchanov et al. 2019, https://arxiv.org/abs/1906.10771, who have labels and the gradient
of their loss, and take each unit by itself). What units have in common is in E e_u e_v: hence all of E e e^T.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from onnxcomp.contract.context import Context
from onnxcomp.contract.influence import LACKS, NO_TIME, draws, is_told
from onnxcomp.graph.channels.dependencies import Dependencies, DependencyGroup
from onnxcomp.graph.cutting.readers import Consumer, Consumers, owners
from onnxcomp.graph.ir.nodes import Array

NOT_READ = "nothing that gradients tell of reads it"


@dataclass(frozen=True)
class UnitEffects:
    """products: (units, units) E e e^T by group. lack: why there are none."""

    products: Mapping[str, Array] = field(default_factory=dict)
    lack: str = ""

    def lack_of(self, group: DependencyGroup) -> str:
        """Why there are none of a group; empty where there are."""
        return "" if group.name in self.products else self.lack or NOT_READ


def unit_effects(found: Dependencies, consumers: Consumers, context: Context) -> UnitEffects:
    """Those of all groups; the model remembers them."""
    memo = found.graph.model.memo
    key = (unit_effects, context.calibration, context.seed)
    if key not in memo:
        memo[key] = _drawn(found, consumers, context)
    known: UnitEffects = memo[key]
    return known


def _drawn(found: Dependencies, consumers: Consumers, context: Context) -> UnitEffects:
    readers = {
        group.name: [_Reader(each, group) for each in consumers.of(group) if is_told(found.graph, each.weight.tensor)]
        for group in found.groups
    }
    sizes = {group.name: group.units.size for group in found.groups if readers[group.name]}
    drawn = draws(found.graph, sorted({each.name for own in readers.values() for each in own}), context)
    if isinstance(drawn, str):
        return UnitEffects(lack=drawn)
    sums = {name: np.zeros((size, size)) for name, size in sizes.items()}

    def see(gradients: Mapping[str, Array]) -> None:
        for name, total in sums.items():
            effect = sum((each.effect(gradients[each.name]) for each in readers[name]), np.zeros(len(total)))
            total += np.outer(effect, effect)

    try:
        samples = drawn.run(see)
    except LACKS as error:
        return UnitEffects(lack=str(error))
    if not samples:
        return UnitEffects(lack=NO_TIME)
    return UnitEffects({name: total / samples for name, total in sums.items()})


class _Reader:
    """A weight that reads a group."""

    def __init__(self, consumer: Consumer, group: DependencyGroup) -> None:
        self.name = consumer.weight.name
        self._form = consumer.form
        self._values = np.asarray(consumer.form.pack(np.asarray(consumer.weight.values)), np.float64)
        self._units = owners(consumer.numbers.reshape(-1), group)
        self._count = group.units.size

    def effect(self, gradient: Array) -> Array:
        """e (units,), of what this weight reads."""
        sums = (self._form.pack(gradient) * self._values).sum(axis=1).reshape(-1)
        held = self._units >= 0
        return np.bincount(self._units[held], weights=sums[held], minlength=self._count)
