"""Cut channels out of a model, or add some: every constant, size and position that goes with them.

    y = W2 f(W1 x + b)    becomes    y = W2[:, k] f(W1[k] x + b[k]),  k: the channels that stay
                          or         y = [W2 0] f([W1; 0] x + [b; 0])
"""

from __future__ import annotations

from typing import Any

import numpy as np

from onnxcomp.graph.channels.dependencies import Dependencies
from onnxcomp.graph.channels.ids import Numbers, padded
from onnxcomp.graph.channels.owners import ChannelChange, ChannelCut, ChannelWidening, ConstantSlices
from onnxcomp.graph.ir.nodes import Array, Constant
from onnxcomp.graph.ir.query import is_onnx
from onnxcomp.graph.ir.reader import Scope
from onnxcomp.graph.provenance import Origin, taken

Taken = dict[int, Array]  # by axis where each index of now stood before, or NEW


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
    return _change(found, cut)


def add_units(found: Dependencies, behind: int, count: int) -> dict[str, Origin]:
    """Put units of zeros behind one that is there, wherever it stands; what the graph's tensors were before, by key.

    Nothing that reads the new channels sees them, as long as they are finite: that they are is up to the caller.
    """
    unit = found.sets.roots(np.array([behind]))
    if bool(found.sets.is_fixed(unit).any()):
        raise ValueError("the channels have to stay")
    return _change(found, ChannelWidening(found.sets, int(unit[0]), count))


def _change(found: Dependencies, change: ChannelChange) -> dict[str, Origin]:
    origins: dict[str, Origin] = {}
    for tensor, (scope, numbers, rank) in found.tensors.items():
        if not change.touches(numbers):
            continue
        key = scope.key(tensor.name)
        origins[key] = Origin(None) if rank is None else Origin(key, rank, _indices(change, padded(numbers, rank)))
        tensor.origin, tensor.shape = None, None
        for reader in tensor.outputs:
            if is_onnx(reader, "Shape"):
                _forget(scope, reader.outputs[0], origins)
    _change_constants(found, change, origins)
    for owner in found.owners:
        owner.change(found.graph, change)
        if change.touches(owner.numbers) and is_onnx(owner.node, "Concat"):
            _forget(owner.scope, owner.node.outputs[0], origins)
    return origins


def _forget(scope: Scope, sizes: Any, origins: dict[str, Origin]) -> None:
    """Sizes are others now, and so is what is joined with them or cast."""
    origins[scope.key(sizes.name)] = Origin(None)
    for reader in sizes.outputs:
        if is_onnx(reader, "Concat", "Cast", "Identity"):
            _forget(scope, reader.outputs[0], origins)


def _indices(change: ChannelChange, numbers: Numbers) -> Taken:
    """For each axis that changes, where its indices stood."""
    found = {axis: change.taken(numbers, axis) for axis, size in enumerate(numbers.shape) if size > 1}
    return {axis: each for axis, each in found.items() if each.size != numbers.shape[axis]}


def _change_constants(found: Dependencies, change: ChannelChange, origins: dict[str, Origin]) -> None:
    """A constant that is the same to every reader is changed where it stands; else each reader gets its own."""
    by_reader: dict[Constant, dict[tuple[int, int], tuple[ConstantSlices, Taken]]] = {}
    for each in found.slices:
        indices = each.taken(change)
        if indices:
            readers = by_reader.setdefault(each.constant, {})
            _, known = readers.setdefault((id(each.reader), each.index), (each, {}))
            for axis, index in indices.items():
                differs = axis in known and not np.array_equal(known[axis], index)
                known[axis] = np.intersect1d(known[axis], index) if differs else index
            for tensor in each.path:
                tensor.origin, tensor.shape = None, None
                origins[each.scope.key(tensor.name)] = Origin(None)
    for constant, readers in by_reader.items():
        made = list(readers.values())
        reads = sum(tensor is constant for node in constant.outputs for tensor in set(node.inputs))
        if len(made) == reads and all(_same(indices, made[0][1]) for _, indices in made):
            key = found.graph.scope_of(constant).key(constant.name)
            origins[key] = Origin(key, len(constant.shape), made[0][1])
            constant.values = _values(constant, made[0][1])
            continue
        for each, indices in made:
            each.reader.inputs[each.index] = found.graph.constant(each.scope, constant.name, _values(constant, indices))


def _same(first: Taken, second: Taken) -> bool:
    return first.keys() == second.keys() and all(np.array_equal(first[axis], second[axis]) for axis in first)


def _values(constant: Constant, indices: Taken) -> Array:
    values: Any = np.asarray(constant.values)
    for axis, index in indices.items():
        values = taken(values, index, axis)
    return np.ascontiguousarray(values)
