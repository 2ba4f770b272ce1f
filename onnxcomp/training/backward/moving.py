"""Derivatives of what takes elements from places and puts them at others.

What an operator that only moves elements does, it also does to their numbers: moved by it, the numbers 0, 1, 2, ... of
the elements say where each output comes from, and the adjoints are added up there. That holds for any such operator;
those that are met often have a cheaper way.
"""

from __future__ import annotations

from typing import Any

from onnx import TensorProto

from onnxcomp.graph.ir.query import ints
from onnxcomp.training.backward.rules import ANY, Adjoints, At, NoRuleError, rule
from onnxcomp.training.backward.values import INT64, Value

INT32 = int(TensorProto.INT32)


def positions(at: At, *, element: int = INT64) -> Value:
    """The numbers of the first input's elements, in its shape."""
    size = at.op("Size", at.x)
    flat = at.op("Range", at.write.alike(0, size), size, at.write.alike(1, size))
    return flat.cast(element).shaped(at.shape(at.x))


def moved(at: At, *, element: int = INT64) -> Value:
    """Where each element of the output comes from."""
    others = [at.input(index) for index in range(1, len(at.node.inputs))]
    return at.op(at.node.op, positions(at, element=element), *others, type=element, **at.node.attrs).cast(INT64)


def put_back(at: At, places: Value, adjoint: Value, *, reduction: str = "add") -> Value:
    """Adjoints at places of the first input, counted over all of its elements, and zeros elsewhere."""
    zeros = at.write.zeros(at.op("Size", at.x).reshape([1]), adjoint.data_type)
    flat = at.op("ScatterElements", zeros, places.reshape([-1]), adjoint.reshape([-1]), axis=0, reduction=reduction)
    return flat.shaped(at.shape(at.x))


@rule("GatherND", "Compress", "ReverseSequence")
def by_positions(at: At) -> Adjoints:
    return put_back(at, moved(at), at.dy)


@rule("Reshape", "Flatten", "Squeeze", "Unsqueeze")
def reshape(at: At) -> Adjoints:
    return at.dy.shaped(at.shape(at.x))


@rule("Transpose")
def transpose(at: At) -> Adjoints:
    perm = at.attr("perm") or list(range(at.rank(at.x)))[::-1]
    return at.dy.transpose([perm.index(axis) for axis in range(len(perm))])


@rule("Concat")
def concat(at: At) -> Adjoints:
    if len(at.inputs) == 1:
        return at.dy
    axis = int(at.attr("axis"))
    sizes = at.write.joined([at.write.size(each, axis) for each in at.inputs])
    return at.write.ops("Split", at.dy, sizes, outputs=len(at.inputs), attrs={"axis": axis})


@rule("Split", outputs=ANY)
def split(at: At) -> Adjoints:
    parts = [
        at.write.zeros(at.shape(at.write.value(out)), at.filled.data_type) if adjoint is None else adjoint
        for out, adjoint in zip(at.node.outputs, at.adjoints, strict=True)
    ]
    return at.op("Concat", *parts, axis=int(at.attr("axis", 0)))


@rule("Slice")
def slice_(at: At) -> Adjoints:
    """Zeros around it where the steps are one and the sizes known."""
    cut = _cut(at)
    if cut is None:
        return put_back(at, moved(at), at.dy, reduction="none")
    return at.dy.pad(*cut)


def _cut(at: At) -> tuple[list[int], list[int]] | None:
    """How many rows a Slice leaves out before and after along each axis, where the model says."""
    starts, ends, steps = (ints(given.tensor) if (given := at.input(i)) else None for i in (1, 2, 4))
    shape = at.write.shapes.shape(at.x.tensor)
    if shape is None or starts is None or ends is None or (at.input(4) is not None and steps is None):
        return None
    named = ints(at.needs(3).tensor) if at.input(3) is not None else list(range(len(starts)))
    if named is None or any(step != 1 for step in steps or []):
        return None
    before, after = [0] * len(shape), [0] * len(shape)
    for axis, start, end in zip(named, starts, ends, strict=True):
        size = shape[axis]
        if size is None:
            return None
        first, last, _ = slice(start, end).indices(size)
        before[axis], after[axis] = first, size - max(last, first)
    return before, after


