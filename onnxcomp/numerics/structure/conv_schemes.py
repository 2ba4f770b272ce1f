"""Ways to take a convolution's kernel apart into a chain of smaller ones, as products of tensors.

    W (g, o, i, x, y)                                   g groups, o outputs, i inputs, x y the kernel
    channel     sum_r A(o, r) B(r, i, x, y)             k x k to r channels, then 1 x 1        (Denil et al. 2013)
    spatial     sum_r A(o, r, y) B(r, i, x)             k x 1, then 1 x k                      (Jaderberg et al. 2014)
    tucker      sum_rs A(o, r) B(r, s, x, y) C(s, i)    1 x 1, k x k, 1 x 1                    (Kim et al. 2015)
    cp          sum_r A(o, r) X(r, x) Y(r, y) C(r, i)   1 x 1, k x 1, 1 x k, 1 x 1, the middle ones depthwise
                                                                                               (Lebedev et al. 2014)
    depthwise   sum_m A(o, i, m) B(i, m, x, y)          k x k depthwise with m outputs each, then 1 x 1
                                                                                               (Guo et al. 2018)

Kernels of one and of three axes likewise: spatial parts the first axis from the others, cp takes each by itself.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
Ranks = tuple[int, ...]

SCHEMES = ("channel", "spatial", "tucker", "cp", "depthwise")
AXES = "xyzuvw"


@dataclass(frozen=True)
class Kernel:
    """The sizes of a kernel: of its groups, each with ``outputs`` and ``inputs``, over the spatial axes ``extent``."""

    groups: int
    outputs: int
    inputs: int
    extent: tuple[int, ...]

    @property
    def size(self) -> int:
        """The number of its values."""
        return self.groups * self.outputs * self.inputs * math.prod(self.extent)


@dataclass(frozen=True)
class ChainLink:
    """One convolution of a chain: the sizes of its weight, groups and all, and how many groups it has."""

    shape: tuple[int, ...]
    groups: int

    @property
    def extent(self) -> tuple[int, ...]:
        """The kernel's, one number for each spatial axis."""
        return self.shape[2:]

    @property
    def size(self) -> int:
        """The number of its values."""
        return math.prod(self.shape)


def is_apt(scheme: str, kernel: Kernel) -> bool:
    """Whether the scheme is another form than the kernel, and of fewer values for some rank."""
    beyond = sum(size > 1 for size in kernel.extent)
    if kernel.size < 2 or not beyond:
        return False
    if scheme == "spatial":
        return kernel.extent[0] > 1 and math.prod(kernel.extent[1:]) > 1
    if scheme in ("tucker", "cp", "depthwise"):
        return kernel.inputs > 1 and kernel.outputs > 1
    return kernel.outputs > 1


def full_ranks(scheme: str, kernel: Kernel) -> Ranks:
    """The ranks from which on the scheme holds any kernel of these sizes (of cp a bound)."""
    outputs, inputs, taps = kernel.outputs, kernel.inputs, math.prod(kernel.extent)
    match scheme:
        case "channel":
            return (min(outputs, inputs * taps),)
        case "spatial":
            return (min(inputs * kernel.extent[0], outputs * math.prod(kernel.extent[1:])),)
        case "tucker":
            return min(outputs, inputs * taps), min(inputs, outputs * taps)
        case "depthwise":
            return (min(outputs, taps),)
    sizes = sorted((outputs, inputs, *kernel.extent))
    return (math.prod(sizes[:-1]),)


def parts(scheme: str, kernel: Kernel, ranks: Ranks) -> list[ChainLink]:
    """The convolutions of the chain, first to last."""
    g, o, i, extent = kernel.groups, kernel.outputs, kernel.inputs, kernel.extent
    ones = (1,) * len(extent)
    r = ranks[0]
    match scheme:
        case "channel":
            return [ChainLink((g * r, i, *extent), g), ChainLink((g * o, r, *ones), g)]
        case "spatial":
            return [ChainLink((g * r, i, extent[0], *ones[1:]), g), ChainLink((g * o, r, 1, *extent[1:]), g)]
        case "tucker":
            s = ranks[1]
            first = [ChainLink((g * s, i, *ones), g)] if s < i else []
            last = [ChainLink((g * o, r, *ones), g)] if r < o else []
            return [*first, ChainLink((g * r, s, *extent), g), *last]
        case "depthwise":
            return [ChainLink((g * i * r, 1, *extent), g * i), ChainLink((g * o, i * r, *ones), g)]
    along = [ChainLink((g * r, 1, *_alone(extent, axis)), g * r) for axis in range(len(extent)) if extent[axis] > 1]
    return [ChainLink((g * r, i, *ones), g), *along, ChainLink((g * o, r, *ones), g)]


