"""The gradient of a formula with respect to its parameters, by going back through its operators.

    L = f(term)   ->   dL/dparameter,   given dL/dterm

A Cast between float types counts as the identity, so that rounding to a stored type lets gradients through. Codes
are constants: only what stands between a parameter and the result needs a derivative.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from onnxcomp.numerics.encodings.expression import Array, FreeArray, OperatorTerm, Shape, Term, computed, value_of

# (operator, which of its inputs, adjoint of its output, value of an input by its place) -> adjoint of that input
Derivative = Callable[[OperatorTerm, int, Array, Callable[[int], Array]], Array]

INTEGERS_ONLY = frozenset({"Div", "Mod", "Range"})
WITHOUT_INPUTS = frozenset({"ConstantOfShape"})


def parameters(term: Term) -> dict[str, Array]:
    """The arrays of the term that may be changed, by name. ValueError where two of them have one name."""
    found: dict[str, FreeArray] = {}
    for each in _in_order(term):
        if isinstance(each, FreeArray) and found.setdefault(each.name, each) is not each:
            raise ValueError(f"two parameters of one term are named {each.name}")
    return {name: each.make() for name, each in found.items()}


def gradient(term: Term, adjoint: Array, arrays: Mapping[str, Array] | None = None) -> dict[str, Array]:
    """dL/dparameter for each parameter by its name, computed in the type of ``adjoint`` or a parameter's wider one.

    adjoint: dL/dterm, of the term's shape. arrays: parameters that have other values than their own, by name.
    ValueError where an operator without a derivative stands between a parameter and the result.
    """
    order = _in_order(term)
    reached = _reached(order)
    values = _Values(arrays or {})
    adjoints = {id(term): np.asarray(adjoint).reshape(term.shape)}
    found: dict[str, Array] = {}
    for each in reversed(order):
        if isinstance(each, FreeArray):
            found[each.name] = adjoints.pop(id(each))
        elif isinstance(each, OperatorTerm) and id(each) in reached:
            whole = adjoints.pop(id(each))
            for which, inner in enumerate(each.inputs):
                if id(inner) in reached:
                    part = _derivative(each)(each, which, whole, lambda at, each=each: values.of(each.inputs[at]))  # type: ignore[misc]
                    adjoints[id(inner)] = adjoints[id(inner)] + part if id(inner) in adjoints else part
    return found


def _in_order(term: Term) -> list[Term]:
    """Every part of the term once, inputs before what is made of them."""
    found: dict[int, Term] = {}

    def visit(part: Term) -> None:
        if id(part) not in found:
            for each in part.inputs if isinstance(part, OperatorTerm) else ():
                visit(each)
            found[id(part)] = part

    visit(term)
    return list(found.values())


def _reached(order: Sequence[Term]) -> set[int]:
    """The parts that depend on a parameter, by their id."""
    reached: set[int] = set()
    for each in order:
        inputs = each.inputs if isinstance(each, OperatorTerm) else ()
        if isinstance(each, FreeArray) or any(id(inner) in reached for inner in inputs):
            reached.add(id(each))
    return reached


class _Values:
    """The values of a term's parts, computed when asked for and then held."""

    def __init__(self, arrays: Mapping[str, Array]) -> None:
        self._arrays = arrays
        self._held: dict[int, Array] = {}

    def of(self, term: Term) -> Array:
        if id(term) not in self._held:
            is_leaf = not isinstance(term, OperatorTerm)
            self._held[id(term)] = value_of(term, self._arrays) if is_leaf else self._computed(term)
        return self._held[id(term)]

    def _computed(self, term: Term) -> Array:
        assert isinstance(term, OperatorTerm)
        return computed(term, [self.of(each) for each in term.inputs])


def _derivative(term: OperatorTerm) -> Derivative:
    if term.op not in DERIVATIVES:
        raise ValueError(f"{term.op} has no derivative, and a parameter goes through it")
    return DERIVATIVES[term.op]


# --- the operators' derivatives --------------------------------------------------------------------------


