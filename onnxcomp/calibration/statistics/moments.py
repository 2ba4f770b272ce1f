"""Second moments of what each weight is multiplied with, while calibration data run through the model.

    G = mean of x x^T     so that the node's mean squared output error is  tr(dW G dW^T)

x is an input column in the sense of the weight's matrix form: for a convolution a patch under the kernel.
Frantar et al., Optimal Brain Compression, https://arxiv.org/abs/2208.11580, use the same matrix (times two).
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Container, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from onnx_graphsurgeon import Node

from onnxcomp.calibration.data.calibration_data import CalibrationData
from onnxcomp.calibration.statistics.watch import OpenSession, Progress, silent, watch
from onnxcomp.graph.ir.nodes import Array, Constant
from onnxcomp.graph.ir.reader import Graph
from onnxcomp.graph.weights.conv_geometry import window_of
from onnxcomp.graph.weights.linear_op import summed_data_axis
from onnxcomp.graph.weights.matrix_form import MatrixForm, matrix_form
from onnxcomp.graph.weights.roles import Role, Weight
from onnxcomp.numerics.arrays.im2col import unfold
from onnxcomp.runtime import Session, Value
from onnxcomp.tensors import SPILL_BYTES, Scratch, lent

LEAST_ROWS = 16384  # input columns of a weight, at most; more where the matrix is larger
ROWS_PER_COLUMN = 8
LEAST_ROOM, MOST_ROOM = 64 * 2**20, 512 * 2**20  # of sums that are under way together, and what the model has

Unfold = Callable[[Array, int], Array]  # values of a tensor, most rows -> (groups, rows, K)


@dataclass(frozen=True)
class Moments:
    """Of the input columns of a weight: gram (groups, K, K) and mean (groups, K) in float32, and the largest
    magnitude (groups, K). groups is 1 where all matrices of the weight see the same columns. count: of columns, from
    ``samples`` samples."""

    gram: Array
    mean: Array
    peak: Array
    count: int
    samples: int = 1

    @property
    def independent_count(self) -> float:
        """About how many columns there were that do not depend on each other: those of one sample do, and so count for
        more than one and less than all of them."""
        return math.sqrt(self.count * min(max(1, self.samples), self.count))


@dataclass(frozen=True)
class Source:
    """Where the columns of a weight come from: a tensor, and how its values are cut. Equal keys, equal columns.

    length: of a column. matrices: how many of them see columns of their own.
    """

    tensor: str
    key: Hashable
    cut: Unfold
    length: int
    matrices: int = 1

    @property
    def size_bytes(self) -> int:
        """What its sums take."""
        return 4 * self.matrices * self.length**2


@dataclass
class _Sums:
    gram: Any = 0.0
    total: Any = 0.0
    peak: Any = 0.0
    count: int = 0
    fault: bool = field(default=False)

    def add(self, rows: Array) -> None:
        """Take in (groups, rows, K)."""
        if not np.isfinite(rows).all():
            self.fault = True
        if self.fault or not rows.size:
            return
        self.gram = self.gram + np.matmul(rows.swapaxes(1, 2), rows)
        self.total = self.total + rows.sum(axis=1, dtype=np.float64)
        self.peak = np.maximum(self.peak, np.abs(rows).max(axis=1))
        self.count += rows.shape[1]


def input_moments(
    graph: Graph,
    weights: Sequence[Weight],
    data: CalibrationData,
    *,
    limit: int | None = None,
    open_session: OpenSession = Session,
    progress: Progress = silent,
) -> Mapping[str, Moments]:
    """The moments of the weights of ``graph.model``, by name; the model remembers them.

    Left out are weights without a matrix form, in subgraphs and functions, with inputs that are not float32 or
    not finite, and with readers whose inputs are cut differently.
    Raises TargetError or VerificationError where the model does not load or run.
    """
    known: dict[str, Moments | None] = graph.model.memo.setdefault((input_moments, data, limit), {})
    missing = sources_by_name(graph, [each for each in weights if each.name not in known])
    wanted = {each.key: each for sources in missing.values() for each in sources}
    samples = data.sample_count if limit is None else min(limit, data.sample_count)
    sums: dict[Hashable, _Sums] = {}
    for part in _parts(list(wanted.values()), sums_bytes(graph.model.size_bytes)):
        sums.update(_run(graph, part, data, limit, max(1, samples), open_session, progress))
        sums = {key: _spilled(each, graph) for key, each in sums.items()}
    found: dict[Hashable, Moments | None] = {}
    for name, sources in missing.items():
        keys = tuple(sorted({each.key for each in sources}, key=repr))
        if keys not in found:
            found[keys] = _together([sums[key] for key in keys], samples, graph.model.scratch) if keys else None
        known[name] = found[keys]
    return {each.name: moments for each in weights if (moments := known[each.name]) is not None}


def sources_by_name(graph: Graph, weights: Iterable[Weight]) -> dict[str, list[Source]]:
    """For each weight, by name, and each of its readers where its columns come from; nothing where one of them cannot
    be watched."""
    main = {id(node) for node in graph.main.graph.nodes}
    return {each.name: _sources_of(graph, each, main) for each in weights}


def _sources_of(graph: Graph, weight: Weight, main: Container[int]) -> list[Source]:
    form = matrix_form(weight)
    if form is None or weight.scope is not graph.main:
        return []
    found = [_source(role, form) if id(role.node) in main else None for role in weight.roles]
    return [each for each in found if each] if all(found) else []


def _source(role: Role, form: MatrixForm) -> Source | None:
    node = role.node
    if form.kind in ("conv", "conv_transpose"):
        return _convolved(node, form)
    if form.kind == "recurrent":
        return _recurrent(node, role.input_index, form)
    tensor = node.inputs[1 - role.input_index]
    if isinstance(tensor, Constant):
        return None
    axis = summed_data_axis(node, role.input_index)
    size = form.shape[-1] if form.kind in ("left", "rows") else form.shape[-2]
    if form.groups > 1:
        cut = functools.partial(_stacked, batch=form.shape[:-2])
        return Source(tensor.name, (tensor.name, "stacked", form.shape[:-2]), cut, size, form.groups)
    return Source(tensor.name, (tensor.name, axis), functools.partial(_rows, axis=axis), size)


def _convolved(node: Node, form: MatrixForm) -> Source | None:
    tensor = node.inputs[0]
    window = window_of(node, form.shape[2:])
    if window is None or isinstance(tensor, Constant):
        return None

    def cut(values: Array, most_rows: int) -> Array:
        return unfold(values, window(values.shape[2:]), form.groups, most_rows=most_rows)

    inputs = form.shape[0] // form.groups if form.kind == "conv_transpose" else form.shape[1]
    stated = {name: value for name, value in node.attrs.items() if name != "kernel_shape"}
    key = (tensor.name, node.op, form.shape[2:], repr(sorted(stated.items())))
    return Source(tensor.name, key, cut, inputs * math.prod(form.shape[2:]), form.groups)


def _recurrent(node: Node, index: int, form: MatrixForm) -> Source | None:
    """The columns of W are the inputs, those of R the hidden states, which are the output a step later."""
    size = form.shape[2]
    if index == 1:
        if isinstance(node.inputs[0], Constant):
            return None
        return Source(node.inputs[0].name, (node.inputs[0].name, -1), functools.partial(_rows, axis=-1), size)
    if not node.outputs or not node.outputs[0].name:
        return None
    axis = 2 if node.attrs.get("layout", 0) else 1
    name = node.outputs[0].name
    cut = functools.partial(_directions, axis=axis)
    return Source(name, (name, "directions", axis), cut, size, form.groups)


def _rows(values: Array, most_rows: int, *, axis: int) -> Array:
    moved = np.moveaxis(values, axis, -1) if values.ndim > 1 else values  # a product with a vector sums over it
    return _thinned(moved.reshape(1, -1, moved.shape[-1]), most_rows)


def _stacked(values: Array, most_rows: int, *, batch: tuple[int, ...]) -> Array:
    """Inputs (.., *batch, M, K) of a product with matrices (*batch, K, N), matrix by matrix.

    Where the matrices have one in a batch dimension and the inputs have many, all of these meet that one.
    """
    values = values[None] if values.ndim == 1 else values
    full = np.broadcast_shapes(values.shape[:-2], batch)
    spread = np.broadcast_to(values, (*full, *values.shape[-2:]))
    first = len(full) - len(batch)
    matrices = [first + axis for axis, size in enumerate(batch) if size != 1]
    samples = [axis for axis in range(len(full)) if axis not in matrices]
    moved = spread.transpose(*matrices, *samples, -2, -1)
    return _thinned(moved.reshape(math.prod(batch), -1, values.shape[-1]), most_rows)


def _directions(values: Array, most_rows: int, *, axis: int) -> Array:
    """Outputs of a recurrent node, (seq, D, batch, H) or (batch, seq, D, H), direction by direction."""
    moved = np.moveaxis(values, axis, 0)
    return _thinned(moved.reshape(moved.shape[0], -1, moved.shape[-1]), most_rows)


def _thinned(rows: Array, most_rows: int) -> Array:
    step = max(1, -(-rows.shape[1] // max(1, most_rows)))
    return rows[:, (step - 1) // 2 :: step] if rows.shape[1] > step else rows


def sums_bytes(model_bytes: int) -> int:
    """How many bytes of sums may be under way together: no more than the model has, where that is large."""
    return min(MOST_ROOM, max(LEAST_ROOM, model_bytes))


def _parts(sources: list[Source], room: int) -> list[list[Source]]:
    """Sources whose sums fit in the room together."""
    parts: list[list[Source]] = []
    used = room
    for each in sources:
        if used + each.size_bytes > room:
            parts.append([])
            used = 0
        parts[-1].append(each)
        used += each.size_bytes
    return parts


def _run(
    graph: Graph,
    sources: Sequence[Source],
    data: CalibrationData,
    limit: int | None,
    samples: int,
    open_session: OpenSession,
    progress: Progress,
) -> dict[Hashable, _Sums]:
    sums = {each.key: _Sums() for each in sources}
    by_tensor: dict[str, list[Source]] = {}
    for each in sources:
        by_tensor.setdefault(each.tensor, []).append(each)

    def see(name: str, value: Value) -> None:
        for each in by_tensor[name]:
            if not isinstance(value, np.ndarray) or value.dtype != np.float32:
                sums[each.key].fault = True
                continue
            sums[each.key].add(each.cut(value, rows_of(value, samples, max(LEAST_ROWS, ROWS_PER_COLUMN * each.length))))

    watch(graph.model, list(by_tensor), data, see, limit=limit, open_session=open_session, progress=progress)
    return sums


def rows_of(value: Array, samples: int, wanted: int) -> int:
    """How many columns of one batch's value to take, so that about the wanted number comes from all ``samples``.

    The first axis is taken for that of the samples; a wrong guess only takes more or fewer columns.
    """
    held = min(value.shape[0], samples) if value.ndim > 1 else 1
    return max(1, wanted // samples) * max(1, held)


def _spilled(sums: _Sums, graph: Graph) -> _Sums:
    """The sums as means would need them, on disk where they are large."""
    if isinstance(sums.gram, np.ndarray) and not isinstance(sums.gram, np.memmap) and sums.gram.nbytes >= SPILL_BYTES:
        sums.gram = lent(sums.gram, graph.model.scratch)
    return sums


def _together(sums: Sequence[_Sums], samples: int, scratch: Scratch) -> Moments | None:
    """The means over all readers of a weight, on disk where they are large."""
    if any(each.fault for each in sums) or not all(each.count for each in sums):
        return None
    count = sum(each.count for each in sums)
    gram = np.asarray(sum(np.asarray(each.gram) for each in sums) / np.float32(count))
    mean = (sum(each.total for each in sums) / count).astype(np.float32)
    peak = functools.reduce(np.maximum, [each.peak for each in sums])
    return Moments(lent(gram, scratch) if scratch.takes(gram.nbytes) else gram, mean, peak, count, samples)
