"""Fits a product of tensors to a kernel: by singular values, then by what an error in it costs at the outputs.

    W ~ F1 x F2 x ..      of least   sum over the outputs of dW H dW^T,  dW = W - F1 x F2 x ..

H (i x y, i x y) are the second moments of the patches under the kernel. The last factor, which alone has the outputs'
index, is solved for; the others move by conjugate gradients on the same quadratic form, one after the other.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from onnxcomp.numerics.structure.conv_schemes import Kernel, Ranks, folded, multiplied, product

Array = NDArray[Any]
Factors = list[Array]

HOOI_ROUNDS = 3
CP_ROUNDS = 60
ROUNDS = 6  # of all factors
STEPS = 12  # of conjugate gradients for one factor
ENOUGH = 1e-3  # a round that lessens the error by no more, relative, is the last
RIDGE = 1e-9


def fitted(
    scheme: str, kernel: Kernel, target: Array, ranks: Ranks, *, weights: Array | None = None, seed: int = 0
) -> tuple[Factors, float]:
    """The factors, last convolution first, and the relative squared error of their product.

    target: (g, o, i, *extent) float64. weights: H (g or 1, n, n) with n = i * taps, None for the identity.
    """
    if weights is None:
        factors = _by_singular_values(scheme, kernel, target, ranks, seed)
        return factors, _relative(_error(kernel, target - multiplied(scheme, kernel, factors), None), target)
    scale = _input_scale(kernel, weights)
    factors = _by_singular_values(scheme, kernel, target * scale, ranks, seed)
    factors[-1] = factors[-1] / _spread(scheme, kernel, scale)
    return _refined(scheme, kernel, target, factors, weights)


def _by_singular_values(scheme: str, kernel: Kernel, target: Array, ranks: Ranks, seed: int) -> Factors:
    g, o, i = target.shape[:3]
    r, extent = ranks[0], kernel.extent
    match scheme:
        case "channel":
            left, right = _cut(target.reshape(g, o, -1), r)
            return [left, right.reshape(g, r, i, *extent)]
        case "spatial":
            turned = np.moveaxis(target, (1, 2, 3), (-1, 1, 2))  # (g, i, x, .., o)
            left, right = _cut(turned.reshape(g, i * extent[0], -1), r)
            last = np.moveaxis(right.reshape(g, r, *extent[1:], o), -1, 1)
            return [np.ascontiguousarray(last), left.reshape(g, i, extent[0], r).transpose(0, 3, 1, 2)]
        case "tucker":
            return _tucker(target, ranks)
        case "depthwise":
            left, right = _cut(target.reshape(g, o, i, -1).swapaxes(1, 2), r)  # (g, i, o, m), (g, i, m, taps)
            return [left.swapaxes(1, 2), right.reshape(g, i, r, *extent)]
    return _cp(target, r, seed)


def _cut(matrices: Array, rank: int) -> tuple[Array, Array]:
    """The best factors (.., m, r), (.., r, n) of stacked matrices, with zeros beyond full rank.

    By the smaller side's Gram matrix: singular values below 1e-8 of the largest are lost, and wanted by nobody.
    """
    turned = matrices.shape[-2] > matrices.shape[-1]
    wide = matrices.swapaxes(-1, -2) if turned else matrices
    basis = np.linalg.eigh(np.matmul(wide, wide.swapaxes(-1, -2)))[1][..., ::-1][..., :rank]
    other = np.matmul(basis.swapaxes(-1, -2), wide)
    size = np.sqrt(np.linalg.norm(other, axis=-1))
    size[size == 0] = 1.0
    basis, other = basis * size[..., None, :], other / size[..., None]
    missing = rank - basis.shape[-1]
    if missing > 0:
        basis = np.concatenate([basis, np.zeros((*basis.shape[:-1], missing))], axis=-1)
        other = np.concatenate([other, np.zeros((*other.shape[:-2], missing, other.shape[-1]))], axis=-2)
    return (other.swapaxes(-1, -2), basis.swapaxes(-1, -2)) if turned else (basis, other)


def _tucker(target: Array, ranks: Ranks) -> Factors:
    """Higher-order orthogonal iteration (De Lathauwer et al. 2000) over outputs and inputs."""
    by_input = target.swapaxes(1, 2)
    inner = _first_vectors(by_input, ranks[1])
    outer = _first_vectors(target, ranks[0])
    for _ in range(HOOI_ROUNDS):
        outer = _first_vectors(_along(by_input, inner).swapaxes(1, 2), ranks[0])
        inner = _first_vectors(_along(target, outer).swapaxes(1, 2), ranks[1])
    core = _along(_along(target, outer).swapaxes(1, 2), inner).swapaxes(1, 2)
    return [outer, core, inner.swapaxes(1, 2)]


def kept_power(target: Array) -> Array:
    """The power (o, i) of a kernel that its first outputs' and inputs' directions hold, as many as the indices say
    and one more: what a tucker of these ranks keeps, but for what iteration gains."""
    outer = _first_vectors(target, target.shape[1])
    inner = _first_vectors(target.swapaxes(1, 2), target.shape[2])
    core = _along(_along(target, outer).swapaxes(1, 2), inner).swapaxes(1, 2)
    power = np.square(core).sum(axis=(0, *range(3, core.ndim)))
    kept: Array = power.cumsum(axis=0).cumsum(axis=1)
    return kept


def _along(tensor: Array, vectors: Array) -> Array:
    """The second axis (g, n, ..) of a tensor in the directions (g, n, r)."""
    flat = tensor.reshape(*tensor.shape[:2], -1)
    made: Array = np.matmul(vectors.swapaxes(1, 2), flat).reshape(len(tensor), vectors.shape[2], *tensor.shape[2:])
    return made


def _first_vectors(tensor: Array, count: int) -> Array:
    flat = tensor.reshape(*tensor.shape[:2], -1)
    vectors: Array = np.linalg.eigh(np.matmul(flat, flat.swapaxes(1, 2)))[1][:, :, ::-1][:, :, :count]
    return vectors


def _cp(target: Array, rank: int, seed: int) -> Factors:
    """Alternating least squares, each group by itself (Harshman 1970), from seeded random factors."""
    found = [_cp_of(each, rank, np.random.default_rng([seed, at])) for at, each in enumerate(target)]
    joined = [np.stack(each) for each in zip(*found, strict=True)]  # (g, size, r) of o, i, x, y, ..
    outputs, inputs, *axes = joined
    return [outputs, *(each.swapaxes(1, 2) for each in axes[::-1]), inputs.swapaxes(1, 2)]


def _cp_of(target: Array, rank: int, random: np.random.Generator) -> Factors:
    factors = [random.standard_normal((size, rank)) for size in target.shape]
    flats = [np.moveaxis(target, at, 0).reshape(size, -1) for at, size in enumerate(target.shape)]
    for _ in range(CP_ROUNDS):
        for at in range(target.ndim):
            others = [each for k, each in enumerate(factors) if k != at]
            gram = math.prod((each.T @ each for each in others), start=np.ones((rank, rank)))
            gram += RIDGE * np.trace(gram) / rank * np.eye(rank)
            factors[at] = np.linalg.solve(gram, (flats[at] @ _all_products(others)).T).T
            if at:  # the size stays in the first
                size = np.linalg.norm(factors[at], axis=0)
                size[size == 0] = 1.0
                factors[at] /= size
                factors[0] *= size
    return factors


def _all_products(factors: Sequence[Array]) -> Array:
    """Column by column the products of all elements (Khatri & Rao): (product of the sizes, r)."""
    made = factors[0]
    for each in factors[1:]:
        made = (made[:, None] * each[None]).reshape(-1, made.shape[1])
    return made


def _refined(
    scheme: str, kernel: Kernel, target: Array, factors: Factors, weights: Array
) -> tuple[Factors, float]:
    """The factors moved to the least error that is weighed, each in turn."""
    power = _error(kernel, target, weights)
    best = math.inf
    for _ in range(ROUNDS):
        factors[0] = _last_solved(scheme, kernel, target, factors, weights)
        for at in range(1, len(factors)):
            factors[at] = _moved(scheme, kernel, target, factors, at, weights)
        factors[0] = _last_solved(scheme, kernel, target, factors, weights)
        error = _error(kernel, target - multiplied(scheme, kernel, factors), weights)
        if not error < best * (1 - ENOUGH) or error <= ENOUGH**3 * power:
            best = min(best, error)
            break
        best = error
    return factors, best / power if power > 0 else 0.0


def _last_solved(scheme: str, kernel: Kernel, target: Array, factors: Factors, weights: Array) -> Array:
    """The factor of the outputs' index that serves best with the others as they are."""
    indices, result = product(scheme, kernel)
    inner = "".join(each for each in indices[0] if each not in "go")  # what it is summed over, and axes of its own
    own = [each for each in inner if each in result]
    sizes = dict(zip(inner, factors[0].shape[2:], strict=True))
    marks = {each: each.upper() for each in own}  # an axis of its own picks one of the kernel's
    picks = [np.broadcast_to(np.eye(sizes[each]), (kernel.groups, sizes[each], sizes[each])) for each in own]
    left = "".join(marks.get(each, each) for each in inner)
    terms = [*indices[1:], *("g" + marks[each] + each for each in own)]
    inputs = result.replace("o", "")
    basis = folded(terms[::-1], f"g{left}{inputs[1:]}", [*picks[::-1], *factors[:0:-1]])
    flat = basis.reshape(kernel.groups, math.prod(sizes.values()), -1)
    wanted = target.reshape(kernel.groups, kernel.outputs, -1)
    seen = np.matmul(flat, weights)
    gram = np.matmul(seen, flat.swapaxes(1, 2))
    gram += (RIDGE * np.trace(gram, axis1=1, axis2=2)[:, None, None] / gram.shape[1] + 1e-30) * np.eye(gram.shape[1])
    solved = np.linalg.solve(gram, np.matmul(seen, wanted.swapaxes(1, 2))).swapaxes(1, 2)
    return solved.reshape(factors[0].shape)


