"""Losses as nodes: what a student's tensor is to be like, beside the teacher's, which is fed as an input.

    classes     T^2 mean KL(softmax(t / T) || softmax(s / T))          (Hinton et al. 2015, https://arxiv.org/abs/1503.02531)
    values      mean (s - t)^2 / variance of t
    chances     mean KL of each element (p, 1 - p)
    vectors     mean 1 - cos(s, t)
    labels      mean cross-entropy with the class of each sample

Each term adds nodes once and makes, of every batch, the feeds of its inputs. All is a weighted sum, one scalar.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import ModelProto

from onnxcomp.training.loss.writer import NodeWriter, moved_last

Array = NDArray[Any]
Feeds = dict[str, Array]

LOSS = "loss"
LEAST = 1e-7  # of a chance, below which its logarithm is not followed
LEAST_NORM = 1e-12


@dataclass(eq=False)
class LossTerm(ABC):
    """One tensor that is to be like the teacher's.

    student, teacher: its names in the two models. weight: of the term in the whole. rank, dtype: of the student's.
    """

    student: str
    teacher: str
    weight: float
    rank: int
    dtype: Any = np.float32
    inputs: dict[str, str] = field(default_factory=dict, init=False)  # the role of an input -> its name

    @abstractmethod
    def attach(self, writer: NodeWriter) -> str:
        """Add its nodes; gives the float scalar that they compute."""

    @abstractmethod
    def feeds(self, target: Array) -> Feeds:
        """What its inputs get, from the teacher's tensor of the batch."""

    def _scaled(self, writer: NodeWriter, total: str) -> str:
        """The total times a factor that is fed: what a mean divides by changes from batch to batch."""
        self.inputs["factor"] = writer.input("loss_factor", np.float32, 0)
        return writer.node("Mul", total, self.inputs["factor"])

    def _factor(self, value: float) -> Feeds:
        return {self.inputs["factor"]: np.asarray(self.weight * value, np.float32)}


@dataclass(eq=False)
class ClassTerm(LossTerm):
    """KL between class distributions along ``axis``, softened by ``temperature``.

    form: what the student's tensor is: "logits" (or logarithms of probabilities) or "probability". teacher_form: the
    same of the teacher's. classes: how many there are.
    """

    axis: int = -1
    form: str = "logits"
    teacher_form: str = "logits"
    temperature: float = 1.0
    classes: int = 0

    def attach(self, writer: NodeWriter) -> str:
        scores = writer.with_last(writer.as_float(self.student, self.dtype), self.axis, self.rank)
        if self.form == "probability":
            scores = writer.node("Log", writer.node("Add", scores, writer.constant(np.float32(LEAST))))
        if self.temperature != 1:
            scores = writer.node("Mul", scores, writer.constant(np.float32(1 / self.temperature)))
        logs = writer.node("LogSoftmax", scores, axis=self.rank - 1)
        self.inputs["target"] = writer.input("loss_target", np.float32, self.rank)
        crossed = self._scaled(writer, writer.total(writer.node("Mul", self.inputs["target"], logs)))
        self.inputs["own"] = writer.input("loss_own", np.float32, 0)
        return writer.node("Sub", self.inputs["own"], crossed)

    def feeds(self, target: Array) -> Feeds:
        logs = self.softened(target)
        chances = np.exp(logs)
        positions = max(1, chances[..., 0].size)
        factor = self.temperature**2 / positions
        own = self.weight * factor * float((chances * logs).sum())
        return {
            self.inputs["target"]: chances.astype(np.float32),
            self.inputs["own"]: np.asarray(own, np.float32),
            **self._factor(factor),
        }

    def softened(self, target: Array) -> Array:
        """(..., classes) float64: the logarithms of the teacher's softened probabilities."""
        scores = np.transpose(np.asarray(target, np.float64), moved_last(self.axis, target.ndim))
        if self.teacher_form == "probability":
            scores = np.log(np.maximum(scores, LEAST))
        scores = scores / self.temperature
        shifted = scores - scores.max(axis=-1, keepdims=True)
        return np.asarray(shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True)))


@dataclass(eq=False)
class ValueTerm(LossTerm):
    """Mean squared error in units of the teacher's spread.

    spread: the standard deviation of the teacher's tensor, () or broadcastable against the student's.
    """

    spread: Array = field(default_factory=lambda: np.ones(()))

    def attach(self, writer: NodeWriter) -> str:
        self.inputs["target"] = writer.input("loss_target", np.float32, self.rank)
        off = writer.node("Sub", writer.as_float(self.student, self.dtype), self.inputs["target"])
        off = writer.node("Mul", off, writer.constant((1 / np.asarray(self.spread, np.float64)).astype(np.float32)))
        return self._scaled(writer, writer.total(writer.node("Mul", off, off)))

    def feeds(self, target: Array) -> Feeds:
        return {self.inputs["target"]: np.asarray(target, np.float32), **self._factor(1 / max(1, target.size))}


