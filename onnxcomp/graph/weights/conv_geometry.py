"""The geometry that a Conv or ConvTranspose states, with the padding that auto_pad leaves to the input's size."""

from __future__ import annotations

from collections.abc import Callable

from onnxcomp.graph.ir.nodes import Node
from onnxcomp.numerics.arrays.im2col import Window

Spatial = tuple[int, ...]


def window_of(node: Node, kernel: Spatial) -> Callable[[Spatial], Window] | None:
    """For the spatial size of an input the window, or None for attributes that do not fit the kernel."""
    rank = len(kernel)
    strides = tuple(node.attrs.get("strides") or (1,) * rank)
    dilations = tuple(node.attrs.get("dilations") or (1,) * rank)
    flat = tuple(node.attrs.get("pads") or (0,) * (2 * rank))
    auto_pad = str(node.attrs.get("auto_pad", "NOTSET"))
    if len(strides) != rank or len(dilations) != rank or len(flat) != 2 * rank:
        return None
    transposed = node.op == "ConvTranspose"
    if transposed and (auto_pad not in ("NOTSET", "VALID") or node.attrs.get("output_shape")):
        return None

    def window(spatial: Spatial) -> Window:
        if auto_pad in ("SAME_UPPER", "SAME_LOWER"):
            pads = tuple(
                _same(size, k, step, dilation, upper=auto_pad == "SAME_UPPER")
                for size, k, step, dilation in zip(spatial, kernel, strides, dilations, strict=True)
            )
        else:
            stated = flat if auto_pad == "NOTSET" else (0,) * (2 * rank)
            pads = tuple(zip(stated[:rank], stated[rank:], strict=True))
        return Window(kernel, strides, dilations, pads, transposed)

    return window


def _same(size: int, kernel: int, stride: int, dilation: int, *, upper: bool) -> tuple[int, int]:
    """The padding (begin, end) for an output of ceil(size / stride)."""
    outputs = -(-size // stride)
    total = max(0, (outputs - 1) * stride + (kernel - 1) * dilation + 1 - size)
    small, large = total // 2, total - total // 2
    return (small, large) if upper else (large, small)
