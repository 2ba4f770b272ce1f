"""Which tensors of a student are held against which of the teacher's, and by what loss: by what the teacher gives.

    class scores       KL, taken before the Softmax where the model ends in one; of unsure ones squared error, too
    chances            KL of each element
    embeddings         cosine and squared error
    anything else      squared error in units of its spread, along the axis of its channels

Outputs are read as verification reads them (``numerics.metrics``). Inner tensors are matched by their names.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import GraphProto, ModelProto, NodeProto

from onnxcomp.graph.dataflow.output_operators import SCORING, ends
from onnxcomp.model import Model
from onnxcomp.numerics import metrics
from onnxcomp.numerics.metrics import Output, Seen
from onnxcomp.numerics.metrics.lenses import RelativeError
from onnxcomp.operators import ONNX_DOMAINS
from onnxcomp.training.loss.terms import ChanceTerm, ClassTerm, LabelTerm, LossTerm, ValueTerm, VectorTerm

Array = NDArray[Any]

LOSSES = ("auto", "kl", "mse", "cosine")
TEMPERATURES = (1.0, 2.0, 4.0, 8.0)
SOFT_SHARE = 0.1  # of the largest entropy that there can be: what a temperature should leave of it
LEAST_ENTROPY = 0.05  # nats: a more confident teacher's classes count no more for it
LEAST_SPREAD = 1e-3  # of the whole tensor's: a channel that hardly varies counts no more than this
BESIDE_CLASSES = 0.5  # the weight of logits as values, which softmax does not see and verification looks at, too
LINEAR_OPS = ("Conv", "ConvTranspose", "Gemm", "MatMul")
MOST_INNER = 8
BY_SAMPLES = 0  # the axis of samples


@dataclass(frozen=True)
class Matching:
    """What the loss is made of.

    loss: one of ``LOSSES`` for all outputs. temperature: of class scores; None for one that softens the teacher enough.
    inner: weight of inner tensors beside the outputs, together; which: their names, none for some chosen evenly.
    labels: weight of the labels. asked: what outputs are by the user's word, by name.
    """

    loss: str = "auto"
    temperature: float | None = None
    inner: float = 0.0
    which: tuple[str, ...] = ()
    labels: float = 0.0
    asked: Mapping[str, str] | None = None

    def inner_names(self, student: Model, teacher: Model, comparable: Callable[[str], bool]) -> list[str]:
        """The inner tensors that both models have under one name and that are matched."""
        if not self.inner:
            return []
        common = [name for name in _inner(student.proto.graph) if comparable(name)]
        held = set(_inner(teacher.proto.graph, every=True))
        if self.which:
            every = set(_inner(student.proto.graph, every=True))
            return [name for name in self.which if name in held and name in every]
        found = [name for name in common if name in held]
        if not found:
            return []
        chosen = np.unique(np.linspace(0, len(found) - 1, min(MOST_INNER, len(found))).round())
        return [found[int(each)] for each in chosen]

    def terms(
        self, student: Model, teacher: Model, seen: Sequence[Mapping[str, Array]], inner: Sequence[str], by_sample: bool
    ) -> list[LossTerm]:
        """The terms of the loss. seen: what the teacher gives for some batches, outputs and inner tensors by name."""
        linear = ends(teacher)
        found: list[LossTerm] = []
        for name in [each.name for each in teacher.proto.graph.output]:
            blocks = [each[name] for each in seen]
            if _is_float(blocks):
                found += self._of_output(name, blocks, student, linear.get(name, "") in ("", *SCORING), by_sample)
        for name in inner:
            blocks = [each[name] for each in seen]
            if _is_float(blocks):
                found.append(_value_term(name, blocks, self.inner / max(1, len(inner)), _channel_axis(blocks)))
        return found

    def label_term(self, terms: Sequence[LossTerm]) -> LabelTerm | None:
        """The term of the labels: at the first output that says which class wins."""
        first = next((each for each in terms if isinstance(each, ClassTerm)), None)
        if first is None or not self.labels:
            return None
        return LabelTerm(
            first.student, f"labels of {first.teacher}", self.labels, first.rank, first.dtype,
            axis=first.axis, form=first.form, classes=first.classes,
        )  # fmt: skip

    def _of_output(
        self, name: str, blocks: list[Array], student: Model, linear: bool, by_sample: bool
    ) -> Iterator[LossTerm]:
        asked = (self.asked or {}).get(name)
        read = _read(blocks, asked, linear) if by_sample else Output("values")
        if read.silent:
            return
        if self.loss == "cosine" and blocks[0].ndim > 1:
            yield VectorTerm(name, name, 1.0, blocks[0].ndim, blocks[0].dtype)
        elif self.loss == "mse":
            yield _value_term(name, blocks, 1.0, _axis_of(read))
        elif (read.has_classes and read.kind == "classes") or (self.loss == "kl" and blocks[0].ndim > 1):
            yield self._class_term(name, blocks, read, student)
            if read.form == "logits":
                yield _value_term(name, blocks, BESIDE_CLASSES, _axis_of(read))
        elif read.form == "each" and read.kind == "probabilities":
            yield ChanceTerm(name, name, 1 / max(read.entropy, LEAST_ENTROPY), blocks[0].ndim, blocks[0].dtype)
        else:
            yield _value_term(name, blocks, 1.0, _axis_of(read))
            if read.has_classes:  # unsure scores are read as classes and as values
                yield self._class_term(name, blocks, read, student)
            if read.kind == "embedding":
                yield VectorTerm(name, name, 1.0, blocks[0].ndim, blocks[0].dtype)

    def _class_term(self, name: str, blocks: list[Array], read: Output, student: Model) -> ClassTerm:
        rank = blocks[0].ndim
        axis = rank - 1 if read.axis is None else read.axis + 1
        own = "probability" if read.form == "probability" else "logits"
        behind = scores_behind(student.proto.graph, student.opset, name, axis, rank)
        term = ClassTerm(
            behind or name, name, 1 / max(read.entropy, LEAST_ENTROPY), rank, blocks[0].dtype,
            axis=axis, form="logits" if behind else own, teacher_form=own, classes=blocks[0].shape[axis],
        )  # fmt: skip
        term.temperature = self.temperature or _enough(term, blocks)
        return term


def scores_behind(graph: GraphProto, opset: int, output: str, axis: int, rank: int) -> str | None:
    """The scores whose Softmax or LogSoftmax along the axis an output is; None where it is none."""
    makers = {name: node for node in graph.node for name in node.output}
    maker = makers.get(output)
    while maker is not None and maker.op_type == "Identity" and maker.domain in ONNX_DOMAINS:
        maker = makers.get(maker.input[0])
    if maker is None or maker.op_type not in ("Softmax", "LogSoftmax") or maker.domain not in ONNX_DOMAINS:
        return None
    own = next((each.i for each in maker.attribute if each.name == "axis"), -1 if opset >= 13 else 1)
    is_that = own % rank == axis and (opset >= 13 or axis == rank - 1)
    return str(maker.input[0]) if is_that else None


def _enough(term: ClassTerm, blocks: Sequence[Array]) -> float:
    """The least temperature at which the teacher is not certain of everything."""
    classes = max(2, term.classes)
    for each in TEMPERATURES:
        term.temperature = each
        logs = np.concatenate([term.softened(block).reshape(-1, block.shape[term.axis]) for block in blocks])
        if -(np.exp(logs) * logs).sum(axis=1).mean() >= SOFT_SHARE * np.log(classes):
            return each
    return TEMPERATURES[-1]


def _read(blocks: Sequence[Array], asked: str | None, linear: bool) -> Output:
    channel_axes = tuple(range(blocks[0].ndim - 1))
    return metrics.describe(
        lambda: (Seen(block) for block in blocks), channel_axes=channel_axes, asked=asked, linear=linear
    )


def _axis_of(read: Output) -> int | None:
    """The axis, samples counted, along which verification tells an output's channels apart."""
    axes = [each.axis for each in read.lenses if isinstance(each, RelativeError) and each.axis is not None]
    return None if not axes else axes[0] + 1


