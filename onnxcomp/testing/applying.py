"""Apply a pass to a model as the pipeline does, under every choice that it has."""

import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx

from onnxcomp.calibration import CalibrationData, Group
from onnxcomp.calibration.data.sample_axes import WHOLE
from onnxcomp.contract import Context, Needs, Outcome, Pass, parameters
from onnxcomp.errors import TimeIsUp
from onnxcomp.graph.ir.reader import Graph, close_graph
from onnxcomp.graph.provenance import Reference
from onnxcomp.model import Model, load
from onnxcomp.pipeline.apply import opened_for
from onnxcomp.runtime import Session
from onnxcomp.target import Target
from onnxcomp.testing.comparing import Feeds

CPU = Target.of("cpu")


@dataclass(frozen=True)
class Applied:
    """A model before and after a pass, and what the pass said."""

    rewrite: Pass
    before: Model
    after: Model
    outcome: Outcome

    @functools.cached_property
    def content(self) -> bytes:
        return self.after.to_bytes()

    @property
    def names(self) -> set[str]:
        """The names of what the pass says that it changed."""
        return {each.name for each in self.outcome.changed}


def apply(source: onnx.ModelProto | Model, rewrite: Pass, feeds: Feeds, **context: Any) -> Applied:
    """Apply the pass to the model; the feeds serve as calibration data, one batch, where `context` has none."""
    model = source if isinstance(source, Model) else load(source)
    return edited(model, rewrite, lambda graph: rewrite.apply(graph, context_for(model, rewrite, feeds, **context)))


def edited(model: Model, rewrite: Pass, edit: Callable[[Graph], Outcome]) -> Applied:
    """What an edit of the opened model makes of it."""
    graph = opened_for(rewrite, model)
    try:
        outcome = edit(graph)
    except TimeIsUp:
        return Applied(rewrite, model, model, Outcome(is_cut_short=True))
    return Applied(rewrite, model, close_graph(graph), outcome)


def context_for(
    model: Model, rewrite: Pass, feeds: Feeds, *, kind: type[Context] = Context, **context: Any
) -> Context:
    """A context of that kind, with what the pass needs where `context` does not say it, and nothing more."""
    options: dict[str, Any] = {"target": CPU, "max_opset": CPU.supported_opset}
    if rewrite.needed() is not Needs.NOTHING:
        whole = onnx.ModelProto.FromString(model.to_bytes())
        if "calibration" not in context:
            options["calibration"] = calibration_of(whole, feeds)
        if "reference" not in context:
            options["reference"] = Reference(_as_before(whole))
    return kind(**(options | context))


def _as_before(proto: onnx.ModelProto) -> Model:
    """A model that this one may come from: its float matrices and kernels are a little larger."""
    before = onnx.ModelProto()
    before.CopyFrom(proto)
    for tensor in before.graph.initializer:
        if tensor.data_type == onnx.TensorProto.FLOAT and len(tensor.dims) > 1 and not tensor.external_data:
            values = onnx.numpy_helper.to_array(tensor) * np.float32(1.125)
            tensor.CopyFrom(onnx.numpy_helper.from_array(values, tensor.name))
    return load(before)


def calibration_of(proto: onnx.ModelProto, feeds: Feeds) -> CalibrationData:
    """The feeds as calibration data of one batch that is never cut."""
    inputs = Session(proto.SerializeToString()).inputs
    groups = tuple(Group(f"batch {i}", functools.partial(dict, feeds), WHOLE) for i in range(2))
    order = np.array([[0, 0], [1, 0]], np.int64)
    return CalibrationData(source="the test", inputs=inputs, groups=groups, order=order)


def variants(kind: type[Pass]) -> Iterator[Pass]:
    """The pass with its defaults; as eager as it gets; and with every choice and switch that it has."""
    seen: list[Pass] = []
    for values in ({}, eager(kind), *_choices(kind)):
        rewrite = kind(**values)
        if rewrite not in seen:
            seen.append(rewrite)
            yield rewrite


def eager(kind: type[Pass]) -> dict[str, Any]:
    """Values that leave no weight out for its size and compress it the most."""
    values: dict[str, Any] = {}
    for each in parameters(kind):
        if each.strengths:
            values[each.name] = each.strengths[-1]
        elif each.name.startswith("min_") and each.low is not None:
            values[each.name] = each.type(each.low)
    return values


def _choices(kind: type[Pass]) -> Iterator[dict[str, Any]]:
    for each in parameters(kind):
        options = each.choices or ((True, False) if each.type is bool else ())
        for option in options:
            if option != each.default:
                yield {**eager(kind), each.name: option}
