"""Apply a pass to a model as the pipeline does, and hold the result to what the pass declares."""

import functools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx

from onnxcomp.calibration import CalibrationData, Group
from onnxcomp.calibration.data.sample_axes import WHOLE
from onnxcomp.contract import Context, Needs, Outcome, Pass, parameters
from onnxcomp.errors import VerificationError
from onnxcomp.graph.ir.provenance import Reference
from onnxcomp.graph.ir.reader import close_graph, open_graph
from onnxcomp.model import Model, load
from onnxcomp.runtime import Session
from onnxcomp.target import Target
from onnxcomp.tensors import tensors_of
from tests.conformance.cases import Feeds, differences
from tests.graphs.running import EXACT

CPU = Target.of("cpu")
# What float rounding may change, as a share of an output's largest value, in the coarsest type of the model:
# some hundred times the type's own rounding (2^-24, 2^-11, 2^-8), since errors add up along a sum.
ROUNDING = {onnx.TensorProto.FLOAT16: 2e-2, onnx.TensorProto.BFLOAT16: 5e-2}
FLOAT_ROUNDING = 2e-5
# Operators whose output is as long as the values say: a lossy pass may change it.
SHAPED_BY_VALUES = frozenset({"NonMaxSuppression", "NonZero", "Unique", "Compress"})


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


def apply(source: onnx.ModelProto | Model, rewrite: Pass, feeds: Feeds, **context: Any) -> Applied:
    """Apply the pass to the model; the feeds serve as calibration data, one batch, where `context` has none."""
    model = source if isinstance(source, Model) else load(source)
    graph = open_graph(model)
    needs_data = rewrite.needed() is not Needs.NOTHING
    data = calibration_of(model.proto, feeds) if needs_data and "calibration" not in context else None
    reference = Reference(_as_before(model.proto)) if needs_data and "reference" not in context else None
    options = {"target": CPU, "calibration": data, "reference": reference, "max_opset": CPU.supported_opset}
    chosen = Context(**(options | context))
    outcome = rewrite.apply(graph, chosen)
    return Applied(rewrite, model, close_graph(graph), outcome)


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


def assert_keeps_promises(done: Applied, feeds: Feeds, expected: Feeds, *, where: str) -> None:
    """Hold the result to the pass's declaration.

    The input is as it was; with nothing changed the model is the same; the result passes the checker where
    the original does, loads, gives outputs of the same names, types and shapes, and the same values where
    the pass claims to be exact.
    """
    original = done.before.proto
    if not done.outcome.changed:
        unchanged = original.SerializeToString(deterministic=True)
        assert unchanged == done.after.proto.SerializeToString(deterministic=True), f"{where}: changed unsaid"
        return
    after = onnx.load_from_string(done.content)
    _assert_still_valid(original, after, where)
    got = dict(Session(done.content, config=EXACT).run(feeds))
    assert list(got) == list(expected), f"{where}: outputs {list(got)} for {list(expected)}"
    by_values = not done.rewrite.effect.is_exact and any(n.op_type in SHAPED_BY_VALUES for n in original.graph.node)
    for name, value in expected.items():
        _assert_same_form(value, got[name], f"{where}: {name}", same_shape=not by_values)
    if done.rewrite.effect.is_exact:
        different = differences(expected, got, rtol=rounding_of(original))
        assert not different, f"{where}: an exact pass changed {different}"


def assert_exact_to_the_bit(done: Applied, feeds: Feeds, *, where: str) -> None:
    """Hold a pass that claims no rounding to the bit, with ONNX Runtime's own rewriting switched off.

    So is prepacking: a matrix that is constant is packed, and its product then differs in the last bit from
    that with one behind a Transpose.
    """
    plain: dict[str, Any] = {"optimization": "none", "config": {"session.disable_prepacking": "1"}}
    expected = dict(Session(done.before.to_bytes(), **plain).run(feeds))
    try:
        got = dict(Session(done.content, **plain).run(feeds))
    except VerificationError as error:
        # 1.31 joins Cast(Cast(x)) at every level and loses the result where only a body reads it.
        assert "Missing Input: cast" in str(error), where
        return
    different = differences(expected, got)
    assert not different, f"{where}: {different} differ in some bit"


def rounding_of(proto: onnx.ModelProto) -> float:
    """What rounding may change in this model's outputs, as a share of the largest value."""
    kinds = {tensor.data_type for tensor in tensors_of(proto)}
    kinds |= {value.type.tensor_type.elem_type for value in (*proto.graph.input, *proto.graph.output)}
    return max((share for kind, share in ROUNDING.items() if kind in kinds), default=FLOAT_ROUNDING)


def _assert_still_valid(original: onnx.ModelProto, after: onnx.ModelProto, where: str) -> None:
    full = not original.graph.sparse_initializer and _passes(original, full=True)
    if not full and not _passes(original, full=False):
        return
    try:
        onnx.checker.check_model(after, full_check=full)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise AssertionError(f"{where}: onnx.checker refuses the result: {error}") from error


def _passes(model: onnx.ModelProto, *, full: bool) -> bool:
    try:
        onnx.checker.check_model(model, full_check=full)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError):
        return False
    return True


def _assert_same_form(expected: Any, got: Any, where: str, *, same_shape: bool) -> None:
    if isinstance(expected, list) or expected is None:
        assert type(expected) is type(got), where
        return
    assert np.asarray(expected).dtype == np.asarray(got).dtype, f"{where}: another type"
    assert np.ndim(expected) == np.ndim(got), f"{where}: rank {np.ndim(got)} for {np.ndim(expected)}"
    if same_shape:
        assert np.shape(expected) == np.shape(got), f"{where}: {np.shape(got)} for {np.shape(expected)}"
