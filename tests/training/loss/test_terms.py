"""Losses as nodes, held against plain numpy."""

from collections.abc import Sequence

import numpy as np
import onnx
import pytest

from onnxcomp.runtime import Session
from onnxcomp.training.loss.terms import (
    ChanceTerm,
    ClassTerm,
    LabelTerm,
    LossTerm,
    ValueTerm,
    VectorTerm,
    add_loss,
    all_feeds,
)

RNG = np.random.default_rng(1)


Named = dict[str, np.ndarray]


def loss_of(terms: Sequence[LossTerm], given: Named, targets: Named, opset: int) -> float:
    """The loss of a model that hands on its inputs, by ONNX Runtime."""
    nodes = [onnx.helper.make_node("Identity", [f"{name}_in"], [name]) for name in given]
    kinds = {np.dtype(np.float32): onnx.TensorProto.FLOAT, np.dtype(np.float16): onnx.TensorProto.FLOAT16}
    inputs = [
        onnx.helper.make_tensor_value_info(f"{name}_in", kinds[each.dtype], [None] * each.ndim)
        for name, each in given.items()
    ]
    graph = onnx.helper.make_graph(nodes, "g", inputs, [onnx.ValueInfoProto(name=name) for name in given])
    proto = onnx.helper.make_model(graph, ir_version=8, opset_imports=[onnx.helper.make_opsetid("", opset)])
    name = add_loss(proto, opset, terms)
    assert [each.name for each in proto.graph.output] == [name]
    feeds = {f"{key}_in": each for key, each in given.items()} | all_feeds(terms, targets)
    found = Session(proto.SerializeToString()).run(feeds)[name]
    assert found.shape == ()
    return float(found)


def softmax(scores: np.ndarray, axis: int = -1) -> np.ndarray:
    powers = np.exp(scores - scores.max(axis=axis, keepdims=True))
    return powers / powers.sum(axis=axis, keepdims=True)


@pytest.mark.parametrize("opset", [9, 13, 18])
@pytest.mark.parametrize("axis", [1, 2])
@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_classes_are_held_apart_by_softened_kl(opset: int, axis: int, temperature: float) -> None:
    student, teacher = RNG.normal(0, 3, (2, 4, 5, 3)).astype(np.float32)
    term = ClassTerm("y", "y", 0.5, 3, axis=axis, temperature=temperature)
    found = loss_of([term], {"y": student}, {"y": teacher}, opset)
    p, q = (softmax(each.astype(np.float64) / temperature, axis) for each in (teacher, student))
    kl = (p * np.log(p / q)).sum(axis=axis).mean()
    assert found == pytest.approx(0.5 * temperature**2 * kl, rel=1e-4)


def test_probabilities_are_read_as_such() -> None:
    student, teacher = (softmax(each) for each in RNG.normal(0, 2, (2, 6, 4)))
    term = ClassTerm("y", "y", 1.0, 2, axis=1, form="probability", teacher_form="probability")
    found = loss_of([term], {"y": student.astype("f4")}, {"y": teacher.astype("f4")}, 17)
    assert found == pytest.approx((teacher * np.log(teacher / student)).sum(axis=1).mean(), rel=1e-4)


def test_nothing_is_lost_where_both_give_the_same() -> None:
    scores = RNG.normal(0, 3, (8, 5)).astype(np.float32)
    chances = softmax(scores).astype("f4")
    for term in (
        ClassTerm("y", "y", 1.0, 2, axis=1, temperature=2.0),
        ValueTerm("y", "y", 1.0, 2),
        VectorTerm("y", "y", 1.0, 2),
    ):
        assert loss_of([term], {"y": scores}, {"y": scores}, 17) == pytest.approx(0, abs=1e-6)
    assert loss_of([ChanceTerm("y", "y", 1.0, 2)], {"y": chances}, {"y": chances}, 17) == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_values_are_held_apart_in_units_of_their_spread(dtype: type) -> None:
    student, teacher = RNG.normal(0, 3, (2, 4, 3, 5)).astype(dtype)
    spread = np.array([0.5, 1.0, 4.0]).reshape(1, 3, 1)
    found = loss_of([ValueTerm("y", "y", 2.0, 3, dtype, spread=spread)], {"y": student}, {"y": teacher}, 17)
    off = (student.astype(np.float64) - teacher.astype(np.float64)) / spread
    assert found == pytest.approx(2 * np.square(off).mean(), rel=1e-3)


@pytest.mark.parametrize("opset", [11, 17])
def test_vectors_are_held_apart_by_their_angle(opset: int) -> None:
    student, teacher = RNG.normal(0, 3, (2, 4, 3, 5)).astype(np.float32)
    found = loss_of([VectorTerm("y", "y", 1.0, 3)], {"y": student}, {"y": teacher}, opset)
    norms = np.linalg.norm(student, axis=-1) * np.linalg.norm(teacher, axis=-1)
    assert found == pytest.approx((1 - (student * teacher).sum(axis=-1) / norms).mean(), rel=1e-4)


def test_chances_are_held_apart_one_by_one() -> None:
    q, p = RNG.uniform(0.02, 0.98, (2, 7, 3)).astype(np.float32)
    found = loss_of([ChanceTerm("y", "y", 1.0, 2)], {"y": q}, {"y": p}, 17)
    kl = p * np.log(p / q) + (1 - p) * np.log((1 - p) / (1 - q))
    assert found == pytest.approx(kl.mean(), rel=1e-3)


def test_labels_count_by_cross_entropy() -> None:
    scores, labels = RNG.normal(0, 2, (6, 4)).astype(np.float32), np.array([0, 1, 2, 3, 3, 0])
    term = LabelTerm("y", "labels", 1.5, 2, axis=1, classes=4)
    found = loss_of([term], {"y": scores}, {"labels": term.one_hot(labels)}, 17)
    assert found == pytest.approx(-1.5 * np.log(softmax(scores)[np.arange(6), labels]).mean(), rel=1e-4)


def test_terms_add_up() -> None:
    student, teacher = RNG.normal(0, 3, (2, 4, 5)).astype(np.float32)
    one, other = ValueTerm("y", "y", 1.0, 2), VectorTerm("y", "y", 3.0, 2)
    alone = [
        loss_of([ValueTerm("y", "y", 1.0, 2)], {"y": student}, {"y": teacher}, 17),
        loss_of([VectorTerm("y", "y", 3.0, 2)], {"y": student}, {"y": teacher}, 17),
    ]
    assert loss_of([one, other], {"y": student}, {"y": teacher}, 17) == pytest.approx(sum(alone), rel=1e-5)
