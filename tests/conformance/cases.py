"""The node tests that ONNX Runtime itself runs: collected and tried once a process, no list by hand."""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, numpy_helper

from onnxcomp.errors import OnnxcompError
from onnxcomp.testing.comparing import Feeds, differences, run

SAMPLED = 8  # of the further node tests of an operator one in so many
FLOATS = frozenset({TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.DOUBLE, TensorProto.BFLOAT16})


@dataclass(frozen=True)
class Case:
    """A model that ONNX Runtime runs on `feeds`, and what it gives; random operators do not `repeat`."""

    name: str
    model: onnx.ModelProto
    feeds: Feeds
    outputs: Feeds
    repeats: bool


@dataclass(frozen=True)
class Collected:
    """The cases that run, and for each of the others why not."""

    cases: tuple[Case, ...]
    refused: dict[str, str]


@cache
def node_cases() -> Collected:
    """Every node test that ONNX Runtime loads and runs on the test's own data."""
    from onnx.backend.test.case.node import collect_testcases

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # numpy's, from the reference implementations of casts and divisions
        collected = collect_testcases(None)
    models = [(case.name, case.model, _feeds(case.model, case.data_sets[0][0])) for case in collected if case.data_sets]
    return _tried(models)


@cache
def weight_cases() -> Collected:
    """The node tests with all but the first of their float inputs made initializers.

    Those with one float input or none are left out. Graph optimizations see constants now, so each is
    tried anew; the reference is what this model gives.
    """
    return _tried([(case.name, *with_weights(case.model, case.feeds)) for case in _with_two_floats()])


def sampled(cases: Sequence[Case]) -> list[Case]:
    """The first case with each operator, and of the others every so-many-th; the same each time."""
    seen: set[str] = set()
    chosen = []
    for index, case in enumerate(cases):
        operators = {node.op_type for node in case.model.graph.node}
        if index % SAMPLED == 0 or not operators <= seen:
            chosen.append(case)
        seen |= operators
    return chosen


def not_sampled(cases: Sequence[Case]) -> list[Case]:
    """The cases that `sampled` leaves out."""
    chosen = {id(case) for case in sampled(cases)}
    return [case for case in cases if id(case) not in chosen]


def _with_two_floats() -> list[Case]:
    return [case for case in node_cases().cases if len(_float_inputs(case.model, case.feeds)) > 1]


def with_weights(model: onnx.ModelProto, feeds: Feeds) -> tuple[onnx.ModelProto, Feeds]:
    """Turn all but the first float input into initializers holding the test's values; the rest stays fed."""
    made = onnx.ModelProto()
    made.CopyFrom(model)
    weights = set(_float_inputs(model, feeds)[1:])
    kinds = {value.name: value.type.tensor_type.elem_type for value in model.graph.input}
    for name in sorted(weights):
        tensor = numpy_helper.from_array(np.asarray(feeds[name]), name)
        assert tensor.data_type == kinds[name], name
        made.graph.initializer.append(tensor)
    if made.ir_version >= 4:
        inputs = [value for value in made.graph.input if value.name not in weights]
        del made.graph.input[:]
        made.graph.input.extend(inputs)
    return made, {name: value for name, value in feeds.items() if name not in weights}


def _float_inputs(model: onnx.ModelProto, feeds: Feeds) -> list[str]:
    return [
        value.name
        for value in model.graph.input
        if value.type.tensor_type.elem_type in FLOATS and isinstance(feeds.get(value.name), np.ndarray)
    ]


def _feeds(model: onnx.ModelProto, data: list[Any]) -> Feeds:
    feeds = {}
    for value, given in zip(model.graph.input, data, strict=False):
        array = numpy_helper.to_array(given) if isinstance(given, TensorProto) else given
        kind = value.type.tensor_type.elem_type
        if kind and not isinstance(array, list):
            array = np.asarray(array, dtype=onnx.helper.tensor_dtype_to_np_dtype(kind))
        feeds[value.name] = array
    return feeds


def _tried(models: list[tuple[str, onnx.ModelProto, Feeds]]) -> Collected:
    cases, refused = [], {}
    for name, model, feeds in models:
        try:
            first = run(model, feeds)
            again = run(model, feeds)
        except OnnxcompError as error:
            refused[name] = str(error)
            continue
        cases.append(Case(name, model, feeds, first, repeats=differences(first, again) == []))
    return Collected(tuple(cases), refused)