def _of_sum(term: OperatorTerm, which: int, adjoint: Array, read: Callable[[int], Array]) -> Array:
    negative = term.op == "Sub" and which == 1
    return _summed(-adjoint if negative else adjoint, term.inputs[which].shape)


def _of_product(term: OperatorTerm, which: int, adjoint: Array, read: Callable[[int], Array]) -> Array:
    return _summed(adjoint * read(1 - which), term.inputs[which].shape)


def _summed(adjoint: Array, shape: Shape) -> Array:
    """The sum over the axes along which an array of this shape was broadcast."""
    extra = adjoint.ndim - len(shape)
    axes = [axis for axis, size in enumerate(shape, extra) if size == 1 and adjoint.shape[axis] != 1]
    return np.asarray(adjoint.sum(axis=(*range(extra), *axes))).reshape(shape)


def _of_cast(term: OperatorTerm, which: int, adjoint: Array, read: Callable[[int], Array]) -> Array:
    if term.dtype.kind in "iub":
        raise ValueError(f"a Cast to {term.dtype} has no derivative, and a parameter goes through it")
    return adjoint


def _of_reshape(term: OperatorTerm, which: int, adjoint: Array, read: Callable[[int], Array]) -> Array:
    return adjoint.reshape(term.inputs[0].shape)


def _of_transpose(term: OperatorTerm, which: int, adjoint: Array, read: Callable[[int], Array]) -> Array:
    return np.transpose(adjoint, np.argsort(term.attrs["axes"]))


def _of_slice(term: OperatorTerm, which: int, adjoint: Array, read: Callable[[int], Array]) -> Array:
    whole = np.zeros(term.inputs[0].shape, adjoint.dtype)
    whole[: term.attrs["end"]] = adjoint
    return whole


def _of_concat(term: OperatorTerm, which: int, adjoint: Array, read: Callable[[int], Array]) -> Array:
    start = sum(each.shape[0] for each in term.inputs[:which])
    return adjoint[start : start + term.inputs[which].shape[0]]


def _of_running_sum(term: OperatorTerm, which: int, adjoint: Array, read: Callable[[int], Array]) -> Array:
    return np.cumsum(adjoint[::-1], axis=0)[::-1]


def _of_matrix_product(term: OperatorTerm, which: int, adjoint: Array, read: Callable[[int], Array]) -> Array:
    other = read(1 - which).T
    found: Array = adjoint @ other if which == 0 else other @ adjoint
    return found


def _of_lookup(term: OperatorTerm, which: int, adjoint: Array, read: Callable[[int], Array]) -> Array:
    if which != 0:
        raise ValueError("the indices of a Gather have no derivative, and a parameter goes through them")
    rows, *inner = term.inputs[0].shape
    index = read(1).reshape(-1)
    columns = adjoint.reshape(index.size, -1)
    sums = [np.bincount(index, column, minlength=rows) for column in columns.T]
    return np.stack(sums, axis=1).astype(adjoint.dtype).reshape(rows, *inner)


def _of_scatter(term: OperatorTerm, which: int, adjoint: Array, read: Callable[[int], Array]) -> Array:
    if which == 1:
        raise ValueError("the indices of a ScatterElements have no derivative, and a parameter goes through them")
    index = read(1)
    if which == 0:
        rest = np.array(adjoint)
        rest[index] = 0
        return rest
    last = np.full(term.shape, -1)
    last[index] = np.arange(index.size)
    return np.where(last[index] == np.arange(index.size), adjoint[index], 0).astype(adjoint.dtype)


DERIVATIVES: dict[str, Derivative] = {
    "Add": _of_sum,
    "Sub": _of_sum,
    "Mul": _of_product,
    "MatMul": _of_matrix_product,
    "Gather": _of_lookup,
    "Cast": _of_cast,
    "Reshape": _of_reshape,
    "Slice": _of_slice,
    "Transpose": _of_transpose,
    "Concat": _of_concat,
    "CumSum": _of_running_sum,
    "ScatterElements": _of_scatter,
}
