"""The weights that read a dependency group, as matrices with the unit of each column."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from onnxcomp.graph.channels.dependencies import Dependencies, DependencyGroup
from onnxcomp.graph.channels.ids import Numbers
from onnxcomp.graph.channels.owners import ChannelCut
from onnxcomp.graph.ir.nodes import Array, Constant
from onnxcomp.graph.weights.matrix_form import MatrixForm, matrix_form
from onnxcomp.graph.weights.roles import Weight, weights


@dataclass(frozen=True, eq=False)
class Consumer:
    """A weight that sums over channels.

    numbers: (groups, K) the channel that each column of its matrices reads.
    """

    weight: Weight
    form: MatrixForm
    numbers: Numbers

    def dropped(self, cut: ChannelCut) -> Array:
        """(groups, K) which columns read channels that go."""
        found: Array = ~cut.kept(self.numbers.reshape(-1), 0).reshape(self.numbers.shape)
        return found


class Consumers:
    """All weights of a model that sum over channels that can be cut."""

    def __init__(self, found: Dependencies) -> None:
        self._by_constant: dict[Constant, Consumer] = {}
        held = {each.tensor: each for each in weights(found.graph)}
        for each in found.slices:
            weight = held.get(each.constant)
            form = None if weight is None or not each.is_read else matrix_form(weight)
            if weight is None or form is None:
                continue
            spread = np.broadcast_to(each.numbers, weight.shape)
            numbers = form.pack(spread)[:, 0]
            self._by_constant[each.constant] = Consumer(weight, form, found.sets.roots(numbers))

    def all(self) -> Iterator[Consumer]:
        yield from self._by_constant.values()

    def of(self, group: DependencyGroup) -> list[Consumer]:
        """Those that read a group."""
        held = dict.fromkeys(each.constant for each in group.consumers)
        return [self._by_constant[each] for each in held if each in self._by_constant]


def owners(numbers: Numbers, group: DependencyGroup) -> Array:
    """For each channel its place among a group's units, -1 where it is none of them."""
    order = np.argsort(group.units)
    at = np.searchsorted(group.units[order], numbers)
    at = np.minimum(at, group.units.size - 1)
    found = order[at]
    return np.where(group.units[found] == numbers, found, -1)


def blind(consumers: Mapping[str, Consumer], cut: ChannelCut) -> None:
    """Put zeros where weights read channels that go: the model computes what it will when they are cut."""
    for each in consumers.values():
        dropped = each.dropped(cut)
        if dropped.any():
            packed = np.array(each.form.pack(np.asarray(each.weight.values)))
            packed[np.broadcast_to(dropped[:, None], packed.shape)] = 0
            each.weight.set(each.form.unpack(packed).reshape(each.weight.shape))