def _channel_axis(blocks: Sequence[Array]) -> int | None:
    """The axis of an inner tensor's channels: the first after the samples of a map, else the last."""
    rank = blocks[0].ndim
    return None if rank < 2 else 1 if rank == 4 else rank - 1


def _value_term(name: str, blocks: Sequence[Array], weight: float, axis: int | None) -> ValueTerm:
    """Squared error in units of the spread, of each channel where these are the same in all batches."""
    rank = blocks[0].ndim
    sizes = {block.shape[axis] for block in blocks} if axis is not None and axis < rank else set()
    whole = max(float(np.sqrt(np.mean([np.var(each, dtype=np.float64) for each in blocks]))), 1e-12)
    spread = np.asarray(whole)
    if len(sizes) == 1 and axis is not None:
        others = tuple(each for each in range(rank) if each != axis)
        variance = np.mean([np.var(each, axis=others, dtype=np.float64, keepdims=True) for each in blocks], axis=0)
        spread = np.maximum(np.sqrt(variance), LEAST_SPREAD * whole)
    return ValueTerm(name, name, weight, rank, blocks[0].dtype, spread=spread)


def _inner(graph: GraphProto, *, every: bool = False) -> list[str]:
    """The names of what linear nodes compute, or all nodes."""
    outputs = {each.name for each in graph.output}
    chosen = (node for node in graph.node if every or _is_linear(node))
    return [name for node in chosen for name in node.output if name and name not in outputs]


def _is_linear(node: NodeProto) -> bool:
    return node.domain in ONNX_DOMAINS and node.op_type in LINEAR_OPS


def _is_float(blocks: Sequence[Array]) -> bool:
    same = len({block.ndim for block in blocks}) == 1
    return same and bool(blocks) and blocks[0].dtype.kind == "f" and all(block.size for block in blocks)


def open_dimensions(proto: ModelProto) -> None:
    """Forget what is stated of inner tensors: added nodes need not agree with it."""
    del proto.graph.value_info[:]
