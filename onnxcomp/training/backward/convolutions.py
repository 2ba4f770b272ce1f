"""Derivatives of convolutions.

A kernel's derivative is a product of the adjoint with the parts of the input that each of the kernel's places saw; a
convolution with a kernel as large as the adjoint would say the same, and takes many times as long.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

from onnxcomp.graph.ir.query import ints
from onnxcomp.training.backward.rules import Adjoints, At, rule
from onnxcomp.training.backward.values import Operand, Value

MANY_CHANNELS = 16  # of as many, a product for each place of a kernel is as fast as one for all, in less memory
FLIPPED_CHANNELS = 32  # from as many on, a convolution with the kernel flipped is as fast as one turned round


@dataclass(frozen=True)
class Window:
    """How a kernel moves over its input.

    before, after: rows of zeros around the input for each spatial axis; known now, or vectors that the run computes.
    """

    kernel: tuple[int, ...]
    strides: tuple[int, ...]
    dilations: tuple[int, ...]
    before: Operand
    after: Operand

    @property
    def spans(self) -> list[int]:
        """How many rows the kernel covers."""
        return [(size - 1) * step + 1 for size, step in zip(self.kernel, self.dilations, strict=True)]

    @property
    def is_padded(self) -> bool:
        """Whether there may be zeros around the input."""
        return isinstance(self.before, Value) or any([*self.before, *self.after])  # type: ignore[misc]


def kernel_sizes(at: At, kernel: Value) -> Sequence[int]:
    """The spatial sizes of the kernel."""
    stated: Sequence[int] | None = at.attr("kernel_shape")
    return stated or at.static(kernel, "its kernel")[2:]


def window_of(at: At, kernel: Sequence[int], data: Value) -> Window:
    """How the node's kernel moves over ``data``, with padding worked out."""
    count = len(kernel)
    strides = tuple(at.attr("strides") or [1] * count)
    dilations = tuple(at.attr("dilations") or [1] * count)
    pads = list(at.attr("pads") or [0] * (2 * count))
    made = Window(tuple(kernel), strides, dilations, pads[:count], pads[count:])
    auto = at.attr("auto_pad", "NOTSET")
    if auto == "VALID":
        return Window(made.kernel, strides, dilations, [0] * count, [0] * count)
    if auto not in ("SAME_UPPER", "SAME_LOWER"):
        return made
    before, after = _same_padding(at, made, data)
    return Window(made.kernel, strides, dilations, *((before, after) if auto == "SAME_UPPER" else (after, before)))