def product(scheme: str, kernel: Kernel) -> tuple[list[str], str]:
    """The indices of the factors, last convolution first, and those of their product, as einsum takes them."""
    axes = AXES[: len(kernel.extent)]
    match scheme:
        case "channel":
            return ["gor", f"gri{axes}"], f"goi{axes}"
        case "spatial":
            return [f"gor{axes[1:]}", f"gri{axes[0]}"], f"goi{axes}"
        case "tucker":
            return ["gor", f"grs{axes}", "gsi"], f"goi{axes}"
        case "depthwise":
            return ["goim", f"gim{axes}"], f"goi{axes}"
    return ["gor", *(f"gr{each}" for each in axes[::-1]), "gri"], f"goi{axes}"


def factor_shapes(scheme: str, kernel: Kernel, ranks: Ranks) -> list[tuple[int, ...]]:
    """The shapes of the factors as ``product`` names them."""
    axes = AXES[: len(kernel.extent)]
    sizes = {"g": kernel.groups, "o": kernel.outputs, "i": kernel.inputs, **dict(zip(axes, kernel.extent, strict=True))}
    sizes["m" if scheme == "depthwise" else "r"] = ranks[0]
    if scheme == "tucker":
        sizes["s"] = ranks[1]
    indices, _ = product(scheme, kernel)
    return [tuple(sizes[each] for each in own) for own in indices]


def multiplied(scheme: str, kernel: Kernel, factors: Sequence[Array]) -> Array:
    """The kernel (g, o, i, *extent) that the factors make."""
    indices, result = product(scheme, kernel)
    return folded(indices[::-1], result, factors[::-1])


def folded(indices: Sequence[str], result: str, arrays: Sequence[Array]) -> Array:
    """The arrays multiplied one after the other, group by group ("g" is the first index of all), and summed over what
    neither the result nor a later array has: sums over one index that two share go to the BLAS."""
    made = [_folded([each[1:] for each in indices], result[1:], own) for own in zip(*arrays, strict=True)]
    return np.stack(made)


def _folded(indices: Sequence[str], result: str, arrays: Sequence[Array]) -> Array:
    held, have = arrays[0], indices[0]
    for at in range(1, len(arrays)):
        wanted = set(result).union(*indices[at + 1 :])
        kept = "".join(each for each in dict.fromkeys(have + indices[at]) if each in wanted)
        held, have = np.einsum(f"{have},{indices[at]}->{kept}", held, arrays[at], optimize=True), kept
    made: Array = np.einsum(f"{have}->{result}", held)
    return made


def chained(scheme: str, kernel: Kernel, ranks: Ranks, factors: Sequence[Array]) -> list[tuple[Array, int]]:
    """The weights of the convolutions and their groups, first to last; both ends of a tucker that are of full rank
    are multiplied into its middle."""
    held = list(factors)
    if scheme == "tucker":
        if ranks[1] == kernel.inputs:
            held[1:] = [np.einsum("grs...,gsi->gri...", held[1], held[2])]
        if ranks[0] == kernel.outputs:
            held[:2] = [np.einsum("gor,grs...->gos...", held[0], held[1])]
    if scheme == "cp":
        held = [each for each, size in zip(held, (0, *kernel.extent[::-1], 0), strict=True) if size != 1]
        held[0] = _with_single_taps(held[0], factors, kernel)
    sizes = parts(scheme, kernel, ranks)
    return [(each.reshape(part.shape), part.groups) for each, part in zip(held[::-1], sizes, strict=True)]


def share_of_macs(sizes: Sequence[ChainLink], kernel: Kernel, strides: Sequence[int]) -> float:
    """Multiply-accumulates of a chain over those of the kernel: what stands before an axis is strided over meets more
    places than the outputs have."""
    held = holders(sizes, len(kernel.extent))
    total = 0
    for at, part in enumerate(sizes):
        later = [step for step, holder in zip(strides, held, strict=True) if holder > at]
        total += part.size * math.prod(later)
    return total / kernel.size


def holders(sizes: Sequence[ChainLink], rank: int) -> list[int]:
    """For each spatial axis the convolution of a chain that moves along it: the first that extends along it, the very
    first where none does."""
    return [next((at for at, part in enumerate(sizes) if part.extent[axis] > 1), 0) for axis in range(rank)]


def _alone(extent: tuple[int, ...], axis: int) -> tuple[int, ...]:
    return tuple(size if each == axis else 1 for each, size in enumerate(extent))


def _with_single_taps(last: Array, factors: Sequence[Array], kernel: Kernel) -> Array:
    """The last factor (g, o, r) times those of axes of one tap, which need no convolution."""
    for factor, size in zip(factors[1:-1], kernel.extent[::-1], strict=True):
        if size == 1:
            last = last * factor.reshape(kernel.groups, 1, -1)
    return last
