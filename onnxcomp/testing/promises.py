"""Hold what a pass made of a model to what the pass declares: said, valid, exact."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx

from onnxcomp.contract import Pass
from onnxcomp.errors import OnnxcompError, VerificationError
from onnxcomp.runtime import Session
from onnxcomp.testing.applying import Applied
from onnxcomp.testing.comparing import Feeds, differences, rounding_of, run
from onnxcomp.testing.rules import Rule

# Operators whose output is as long as the values say: a lossy pass may change it.
SHAPED_BY_VALUES = frozenset({"NonMaxSuppression", "NonZero", "Unique", "Compress"})

SAID = Rule(
    "said",
    "nothing in outcome.changed means that the graph is as it was",
    "call outcome.change(name, what) for each weight and node that is changed, and edit nothing before that is certain",
)
VALID = Rule(
    "valid",
    "the result is a model that loads, with the inputs and outputs that the model had",
    "keep the names, types and shapes of outputs; give new tensors names by graph.constant and graph.variable",
)
OUTPUTS = Rule(
    "exactness",
    "effect.exact is OUTPUTS or TENSORS: the model gives what it gave, up to float rounding",
    "leave alone what cannot be rewritten exactly, with outcome.skip, or declare Exact.NOWHERE",
)
BITS = Rule(
    "exactness to the bit",
    "effect.exact without effect.rounding: the model gives what it gave, bit for bit",
    "declare rounding=True in the effect where the same mathematics is computed in another order",
)


def assert_keeps_promises(done: Applied, feeds: Feeds, expected: Feeds, *, where: str) -> None:
    """Hold the result to the pass's declaration.

    With nothing changed the model is the same; the result passes the checker where the original does, loads, gives
    outputs of the same names, types and shapes, and the same values where the pass claims to be exact.

    expected: what the model gave before. where: the model, as the message names it.
    """
    kind = type(done.rewrite)
    original = done.before.proto
    if not done.outcome.changed:
        same = content_of(original) == content_of(done.after.proto)
        SAID.expect(same, kind, f"{done.rewrite} said nothing and changed {where}")
        return
    after = onnx.load_from_string(done.content)
    _expect_still_valid(kind, original, after, where)
    got = _outputs(kind, done.content, feeds, where)
    VALID.expect(list(got) == list(expected), kind, f"outputs {list(got)} for {list(expected)} of {where}")
    by_values = not done.rewrite.effect.is_exact and any(n.op_type in SHAPED_BY_VALUES for n in original.graph.node)
    for name, value in expected.items():
        _expect_same_form(kind, value, got[name], f"output {name} of {where}", same_shape=not by_values)
    if done.rewrite.effect.is_exact:
        different = differences(expected, got, rtol=rounding_of(original))
        OUTPUTS.expect(not different, kind, f"{done.rewrite} changed the outputs {different} of {where}")


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
        if "Missing Input: cast" not in str(error):
            raise VALID.broken(type(done.rewrite), f"ONNX Runtime does not run {where}: {error}") from error
        return
    different = differences(expected, got)
    found = f"{done.rewrite} changed some bit of the outputs {different} of {where}"
    BITS.expect(not different, type(done.rewrite), found)


def content_of(proto: onnx.ModelProto) -> bytes:
    """The model as bytes that are the same for the same model."""
    return proto.SerializeToString(deterministic=True)


def _outputs(kind: type[Pass], content: bytes, feeds: Feeds, where: str) -> Feeds:
    try:
        return run(content, feeds)
    except OnnxcompError as error:
        raise VALID.broken(kind, f"ONNX Runtime refuses what became of {where}: {error}") from error


def _expect_still_valid(kind: type[Pass], original: onnx.ModelProto, after: onnx.ModelProto, where: str) -> None:
    full = not original.graph.sparse_initializer and _passes(original, full=True)
    if not full and not _passes(original, full=False):
        return
    try:
        onnx.checker.check_model(after, full_check=full)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise VALID.broken(kind, f"onnx.checker refuses what became of {where}: {error}") from error


def _passes(model: onnx.ModelProto, *, full: bool) -> bool:
    try:
        onnx.checker.check_model(model, full_check=full)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError):
        return False
    return True


def _expect_same_form(kind: type[Pass], expected: Any, got: Any, where: str, *, same_shape: bool) -> None:
    if isinstance(expected, list) or expected is None:
        VALID.expect(type(expected) is type(got), kind, f"{type(got)} for {type(expected)}, {where}")
        return
    old, new = np.asarray(expected), np.asarray(got)
    VALID.expect(old.dtype == new.dtype, kind, f"{new.dtype} for {old.dtype}, {where}")
    VALID.expect(old.ndim == new.ndim, kind, f"rank {new.ndim} for {old.ndim}, {where}")
    VALID.expect(not same_shape or old.shape == new.shape, kind, f"shape {new.shape} for {old.shape}, {where}")
