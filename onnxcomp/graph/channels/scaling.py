"""Scale channels: what makes them is divided by s, what reads them is multiplied by s, and no output changes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxcomp.graph.channels.groups import Bound, ChannelGroup, ChannelProduct, Channels, Factor
from onnxcomp.graph.channels.ids import padded
from onnxcomp.graph.ir.nodes import Array
from onnxcomp.graph.ir.reader import Graph
from onnxcomp.graph.ir.rewire import set_constant
from onnxcomp.graph.provenance import Origin
from onnxcomp.graph.weights.roles import Weight
from onnxcomp.graph.weights.value_pass import all_finite

Floats = NDArray[np.float64]
FLOAT_BYTES = 4  # shorter floats are scaled by less, for their exponents are few
LARGEST, LARGEST_OF_SHORT = 2.0**16, 2.0**4


def may_scale(group: ChannelGroup, selects: Callable[..., bool], excludes: Callable[..., bool]) -> bool:
    """Whether a group may be scaled: by its name, and with nothing excluded that scaling would change."""
    return selects(group.name) and not excludes(*group.touched)


def largest_factor(groups: list[ChannelGroup]) -> float:
    """The largest scale factor that cannot overflow the weights' types."""
    products = [each for group in groups for each in (*group.producers, *group.consumers)]
    short = any(each.weight.dtype.itemsize < FLOAT_BYTES for each in products)
    return LARGEST_OF_SHORT if short else LARGEST


def scale_channels(channels: Channels, factors: Floats) -> dict[str, Origin]:
    """Divide channels by their factors (count,), 1 for those that stay, without changing any output; what the tensors
    and weights that got other values were before, by key.

    ValueError, and nothing changed, where a weight would get values that are not finite.
    """
    by_number = factors[channels.sets.roots(np.arange(channels.sets.count))]
    origins = _scaled_tensors(channels, by_number)
    scaled = [
        (each.weight, scaled_weight(each, by_number[each.rows], by_number[each.columns]))
        for each in _scaled(channels, by_number)
    ]
    for weight, values in scaled:
        if not all_finite(values):
            raise ValueError(f"{weight.name} would get values that are not finite")
    for weight, values in scaled:
        weight.set(values)
    for each in _scaled(channels, by_number):
        origins |= weight_origins(each, by_number[each.rows], by_number[each.columns])
    for factor in channels.factors:
        if np.any(by_number[factor.numbers] != 1):
            origins |= _scale_factor(channels.graph, factor, by_number)
    for bound in channels.bounds:
        if np.any(by_number[bound.numbers] != 1):
            _split_bound(channels.graph, bound, by_number)
    return origins


def _scaled(channels: Channels, by_number: Floats) -> list[ChannelProduct]:
    return [
        each
        for each in channels.products
        if np.any(by_number[each.rows] != 1) or np.any(by_number[each.columns] != 1)
    ]


def _scaled_tensors(channels: Channels, by_number: Floats) -> dict[str, Origin]:
    """What becomes of the tensors between weights; of one of unknown rank nothing can be said."""
    origins = {}
    for tensor, (scope, numbers, rank) in channels.tensors.items():
        if np.all(by_number[numbers] == 1):
            continue
        key = scope.key(tensor.name)
        factor = None if rank is None else 1 / by_number[padded(numbers, rank)]
        origins[key] = Origin(None) if rank is None else Origin(key, rank, factor=factor)
    return origins


def weight_origins(product: ChannelProduct, rows: Floats, columns: Floats) -> dict[str, Origin]:
    """What a weight was before its rows (groups * outputs,) were divided, its columns (groups * inputs,) multiplied; of
    its transposed and reshaped forms nothing is said."""
    weight, form = product.weight, product.form
    factor = form.unpack(form.pack(np.ones(weight.shape)) * _spread(product, rows, columns))
    origins = {weight.scope.key(each.name): Origin(None) for each in _forms(weight)}
    return origins | {weight.name: Origin(weight.name, len(weight.shape), factor=factor.reshape(weight.shape))}


def _forms(weight: Weight) -> Iterator[Any]:
    """The tensors between a weight and the nodes that multiply with it."""
    readers = {id(role.node) for role in weight.roles}
    waiting = [weight.tensor]
    while waiting:
        made = [out for node in waiting.pop().outputs if id(node) not in readers for out in node.outputs]
        yield from made
        waiting += made


def _spread(product: ChannelProduct, rows: Floats, columns: Floats) -> Floats:
    """What the packed matrices (groups, outputs, length) are multiplied with."""
    form = product.form
    groups, outputs, length = form.pack(np.empty(product.weight.shape, np.bool_)).shape
    inputs = columns.size // groups
    spread = columns.reshape(groups, 1, inputs).repeat(length // max(1, inputs), axis=2)
    found: Floats = spread / rows.reshape(groups, outputs, 1)
    return found


def scaled_weight(product: ChannelProduct, rows: Floats, columns: Floats) -> Array:
    """The weight's values with its rows (groups * outputs,) divided and its columns (groups * inputs,) multiplied."""
    weight, form = product.weight, product.form
    dtype = np.float64 if weight.dtype == np.float64 else np.float32
    packed: Array = form.pack(weight.values).astype(dtype)
    groups, outputs, length = packed.shape
    inputs = columns.size // groups
    spread: Array = columns.reshape(groups, 1, inputs).repeat(length // max(1, inputs), axis=2).astype(dtype)
    with np.errstate(over="ignore"):
        scaled = packed * spread / rows.reshape(groups, outputs, 1).astype(dtype)
        return form.unpack(scaled.astype(weight.dtype)).reshape(weight.shape)


def _scale_factor(graph: Graph, factor: Factor, factors: Floats) -> dict[str, Origin]:
    """Scale what a node reads; what its constant was before, by key, where that holds the scaled values itself."""
    constant = factor.constant
    values = constant.values
    scale = factors[factor.numbers] ** factor.power
    made = (values.astype(np.float64) * scale).astype(values.dtype)
    set_constant(graph, factor.scope, factor.node, factor.index, made)
    if factor.constant is not constant:
        return {}
    key = graph.scope_of(constant).key(constant.name)
    return {key: Origin(key, made.ndim, factor=np.broadcast_to(scale, made.shape))}


def _split_bound(graph: Graph, bound: Bound, factors: Floats) -> None:
    """Clip(x, a, b) -> Min(Max(x, a / s), b / s), with a Relu where a is 0."""
    node, scale = bound.node, factors[bound.numbers]
    source, output = node.inputs[0], node.outputs[0]
    steps: list[tuple[str, list[Array]]] = []
    if bound.low == 0:
        steps.append(("Relu", []))
    elif bound.low is not None:
        steps.append(("Max", [(bound.low / scale).astype(bound.dtype)]))
    if bound.high is not None:
        steps.append(("Min", [(bound.high / scale).astype(bound.dtype)]))
    output.inputs.clear()
    for index, (op, limits) in enumerate(steps):
        constants = [graph.constant(bound.scope, f"{output.name}_bound", each) for each in limits]
        made = output if index == len(steps) - 1 else graph.variable(f"{output.name}_{op.lower()}")
        graph.node(bound.scope, op, [source, *constants], [made], before=node)
        source = made
    graph.remove_node(bound.scope, node)
