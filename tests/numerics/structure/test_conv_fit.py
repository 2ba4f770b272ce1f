"""Products of tensors fitted to kernels, against singular values and against naive sums."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from onnxcomp.numerics.structure.conv_fit import conjugate_gradients, fitted, kept_power
from onnxcomp.numerics.structure.conv_schemes import (
    SCHEMES,
    Kernel,
    chained,
    full_ranks,
    is_apt,
    multiplied,
    parts,
)

Array = NDArray[Any]
EXTENTS = [(3,), (3, 5), (2, 3, 2), (1, 3)]


def drawn(kernel: Kernel) -> Array:
    shape = (kernel.groups, kernel.outputs, kernel.inputs, *kernel.extent)
    return np.random.default_rng(0).standard_normal(shape)


def moments(kernel: Kernel) -> Array:
    size = kernel.inputs * math.prod(kernel.extent)
    rows = np.random.default_rng(1).standard_normal((50, size)) * np.linspace(0.1, 2, size)
    return (rows.T @ rows / 50)[None]


def weighed(kernel: Kernel, difference: Array, weights: Array) -> float:
    flat = difference.reshape(kernel.groups, kernel.outputs, -1)
    return float(sum(row @ weights[0] @ row for group in flat for row in group))


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("extent", EXTENTS)
@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("is_weighed", [False, True])
def test_full_rank_holds_any_kernel(scheme: str, extent: tuple[int, ...], groups: int, is_weighed: bool) -> None:
    kernel = Kernel(groups, 4, 3, extent)
    if not is_apt(scheme, kernel) or scheme == "cp":  # its rank nobody can tell
        pytest.skip("not of this form")
    target = drawn(kernel)
    weights = moments(kernel) if is_weighed else None
    factors, error = fitted(scheme, kernel, target, full_ranks(scheme, kernel), weights=weights)
    assert error < 1e-12
    np.testing.assert_allclose(multiplied(scheme, kernel, factors), target, atol=1e-5)


def test_a_canonical_kernel_is_found_again() -> None:
    random = np.random.default_rng(3)
    kernel = Kernel(1, 6, 5, (3, 3))
    parts_ = [random.standard_normal((size, 2)) for size in (6, 5, 3, 3)]
    target = np.einsum("or,ir,xr,yr->oixy", *parts_)[None]
    assert fitted("cp", kernel, target, (2,))[1] < 1e-8


@pytest.mark.parametrize("extent", [(3,), (3, 5)])
def test_channel_and_spatial_errors_are_tails_of_singular_values(extent: tuple[int, ...]) -> None:
    kernel = Kernel(1, 6, 4, extent)
    target = drawn(kernel)
    forms = {"channel": target[0].reshape(6, -1)}
    if len(extent) == 2:
        forms["spatial"] = np.moveaxis(target[0], (0, 1, 2), (2, 0, 1)).reshape(4 * 3, -1)
    for scheme, matrix in forms.items():
        values = np.linalg.svd(matrix, compute_uv=False)
        for rank in (1, 3, 5):
            _, error = fitted(scheme, kernel, target, (rank,))
            assert error == pytest.approx(np.square(values[rank:]).sum() / np.square(values).sum(), rel=1e-8)


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("groups", [1, 2])
def test_weights_lessen_what_they_weigh(scheme: str, groups: int) -> None:
    kernel = Kernel(groups, 8, 6, (3, 3))
    target, weights = drawn(kernel), moments(kernel)
    ranks = (3, 3) if scheme == "tucker" else (3,)
    plain, _ = fitted(scheme, kernel, target, ranks)
    factors, error = fitted(scheme, kernel, target, ranks, weights=weights)
    power = weighed(kernel, target, weights)
    lost = weighed(kernel, target - multiplied(scheme, kernel, factors), weights)
    assert error == pytest.approx(lost / power, rel=1e-6)
    assert lost < 0.9 * weighed(kernel, target - multiplied(scheme, kernel, plain), weights)


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("extent", EXTENTS)
def test_a_chain_has_the_sizes_that_are_told(scheme: str, extent: tuple[int, ...]) -> None:
    kernel = Kernel(2, 4, 3, extent)
    if not is_apt(scheme, kernel):
        pytest.skip("not of this form")
    for ranks in itertools.islice(itertools.product((1, 3), (1, 3)), 4):
        used = ranks if scheme == "tucker" else ranks[:1]
        factors, _ = fitted(scheme, kernel, drawn(kernel), used)
        made = chained(scheme, kernel, used, factors)
        assert [(each.shape, groups) for each, groups in made] == [
            (part.shape, part.groups) for part in parts(scheme, kernel, used)
        ]


def test_kept_power_is_what_a_tucker_keeps_before_it_is_iterated() -> None:
    kernel = Kernel(1, 6, 5, (3, 3))
    target = drawn(kernel)
    kept = kept_power(target)
    assert kept[-1, -1] == pytest.approx(np.sum(target**2))
    _, error = fitted("tucker", kernel, target, (3, 2))
    assert 0 <= 1 - error - kept[2, 1] / kept[-1, -1] < 0.05  # iteration gains a little and loses nothing


def test_conjugate_gradients_solve_a_small_form() -> None:
    random = np.random.default_rng(0)
    root = random.standard_normal((5, 5))
    form, wanted = root @ root.T + np.eye(5), random.standard_normal(5)
    np.testing.assert_allclose(conjugate_gradients(lambda each: form @ each, form @ wanted, 30), wanted, atol=1e-6)
