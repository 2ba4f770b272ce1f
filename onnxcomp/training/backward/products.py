"""Derivatives of matrix products."""

from __future__ import annotations

from onnxcomp.training.backward.rules import Adjoints, At, rule, unbroadcast_at_run_time
from onnxcomp.training.backward.values import Value


@rule("Gemm")
def gemm(at: At) -> Adjoints:
    """Y = alpha * A' B' + beta * C, a prime where a matrix may be turned."""
    a, b = at.needs(0), at.needs(1)
    turn_a, turn_b = int(at.attr("transA", 0)), int(at.attr("transB", 0))
    alpha, beta = float(at.attr("alpha", 1.0)), float(at.attr("beta", 1.0))

    def product(left: Value, right: Value, turn_left: int, turn_right: int) -> Value:
        return at.op("Gemm", left, right, transA=turn_left, transB=turn_right, alpha=alpha)

    by_a = product(b, at.dy, turn_b, 1) if turn_a else product(at.dy, b, 0, 1 - turn_b)
    by_b = product(at.dy, a, 1, turn_a) if turn_b else product(a, at.dy, 1 - turn_a, 0)
    c = at.input(2)
    if c is None:
        return by_a, by_b
    by_c = at.reduced(at.dy, at.y, c)
    return by_a, by_b, by_c if beta == 1.0 else by_c * beta


@rule("MatMul")
def matmul(at: At) -> Adjoints:
    return product_adjoints(at, at.needs(0), at.needs(1), at.dy)


def product_adjoints(at: At, a: Value, b: Value, dy: Value) -> tuple[Value, Value]:
    """Those of the operands of a product like numpy's, vectors and batches among them."""
    rank_a, rank_b = (at.write.shapes.rank(each.tensor) for each in (a, b))
    if rank_b == 2 and rank_a is not None and rank_a >= 2:
        return _by_matrix(at, a, b, dy)
    if rank_a == 1 and rank_b == 1:
        return dy * b, dy * a
    if rank_a == 1:  # a row
        row = dy.unsqueeze([-2])
        by_row = at.op("MatMul", row, _turned(at, b))
        rows = by_row.reshape(at.write.joined([[-1], at.write.size(a, 0)]))
        return rows.sum([0]), at.op("MatMul", a.unsqueeze([-1]), row)
    if rank_b == 1:  # a column
        column = dy.unsqueeze([-1])
        rows, flat_dy = a.reshape(at.write.joined([[-1], at.write.size(b, 0)])), dy.reshape([-1, 1])
        return column * b, at.op("Gemm", rows, flat_dy, transA=1).reshape([-1])
    by_a, by_b = at.op("MatMul", dy, _turned(at, b)), at.op("MatMul", _turned(at, a), dy)
    return _over_batches(at, by_a, a, b), _over_batches(at, by_b, b, a)


def _turned(at: At, matrices: Value) -> Value:
    """The last two axes swapped, of however many."""
    rank = at.write.shapes.rank(matrices.tensor)
    if rank is not None:
        return matrices.turned(rank)
    shape = at.op("Shape", matrices)
    flat = matrices.reshape(at.write.joined([[-1], at.op("Shape", matrices, start=-2)]))
    lead, rows, columns = (shape.slice([start], [end], [0]) for start, end in ((0, -2), (-2, -1), (-1, 2**31)))
    return flat.transpose([0, 2, 1]).reshape(at.write.joined([lead, columns, rows]))


def _by_matrix(at: At, a: Value, b: Value, dy: Value) -> tuple[Value, Value]:
    """Of a product with one matrix: all rows at once, however many axes they are arranged in."""
    if at.rank(a) == 2:
        return at.op("Gemm", dy, b, transB=1), at.op("Gemm", a, dy, transA=1)
    inner, outer = at.write.size(b, 0), at.write.size(b, 1)
    rows, flat = a.reshape(at.write.joined([[-1], inner])), dy.reshape(at.write.joined([[-1], outer]))
    by_a = at.op("Gemm", flat, b, transB=1).shaped(at.shape(a))
    return by_a, at.op("Gemm", rows, flat, transA=1)


def _over_batches(at: At, adjoint: Value, to: Value, other: Value) -> Value:
    """Sum over the leading axes along which one operand was broadcast to the other."""
    shapes = at.write.shapes
    mine, theirs = shapes.shape(to.tensor), shapes.shape(other.tensor)
    if mine is not None and theirs is not None and len(mine) >= len(theirs):
        lead = len(mine) - len(theirs)
        if all(
            theirs[axis] == 1
            or (theirs[axis] is not None and theirs[axis] == mine[lead + axis])
            or shapes.same_size(to.tensor, lead + axis, other.tensor, axis)
            for axis in range(len(theirs) - 2)
        ):
            return adjoint
    return unbroadcast_at_run_time(at.write, adjoint, at.y, to)
