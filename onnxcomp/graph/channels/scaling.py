"""Scale channels: what makes them is divided by s, what reads them is multiplied by s, and no output changes."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from onnxcomp.graph.channels.groups import Bound, ChannelGroup, Channels, Factor, Product
from onnxcomp.graph.ir.nodes import Array
from onnxcomp.graph.ir.reader import Graph
from onnxcomp.graph.weights.value_pass import all_finite

Floats = NDArray[np.float64]
LINEAR = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul"})  # what makes channels and has a weight
SHORT_FLOATS = 4  # bytes; shorter floats are scaled by less, for their exponents are few
LARGEST, LARGEST_OF_SHORT = 2.0**16, 2.0**4


def may_scale(group: ChannelGroup, selects: Callable[..., bool], excludes: Callable[..., bool]) -> bool:
    """Whether a group may be scaled: by its name, and with nothing excluded that scaling would change."""
    return selects(group.name) and not excludes(*group.touched)


def largest_factor(groups: list[ChannelGroup]) -> float:
    """The largest factor that the weights' types bear."""
    products = [each for group in groups for each in (*group.producers, *group.consumers)]
    short = any(each.weight.dtype.itemsize < SHORT_FLOATS for each in products)
    return LARGEST_OF_SHORT if short else LARGEST


def scale_channels(channels: Channels, factors: Floats) -> None:
    """Divide channels by their factors (count,), 1 for those that stay, without changing any output.

    ValueError, and nothing changed, where a weight would get values that are not finite.
    """
    by_number = factors[channels.sets.roots(np.arange(channels.sets.count))]
    scaled = [
        (each.weight, scaled_weight(each, by_number[each.rows], by_number[each.columns]))
        for each in channels.products
        if np.any(by_number[each.rows] != 1) or np.any(by_number[each.columns] != 1)
    ]
    for weight, values in scaled:
        if not all_finite(values):
            raise ValueError(f"{weight.name} would get values that are not finite")
    for weight, values in scaled:
        weight.set(values)
    for factor in channels.factors:
        if np.any(by_number[factor.numbers] != 1):
            _scale_factor(channels.graph, factor, by_number)
    for bound in channels.bounds:
        if np.any(by_number[bound.numbers] != 1):
            _split_bound(channels.graph, bound, by_number)


def scaled_weight(product: Product, rows: Floats, columns: Floats) -> Array:
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


def _scale_factor(graph: Graph, factor: Factor, factors: Floats) -> None:
    """Give the node a constant of its own where another one reads the old, or where it has to be spread."""
    constant = factor.constant
    values = constant.values
    wide = values.astype(np.float64) * factors[factor.numbers] ** factor.power
    made = wide.astype(values.dtype)
    if made.shape == values.shape and len(constant.outputs) == 1 and not graph.is_output(constant):
        constant.values = made
        return
    factor.node.inputs[factor.index] = graph.constant(factor.scope, constant.name, made)


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
