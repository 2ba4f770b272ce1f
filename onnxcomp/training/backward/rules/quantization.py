"""Derivatives of quantizing and dequantizing, straight through the rounding: composed, those of LSQ.

    q = clip(round(x / s) + z)        dx = dq / s,        ds = -dq * x / s^2      where x / s + z is within the range
    y = (q - z) * s                   dq = dy * s,        ds = dy * (q - z)

Steps of rounding pass for their mean slope, one; the paper is https://arxiv.org/abs/1902.08153. The adjoint of a whole
number is a float, of the scale's type.
"""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
from onnx import helper

from onnxcomp.training.backward.rule import Adjoints, At, NoRuleError, rule
from onnxcomp.training.backward.values import Symbol


def spread(at: At, per: Symbol, scale: Symbol, whole: Symbol) -> Symbol:
    """A scale, or a zero point of the same shape, so that it is broadcast to the tensor."""
    rank = at.rank(scale)
    if rank == 0 or at.static(scale, "its scale") == (1,):
        return per
    axis = at.axis(whole, 1)
    if rank == 1:
        return per.unsqueeze([each for each in range(at.rank(whole)) if each != axis])
    block = int(at.attr("block_size", 0))
    if not block:
        raise NoRuleError("its scale has more than one axis and no blocks")
    sizes = at.static(scale, "its scale")
    repeated = per.unsqueeze([axis + 1]).expand([*sizes[: axis + 1], block, *sizes[axis + 1 :]])
    flat = repeated.reshape([*sizes[:axis], sizes[axis] * block, *sizes[axis + 1 :]])
    return flat.slice([0], at.write.size(whole, axis), [axis])


def gathered(at: At, adjoint: Symbol, per: Symbol, whole: Symbol) -> Symbol:
    """The adjoint of a scale, of each element that it belongs to, summed."""
    rank = at.rank(per)
    if rank == 0:
        return adjoint.sum()
    if at.static(per, "its scale") == (1,):
        return adjoint.sum().reshape([1])
    axis = at.axis(whole, 1)
    if rank == 1:
        return adjoint.sum([each for each in range(at.rank(whole)) if each != axis])
    sizes, block = at.static(per, "its scale"), int(at.attr("block_size", 0))
    missing = at.write.alike([sizes[axis] * block], adjoint) - at.write.size(whole, axis)
    before = [0] * len(sizes)
    after = at.write.joined([before[:axis], missing, before[axis + 1 :]])
    return adjoint.pad(before, after).reshape([*sizes[: axis + 1], block, *sizes[axis + 1 :]]).sum([axis + 1])


@rule("QuantizeLinear")
def quantize(at: At) -> Adjoints:
    x, scale, zero = at.needs(0), at.needs(1), at.input(2)
    wide = spread(at, scale, scale, x)
    steps = x / wide
    place = steps if zero is None else steps + spread(at, zero.cast(x.data_type), scale, x)
    low, high = _range(at.y.data_type)
    adjoint = at.dy.only((place >= low) & (place <= high)) / wide
    return adjoint, gathered(at, -(adjoint * steps), scale, x)


@rule("DequantizeLinear")
def dequantize(at: At) -> Adjoints:
    codes, scale, zero = at.needs(0), at.needs(1), at.input(2)
    steps = codes.cast(at.y.data_type)
    if zero is not None:
        steps = steps - spread(at, zero.cast(at.y.data_type), scale, codes)
    return at.dy * spread(at, scale, scale, codes), gathered(at, at.dy * steps, scale, codes)


def _range(data_type: int) -> tuple[float, float]:
    dtype: Any = np.dtype(helper.tensor_dtype_to_np_dtype(data_type))
    limits: Any = ml_dtypes.iinfo if "int" in dtype.name else ml_dtypes.finfo
    return float(limits(dtype).min), float(limits(dtype).max)