@dataclass(eq=False)
class ChanceTerm(LossTerm):
    """KL of every element by itself: p log(p / q) + (1 - p) log((1 - p) / (1 - q))."""

    def attach(self, writer: NodeWriter) -> str:
        one, least = writer.constant(np.float32(1)), writer.constant(np.float32(LEAST))
        chances = writer.as_float(self.student, self.dtype)
        logs = writer.node("Log", writer.node("Add", chances, least))
        others = writer.node("Log", writer.node("Add", writer.node("Sub", one, chances), least))
        self.inputs["target"] = writer.input("loss_target", np.float32, self.rank)
        self.inputs["rest"] = writer.input("loss_rest", np.float32, self.rank)
        both = writer.node(
            "Add",
            writer.node("Mul", self.inputs["target"], logs),
            writer.node("Mul", self.inputs["rest"], others),
        )
        self.inputs["own"] = writer.input("loss_own", np.float32, 0)
        return writer.node("Sub", self.inputs["own"], self._scaled(writer, writer.total(both)))

    def feeds(self, target: Array) -> Feeds:
        p = np.clip(np.asarray(target, np.float64), 0, 1)
        own = (p * np.log(p + LEAST) + (1 - p) * np.log(1 - p + LEAST)).sum()
        factor = 1 / max(1, p.size)
        return {
            self.inputs["target"]: p.astype(np.float32),
            self.inputs["rest"]: (1 - p).astype(np.float32),
            self.inputs["own"]: np.asarray(self.weight * factor * own, np.float32),
            **self._factor(factor),
        }


@dataclass(eq=False)
class VectorTerm(LossTerm):
    """One minus the cosine of the vectors along the last axis."""

    def attach(self, writer: NodeWriter) -> str:
        vectors = writer.as_float(self.student, self.dtype)
        square = writer.sum_of_last(writer.node("Mul", vectors, vectors), self.rank)
        norm = writer.node("Sqrt", writer.node("Add", square, writer.constant(np.float32(LEAST_NORM))))
        self.inputs["target"] = writer.input("loss_target", np.float32, self.rank)
        along = writer.sum_of_last(writer.node("Mul", vectors, self.inputs["target"]), self.rank)
        cosines = self._scaled(writer, writer.total(writer.node("Div", along, norm)))
        return writer.node("Sub", writer.constant(np.float32(self.weight)), cosines)

    def feeds(self, target: Array) -> Feeds:
        vectors = np.asarray(target, np.float64)
        unit = vectors / np.sqrt(np.square(vectors).sum(axis=-1, keepdims=True) + LEAST_NORM)
        return {self.inputs["target"]: unit.astype(np.float32), **self._factor(1 / max(1, unit[..., 0].size))}


@dataclass(eq=False)
class LabelTerm(LossTerm):
    """Cross-entropy of the student's classes with the labels, which ``one_hot`` brings to the form of a target."""

    axis: int = -1
    form: str = "logits"
    classes: int = 0

    def attach(self, writer: NodeWriter) -> str:
        scores = writer.with_last(writer.as_float(self.student, self.dtype), self.axis, self.rank)
        if self.form == "probability":
            scores = writer.node("Log", writer.node("Add", scores, writer.constant(np.float32(LEAST))))
        logs = writer.node("LogSoftmax", scores, axis=self.rank - 1)
        self.inputs["target"] = writer.input("loss_labels", np.float32, self.rank)
        crossed = writer.total(writer.node("Mul", self.inputs["target"], logs))
        return writer.node("Neg", self._scaled(writer, crossed))

    def one_hot(self, labels: Array) -> Array:
        """(samples, classes) of integers (samples,)."""
        return np.eye(self.classes, dtype=np.float32)[np.asarray(labels, np.int64)]

    def feeds(self, target: Array) -> Feeds:
        """target: (samples, classes), see ``one_hot``."""
        return {self.inputs["target"]: np.asarray(target, np.float32), **self._factor(1 / max(1, len(target)))}


def add_loss(proto: ModelProto, opset: int, terms: Sequence[LossTerm]) -> str:
    """Add the sum of the terms to a model, in place, as its only output; gives the output's name."""
    writer = NodeWriter(proto, opset)
    parts = [each.attach(writer) for each in terms]
    total = parts[0]
    for part in parts[1:]:
        total = writer.node("Add", total, part)
    name = writer.free(LOSS)
    proto.graph.node.add(op_type="Identity", input=[total], output=[name], name=name)
    writer.outputs([name])
    return name


def all_feeds(terms: Sequence[LossTerm], targets: Mapping[str, Array]) -> Feeds:
    """What the inputs of all terms get. targets: the teacher's tensors by name."""
    found: Feeds = {}
    for each in terms:
        found.update(each.feeds(targets[each.teacher]))
    return found