@rule("Pad")
def pad(at: At) -> Adjoints:
    """Rows of a constant are cut off again; others go back to where they were taken from."""
    mode = at.attr("mode", "constant")
    if mode != "constant":
        return put_back(at, moved(at), at.dy)
    pads, axes = at.needs(1), at.input(3)
    cut = at.op("Pad", at.dy, -pads, None, axes)
    if len(at.wanted) < 3 or not at.wanted[2]:
        return cut
    return cut, None, (at.dy.sum() - cut.sum()).shaped(at.shape(at.needs(2)))


@rule("Expand", broadcasts=True)
def expand(at: At) -> Adjoints:
    return at.dy


@rule("Tile")
def tile(at: At) -> Adjoints:
    """(r0 * d0, r1 * d1, ...) as (r0, d0, r1, d1, ...), summed over the repeats."""
    rank, repeats, sizes = at.rank(at.x), at.needs(1), at.shape(at.x)
    pairs = at.op("Concat", repeats.unsqueeze([1]), sizes.unsqueeze([1]), axis=1)
    return at.dy.reshape(pairs.reshape([-1])).sum(list(range(0, 2 * rank, 2)))


@rule("Gather")
def gather(at: At) -> Adjoints:
    """Rows are added up where they were taken from."""
    data, indices = at.needs(0), at.needs(1)
    rank, axis, taken = at.rank(data), at.axis(data, 0), at.rank(indices)
    places = indices.cast(INT64).unsqueeze([-1])
    front = [axis, *(each for each in range(rank) if each != axis)]
    shape = at.shape(data)
    if axis:
        shape = at.op("Gather", shape, front, axis=0)
    inside = range(axis, axis + taken)
    rows = at.dy.transpose([*inside, *(each for each in range(rank - 1 + taken) if each not in inside)])
    zeros = at.write.zeros(shape, at.dy.data_type)
    made = at.op("ScatterND", zeros, places, rows, reduction="add")
    return made.transpose([front.index(each) for each in range(rank)])


@rule("GatherElements")
def gather_elements(at: At) -> Adjoints:
    zeros = at.write.zeros(at.shape(at.x), at.dy.data_type)
    return at.op("ScatterElements", zeros, at.needs(1), at.dy, axis=int(at.attr("axis", 0)), reduction="add")


@rule("ScatterElements", "ScatterND")
def scatter(at: At) -> Adjoints:
    """What was written over has no part in the output; what was added to has."""
    indices, updates = at.needs(1), at.needs(2)
    reduction = at.attr("reduction", "none")
    if reduction not in ("none", "add"):
        raise NoRuleError(f"its reduction is {reduction}")
    axis: dict[str, Any] = {"axis": int(at.attr("axis", 0))} if at.node.op == "ScatterElements" else {}
    taken = at.op("GatherElements" if axis else "GatherND", at.dy, indices, **axis)
    if reduction == "add":
        return at.dy, None, taken
    zeros = at.write.zeros(at.shape(updates), at.dy.data_type)
    return at.op(at.node.op, at.dy, indices, zeros, **axis), None, taken


@rule("DepthToSpace")
def depth_to_space(at: At) -> Adjoints:
    """(N, C, H b, W b) as (N, C, H, b, W, b), the blocks moved back to where the channels had them."""
    block = int(at.attr("blocksize"))
    sizes = at.write.sizes(at.x, 2, 4)
    height, width = at.write.pieces(sizes, 2)
    parts = at.dy.reshape(at.write.joined([[0, -1], height, [block], width, [block]]))
    order = [0, 3, 5, 1, 2, 4] if at.attr("mode", "DCR") == "DCR" else [0, 1, 3, 5, 2, 4]
    return parts.transpose(order).shaped(at.shape(at.x))


@rule("SpaceToDepth")
def space_to_depth(at: At) -> Adjoints:
    mode = at.attr("mode", "DCR")
    return at.op("DepthToSpace", at.dy, blocksize=int(at.attr("blocksize")), mode=mode)


@rule("Trilu")
def trilu(at: At) -> Adjoints:
    return at.op("Trilu", at.dy, at.input(1), upper=int(at.attr("upper", 1)))


@rule("TopK")
def top_k(at: At) -> Adjoints:
    zeros = at.write.zeros(at.shape(at.x), at.dy.data_type)
    return at.op("ScatterElements", zeros, at.output(1, INT64), at.dy, axis=int(at.attr("axis", -1)))
