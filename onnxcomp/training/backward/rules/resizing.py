"""Derivatives of resizing: along each axis it is a product with a matrix, which resizing the unit matrix shows.

y = R x along an axis        dx = R' dy along it
"""

from __future__ import annotations

from onnx import TensorProto

from onnxcomp.graph.ir.query import constant_value
from onnxcomp.training.backward.rule import Adjoints, At, NoRuleError, rule
from onnxcomp.training.backward.rules.moving import INT32, moved, put_back
from onnxcomp.training.backward.values import Symbol

FLOAT = int(TensorProto.FLOAT)


@rule("Resize")
def resize(at: At) -> Adjoints:
    if at.attr("coordinate_transformation_mode", "half_pixel") == "tf_crop_and_resize":
        raise NoRuleError("it crops")
    if at.attr("mode", "nearest") == "nearest":
        return put_back(at, moved(at, element=INT32), at.dy)
    if at.attr("keep_aspect_ratio_policy", "stretch") != "stretch":
        raise NoRuleError("it keeps the ratio of its axes")
    made = at.dy
    for axis in _resized(at):
        made = _along(at, made, axis)
    return made


def _resized(at: At) -> list[int]:
    """The axes along which anything happens, as far as the model says."""
    rank = at.rank(at.x)
    axes = [each % rank for each in at.attr("axes") or range(rank)]
    scales = constant_value(at.needs(2).tensor) if at.input(2) is not None else None
    before, after = (at.write.shapes.shape(each.tensor) or (None,) * rank for each in (at.x, at.y))
    if scales is not None and scales.size:
        kept = [axis for axis, scale in zip(axes, scales.reshape(-1).tolist(), strict=True) if scale == 1.0]
    else:
        is_open = [None in (before[axis], after[axis]) for axis in range(rank)]
        kept = [
            axis
            for axis in axes
            if (axis < 2 < rank if is_open[axis] else before[axis] == after[axis])  # batch and channels stay
        ]
    return [axis for axis in axes if axis not in kept]


def _along(at: At, adjoint: Symbol, axis: int) -> Symbol:
    """R' along one axis."""
    rank = at.rank(at.x)
    if axis == 0:
        raise NoRuleError("it resizes the first axis")
    order = [*(each for each in range(rank) if each != axis), axis]
    back = [order.index(each) for each in range(rank)]
    return at.op("MatMul", adjoint.transpose(order), _matrix(at, axis)).transpose(back)


def _matrix(at: At, axis: int) -> Symbol:
    """R', (size before, size after), as what resizing does to each row of the unit matrix."""
    rank, write = at.rank(at.x), at.write
    size = write.size(at.x, axis)
    ones: list[Symbol | list[int]] = [[1]] * rank
    unit = at.op("EyeLike", write.zeros(write.joined([size, size]), at.dy.data_type))
    shaped = unit.reshape(write.joined([size, *ones[1:axis], size, *ones[axis + 1 :]]))
    attrs = {name: value for name, value in at.node.attrs.items() if name != "axes"}
    scales = at.input(2)
    axes = [each % rank for each in at.attr("axes") or range(rank)]
    if scales is not None and at.input(3) is None:
        place = axes.index(axis)
        one = write.alike(1.0, scales).reshape([1])
        own = scales.slice([place], [place + 1], [0])
        factors = at.op("Concat", *(own if each == axis else one for each in range(rank)), axis=0)
        made = at.op("Resize", shaped, None, factors, **attrs)
    else:
        sizes = write.joined([size, *ones[1:axis], write.size(at.y, axis), *ones[axis + 1 :]])
        made = at.op("Resize", shaped, None, None, sizes, **attrs)
    return made.reshape(write.joined([size, [-1]])).turned(2)