def _same_padding(at: At, window: Window, data: Value) -> tuple[Operand, Operand]:
    """The smaller and the larger half of the zeros with which there are ceil(size / stride) places."""
    shape = at.write.shapes.shape(data.tensor)
    if shape is not None and all(size is not None for size in shape[2:]):
        total = [
            max((-(-int(size or 0) // stride) - 1) * stride + span - int(size or 0), 0)
            for size, stride, span in zip(shape[2:], window.strides, window.spans, strict=True)
        ]
        return [each // 2 for each in total], [each - each // 2 for each in total]
    strides = list(window.strides)
    sizes = at.op("Shape", data, start=2)
    places = (sizes + [each - 1 for each in strides]) / strides
    total_pads = at.op("Max", (places - 1) * strides + window.spans - sizes, 0)
    half = total_pads / 2
    return half, total_pads - half


def padded(data: Value, window: Window) -> Value:
    """The input with the zeros around it."""
    join = data.write.joined
    return data.pad(join([[0, 0], window.before]), join([[0, 0], window.after])) if window.is_padded else data


def kernel_gradient(at: At, data: Value, adjoint: Value, places: Value, window: Window, group: int) -> Value:
    """d loss / d kernel, in the order of (M, C / group, *kernel).

    data: (N, C, *sizes), with its padding. adjoint: (N, M, *places), of the shape of ``places``, a tensor of the model.
    """
    offsets = list(itertools.product(*map(range, window.kernel)))
    outer, inner = _channels(at.needs(1))
    if group > 1 and (outer, inner) == (group, 1):
        axes = [0, *range(2, 2 + len(window.kernel))]
        sums = [(_seen_by(at, data, each, places, window) * adjoint).sum(axes) for each in offsets]
        return at.op("Concat", *(each.unsqueeze([1]) for each in sums), axis=1)
    is_small = group == 1 and _is_small(
        outer * inner * len(offsets), outer + inner, at.write.sizes(places, 2, 2 + len(window.kernel))
    )
    first = [0, 1] if is_small else [1, 0]
    order = [*first, *range(2, 2 + len(window.kernel))]
    seen, rows = data.transpose(order), adjoint.transpose(order)
    parts = [_seen_by(at, seen, each, places, window) for each in offsets]
    if group > 1:
        stacked = _stacked(at, [_grouped(at, each, group) for each in parts], 1)
        product = at.op("MatMul", _grouped(at, rows, group), stacked.transpose([0, 2, 1]))
        return product.reshape([0, 0, len(parts), -1]).transpose([0, 1, 3, 2])
    product_of = _summed_product if is_small else _product
    shape = [0, 0, -1] if is_small else [0, -1]
    flat, rows = [each.reshape(shape) for each in parts], rows.reshape(shape)
    if inner >= MANY_CHANNELS:
        return at.op("Concat", *(product_of(rows, each).unsqueeze([2]) for each in flat), axis=2)
    product = product_of(rows, _stacked(at, flat, len(shape) - 2))
    return product.reshape([0, len(parts), -1]).transpose([0, 2, 1])


def _product(rows: Value, columns: Value) -> Value:
    """(M, N * places) by (C, N * places)."""
    return rows.write.op("Gemm", rows, columns, transB=1)


def _summed_product(rows: Value, columns: Value) -> Value:
    """(N, M, places) by (N, C, places), summed over N."""
    return rows.write.op("MatMul", rows, columns.transpose([0, 2, 1])).sum([0])


def _channels(kernel: Value) -> tuple[int, int]:
    """The first two sizes of a kernel: (M, C / group) of a convolution; zeros where they are not known."""
    shape = kernel.write.shapes.static(kernel.tensor)
    return (shape[0], shape[1]) if shape else (0, 0)


def _is_small(size: int, channels: int, places: Value) -> bool:
    """Whether a kernel for each sample, to be summed, takes less than turning data and adjoint round."""
    spatial = ints(places.tensor)
    return spatial is not None and 0 < size < channels * math.prod(spatial)


def _stacked(at: At, parts: list[Value], axis: int) -> Value:
    return at.op("Concat", *parts, axis=axis) if len(parts) > 1 else parts[0]


def _grouped(at: At, rows: Value, group: int) -> Value:
    """(C, N, *places) as (group, C / group, N * places)."""
    inner = rows.reshape([0, -1])
    return inner.reshape(at.write.joined([[group, -1], at.op("Shape", inner, start=1)]))


def _seen_by(at: At, data: Value, offset: Sequence[int], places: Value, window: Window) -> Value:
    """What one place of the kernel sees: the rows from its offset on, a stride apart, as many as there are places."""
    starts = [place * step for place, step in zip(offset, window.dilations, strict=True)]
    if set(window.kernel) == {1} and set(window.strides) == {1}:
        return data
    axes = list(range(2, 2 + len(starts)))
    sizes = at.write.sizes(places, 2, 2 + len(starts))
    last = ints(sizes.tensor)
    ends: Operand
    if last is not None:
        ends = [(size - 1) * step + 1 + start for size, step, start in zip(last, window.strides, starts, strict=True)]
    else:
        ends = (sizes - 1) * list(window.strides) + [start + 1 for start in starts]
    return data.slice(starts, ends, axes, None if set(window.strides) == {1} else list(window.strides))


def input_gradient(
    at: At, adjoint: Value, kernel: Value, window: Window, group: int, data: Value, places: Value
) -> Value:
    """d loss / d input of the shape of ``data``, by the convolution turned round.

    adjoint: of the shape of ``places``; both are tensors of the model.
    """
    if _turns_plainly(kernel, window, group):
        return _by_flipped_kernel(at, adjoint, kernel, window, group)
    count, write = len(window.kernel), at.write
    attrs: dict[str, Any] = {"strides": list(window.strides), "dilations": list(window.dilations), "group": group}
    attrs["kernel_shape"] = list(window.kernel)
    whole, small = (ints(write.sizes(each, 2, 2 + count).tensor) for each in (data, places))
    if whole is not None and small is not None and not isinstance(window.before, Value):
        pads, extra, more = _turned_padding(window, whole, small)
        return at.op("ConvTranspose", adjoint, kernel, pads=[*pads, *extra], output_padding=more, **attrs)
    everything = at.op("ConvTranspose", adjoint, kernel, output_padding=[each - 1 for each in window.strides], **attrs)
    starts = write.alike(window.before, everything)
    return everything.slice(starts, starts + write.sizes(data, 2, 2 + count), list(range(2, 2 + count)))


def _turns_plainly(kernel: Value, window: Window, group: int) -> bool:
    """Whether a convolution with the kernel flipped does, and is the faster: few channels are turned quicker."""
    outer, inner = _channels(kernel)
    if set(window.strides) != {1} or isinstance(window.before, Value) or not outer:
        return False
    reach = [*zip(window.spans, window.before, strict=True), *zip(window.spans, window.after, strict=True)]  # type: ignore[arg-type]
    if any(not 0 <= pad < span for span, pad in reach):
        return False
    return set(window.kernel) == {1} or inner >= FLIPPED_CHANNELS or (outer, inner) == (group, 1)


def _by_flipped_kernel(at: At, adjoint: Value, kernel: Value, window: Window, group: int) -> Value:
    """The kernel's places in reverse, its inputs and outputs in each other's place."""
    outer, inner = _channels(kernel)
    count = len(window.kernel)
    before, after = (cast("list[int]", each) for each in (window.before, window.after))
    if (outer, inner) != (group, 1):
        split = kernel.reshape([group, outer // group, inner, *window.kernel])
        turned = split.transpose([0, 2, 1, *range(3, 3 + count)])
        kernel = turned.reshape([group * inner, outer // group, *window.kernel])
    axes = [axis for axis, size in enumerate(window.kernel, 2) if size > 1]
    if axes:
        kernel = kernel.slice([-1] * len(axes), [-(2**31)] * len(axes), axes, [-1] * len(axes))
    pads = [span - 1 - pad for ends in (before, after) for span, pad in zip(window.spans, ends, strict=True)]
    return at.op("Conv", adjoint, kernel, group=group, dilations=list(window.dilations), pads=pads)


def _turned_padding(window: Window, whole: list[int], small: list[int]) -> tuple[list[int], list[int], list[int]]:
    """What to cut before and after, and to add after, for the turned convolution to give the input's sizes."""
    before, after, more = list(cast("list[int]", window.before)), list(cast("list[int]", window.after)), []
    for axis, (size, places) in enumerate(zip(whole, small, strict=True)):
        reached = (places - 1) * window.strides[axis] + window.spans[axis] - before[axis] - after[axis]
        more.append(max(size - reached, 0))
        after[axis] += max(reached - size, 0)  # rounded up, the last window reached beyond the padding
    return before, after, more


@rule("Conv")
def conv(at: At) -> Adjoints:
    x, kernel = at.needs(0), at.needs(1)
    window, group = window_of(at, kernel_sizes(at, kernel), x), int(at.attr("group", 1))
    by_x = input_gradient(at, at.dy, kernel, window, group, x, at.y) if at.wanted[0] else None
    if not any(at.wanted[1:]):
        return (by_x,)
    by_bias = at.dy.sum([0, *range(2, 2 + len(window.kernel))])
    if not at.wanted[1]:
        return by_x, None, by_bias
    by_kernel = kernel_gradient(at, padded(x, window), at.dy, at.y, window, group)
    return by_x, by_kernel.shaped(at.shape(kernel)), by_bias


@rule("ConvTranspose")
def conv_transpose(at: At) -> Adjoints:
    """The convolution's derivatives with input and output in each other's place."""
    x, kernel = at.needs(0), at.needs(1)
    window, group = turned_window_of(at, kernel_sizes(at, kernel)), int(at.attr("group", 1))
    count = len(window.kernel)
    wide = padded(at.dy, window)
    kept = at.op("Conv", wide, kernel, strides=list(window.strides), dilations=list(window.dilations), group=group)
    by_x = kept.slice([0] * count, at.write.sizes(x, 2, 2 + count), list(range(2, 2 + count)))
    by_kernel = kernel_gradient(at, wide, x, x, window, group).shaped(at.shape(kernel))
    return by_x, by_kernel, at.dy.sum([0, *range(2, 2 + count)])


def turned_window_of(at: At, kernel: Sequence[int]) -> Window:
    """How the kernel of a transposed convolution moves over its output."""
    window = window_of(at, kernel, at.x)
    auto = at.attr("auto_pad", "NOTSET")
    if auto not in ("SAME_UPPER", "SAME_LOWER") and not at.attr("output_shape"):
        return window
    small, whole = at.static(at.x, "its input"), at.static(at.y, "its output")
    extra = at.attr("output_padding") or [0] * len(kernel)
    total = [
        (size - 1) * stride + more + span - out
        for size, out, stride, more, span in zip(small[2:], whole[2:], window.strides, extra, window.spans, strict=True)
    ]
    halves, rest = [each // 2 for each in total], [each - each // 2 for each in total]
    before, after = (halves, rest) if auto == "SAME_UPPER" else (rest, halves)
    return Window(window.kernel, window.strides, window.dilations, before, after)
