"""Cut channels out of a model: every constant, size and position that goes with them.

y = W2 f(W1 x + b)    becomes    y = W2[:, k] f(W1[k] x + b[k]),  k: the channels that stay
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxcomp.graph.channels.dependencies import Dependencies
from onnxcomp.graph.channels.ids import Numbers, padded
from onnxcomp.graph.channels.owners import ChannelCut, ConstantSlices
from onnxcomp.graph.ir.nodes import Constant
from onnxcomp.graph.ir.query import is_onnx
from onnxcomp.graph.ir.reader import Scope
from onnxcomp.graph.provenance import Origin

Kept = dict[int, NDArray[np.bool_]]


def remove_units(found: Dependencies, units: Numbers) -> dict[str, Origin]:
    """Cut units out of the graph; what its tensors were before, by key.

    ValueError, and nothing changed, where an axis would be left with nothing.
    """
    cut = ChannelCut(found.sets, units)
    if bool(found.sets.is_fixed(units).any()):
        raise ValueError("some of the channels have to stay")
    for numbers in found.counts():
        if not cut.kept(numbers, 0).any():
            raise ValueError("all channels of a tensor would go")
    origins: dict[str, Origin] = {}
    for tensor, (scope, numbers, rank) in found.tensors.items():
        if not cut.touches(numbers):
            continue
        key = scope.key(tensor.name)
        origins[key] = Origin(None) if rank is None else Origin(key, rank, _indices(cut, padded(numbers, rank)))
        tensor.origin, tensor.shape = None, None
        _forget(scope, tensor, "Shape", origins)
    _cut_constants(found, cut, origins)
    for owner in found.owners:
        owner.cut(found.graph, cut)
        if cut.touches(owner.numbers) and is_onnx(owner.node, "Concat"):
            _forget(owner.scope, owner.node.outputs[0], "Concat", origins)
            origins[owner.scope.key(owner.node.outputs[0].name)] = Origin(None)
    return origins


def _forget(scope: Scope, tensor: Any, op: str, origins: dict[str, Origin]) -> None:
    """Sizes that nodes of this operator read off a tensor, or join with it, are others now."""
    for reader in tensor.outputs:
        if is_onnx(reader, op):
            origins[scope.key(reader.outputs[0].name)] = Origin(None)
            _forget(scope, reader.outputs[0], op, origins)


def _indices(cut: ChannelCut, numbers: Numbers) -> dict[int, NDArray[np.int64]]:
    """For each axis that loses something, which indices stay."""
    kept = {axis: cut.kept(numbers, axis) for axis, size in enumerate(numbers.shape) if size > 1}
    return {axis: np.flatnonzero(each) for axis, each in kept.items() if not each.all()}


def _cut_constants(found: Dependencies, cut: ChannelCut, origins: dict[str, Origin]) -> None:
    """A constant of which every reader loses the same is cut where it stands; else each reader gets its own."""
    by_reader: dict[Constant, dict[tuple[int, int], tuple[ConstantSlices, Kept]]] = {}
    for each in found.slices:
        kept = each.kept(cut)
        if kept:
            readers = by_reader.setdefault(each.constant, {})
            _, known = readers.setdefault((id(each.reader), each.index), (each, {}))
            for axis, mask in kept.items():
                known[axis] = known[axis] & mask if axis in known else mask
            for tensor in each.path:
                tensor.origin, tensor.shape = None, None
                origins[each.scope.key(tensor.name)] = Origin(None)
    for constant, readers in by_reader.items():
        cuts = list(readers.values())
        reads = sum(tensor is constant for node in constant.outputs for tensor in set(node.inputs))
        if len(cuts) == reads and all(_same(kept, cuts[0][1]) for _, kept in cuts):
            key = found.graph.scope_of(constant).key(constant.name)
            indices = {axis: np.flatnonzero(mask) for axis, mask in cuts[0][1].items()}
            origins[key] = Origin(key, len(constant.shape), indices)
            constant.values = _taken(constant, cuts[0][1])
            continue
        for each, kept in cuts:
            each.reader.inputs[each.index] = found.graph.constant(each.scope, constant.name, _taken(constant, kept))


def _same(first: Kept, second: Kept) -> bool:
    return first.keys() == second.keys() and all(np.array_equal(first[axis], second[axis]) for axis in first)


def _taken(constant: Constant, kept: Kept) -> NDArray[Any]:
    values = np.asarray(constant.values)
    for axis, mask in kept.items():
        values = np.compress(mask, values, axis)
    return np.ascontiguousarray(values)
