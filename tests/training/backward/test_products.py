"""Rules of matrix products, held to finite differences with shapes known and open."""

from __future__ import annotations

import pytest

from tests.training.backward.drawn import normal
from tests.training.backward.finite_differences import check_rule


@pytest.mark.parametrize(
    "shapes",
    [
        ((3, 4), (4, 5)),
        ((2, 3, 4), (4, 5)),
        ((2, 3, 4), (2, 4, 5)),
        ((2, 1, 3, 4), (3, 4, 5)),
        ((3, 4), (2, 4, 5)),
        ((4,), (4, 5)),
        ((3, 4), (4,)),
        ((4,), (4,)),
        ((4,), (2, 4, 5)),
        ((2, 3, 4), (4,)),
    ],
)
def test_matmul_like_numpy(shapes: tuple[tuple[int, ...], tuple[int, ...]]) -> None:
    check_rule("MatMul", [normal(*shape) for shape in shapes])


@pytest.mark.parametrize("turn_a", [0, 1])
@pytest.mark.parametrize("turn_b", [0, 1])
def test_gemm_with_matrices_turned(turn_a: int, turn_b: int) -> None:
    a, b = normal(4, 3) if turn_a else normal(3, 4), normal(5, 4) if turn_b else normal(4, 5)
    check_rule("Gemm", [a, b, normal(5)], transA=turn_a, transB=turn_b, alpha=0.5, beta=0.7)


@pytest.mark.parametrize("shape", [(3, 5), (3, 1), (), None])
def test_gemm_broadcasts_what_it_adds(shape: tuple[int, ...] | None) -> None:
    check_rule("Gemm", [normal(3, 4), normal(4, 5), None if shape is None else normal(*shape)])


@pytest.mark.parametrize(
    ("equation", "shapes"),
    [
        ("ij,jk->ik", [(2, 3), (3, 4)]),
        ("bij,bjk", [(2, 3, 4), (2, 4, 5)]),
        ("ij->j", [(2, 3)]),
        ("...i,...j->...ij", [(2, 5, 3), (2, 5, 4)]),
        ("ij,i->j", [(2, 3), (2,)]),
        ("ij,jk,k->i", [(2, 3), (3, 4), (4,)]),
    ],
)
def test_einsum_swaps_terms(equation: str, shapes: list[tuple[int, ...]]) -> None:
    check_rule("Einsum", [normal(*shape) for shape in shapes], equation=equation)