def _moved(scheme: str, kernel: Kernel, target: Array, factors: Factors, at: int, weights: Array) -> Array:
    """One factor after some steps of conjugate gradients, with the others as they are."""
    indices, result = product(scheme, kernel)
    others = [each for k, each in enumerate(factors) if k != at]
    back = [result, *(each for k, each in enumerate(indices) if k != at)]

    def through(factor: Array) -> Array:
        return multiplied(scheme, kernel, [*factors[:at], factor, *factors[at + 1 :]])

    def gradient(difference: Array) -> Array:
        seen = np.matmul(difference.reshape(kernel.groups, kernel.outputs, -1), weights).reshape(target.shape)
        return folded(back, indices[at], [seen, *others])

    step = gradient(target - through(factors[at]))
    return factors[at] + conjugate_gradients(lambda each: gradient(through(each)), step, STEPS)


def conjugate_gradients(apply: Callable[[Array], Array], right: Array, steps: int) -> Array:
    """An approximate solution z of apply(z) = right for a positive form, from zero; each step lessens the error."""
    solution, rest = np.zeros_like(right), right.copy()
    way, power = rest.copy(), float(np.vdot(rest, rest))
    start = power
    for _ in range(steps):
        if not power > 1e-20 * start or not start > 0:
            break
        seen = apply(way)
        curve = float(np.vdot(way, seen))
        if not curve > 0:
            break
        solution += power / curve * way
        rest -= power / curve * seen
        power, before = float(np.vdot(rest, rest)), power
        way = rest + power / before * way
    return solution


def _error(kernel: Kernel, difference: Array, weights: Array | None) -> float:
    flat = difference.reshape(kernel.groups, kernel.outputs, -1)
    return float(np.vdot(flat, flat) if weights is None else np.vdot(np.matmul(flat, weights), flat))


def _relative(error: float, target: Array) -> float:
    power = float(np.vdot(target, target))
    return error / power if power > 0 else 0.0


def _input_scale(kernel: Kernel, weights: Array) -> Array:
    """By how much the inputs count, channel by channel: (g or 1, 1, i, 1, ..)."""
    power = np.diagonal(weights, axis1=1, axis2=2).reshape(len(weights), kernel.inputs, -1).mean(axis=2)
    scale: Array = np.sqrt(power).reshape(len(weights), 1, kernel.inputs, *(1 for _ in kernel.extent))
    return scale


def _spread(scheme: str, kernel: Kernel, scale: Array) -> Array:
    """The scale of the inputs in the form of the first convolution's factor."""
    indices = product(scheme, kernel)[0][-1]
    sizes: Sequence[int] = [scale.shape[0] if each == "g" else scale.shape[2] if each == "i" else 1 for each in indices]
    return scale.reshape(sizes)
