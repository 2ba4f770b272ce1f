"""Faults of ONNX Runtime that onnxcomp goes around, each with a probe: a model of a few nodes that is run.

A probe asks the ONNX Runtime that is installed, on this processor, and no table of versions. What ends the whole
process is tried in another one.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import numpy_helper, parser

from onnxcomp.errors import TargetError, VerificationError
from onnxcomp.runtime import Session, run_isolated
from onnxcomp.target import supported

Array = NDArray[Any]

FAR = 1e-4  # of the largest value: what is further off than this is no rounding of float32


@dataclass(frozen=True)
class Fault:
    """Something that ONNX Runtime gets wrong.

    what: what happens. around: what onnxcomp does about it, and what whoever builds a model can. is_present: the probe.
    """

    name: str
    what: str
    around: str
    is_present: Callable[[], bool]


@dataclass(frozen=True)
class FoundFault:
    """A fault that the installed ONNX Runtime has on this machine."""

    name: str
    what: str
    around: str


def faults_here() -> list[FoundFault]:
    """The known faults that are present, in the order of the table."""
    return [FoundFault(each.name, each.what, each.around) for each in FAULTS if each.is_present()]


def _sums_saturate() -> bool:
    """Products of uint8 and int8 at their largest, against whole numbers."""
    depth = 64
    feeds = {"x": np.full((1, depth), 255, np.uint8)}
    model = _model("uint8[1,64] x", "int32[1,16] y", "y = MatMulInteger(x, w)", w=np.full((depth, 16), 127, np.int8))
    return bool(np.any(Session(model).run(feeds)["y"] != 255 * 127 * depth))


def _decoded_products_are_rough() -> bool:
    """A product with decoded weights, against the same in float64."""
    rng = np.random.default_rng(0)
    codes, values = rng.integers(-127, 128, (64, 32)).astype(np.int8), rng.standard_normal((4, 64)).astype(np.float32)
    nodes = "w = DequantizeLinear(c, s) y = MatMul(x, w)"
    model = _model("float[4,64] x", "float[4,32] y", nodes, c=codes, s=np.float32(0.5))
    return _is_off(Session(model).run({"x": values})["y"], values.astype(np.float64) @ (0.5 * codes))


def _turned_vector_products_are_wrong() -> bool:
    """A product of a turned tensor and a vector, against the same in float64."""
    rng = np.random.default_rng(0)
    values, vector = (rng.standard_normal(shape).astype(np.float32) for shape in ((2, 3, 4), (3,)))
    nodes = "t = Transpose<perm = [0, 2, 1]>(x) y = MatMul(t, v)"
    model = _model("float[2,3,4] x", "float[2,4] y", nodes, v=vector)
    return _is_off(Session(model).run({"x": values})["y"], values.astype(np.float64).transpose(0, 2, 1) @ vector)


def _norms_behind_casts_are_refused() -> bool:
    """A LayerNormalization written out, right behind a Cast."""
    nodes = """x = Cast<to = 1>(h) m = ReduceMean<axes = [-1]>(x) d = Sub(x, m) p = Pow(d, two)
        v = ReduceMean<axes = [-1]>(p) e = Add(v, eps) s = Sqrt(e) q = Div(d, s) r = Mul(q, g) y = Add(r, b)"""
    ones = np.ones(8, np.float32)
    model = _model(
        "float16[2,8] h", "float[2,8] y", nodes, opset=17, two=np.float32(2), eps=np.float32(1e-3), g=ones, b=ones
    )
    return not _opens(model)


def _newest_opset_cannot_quantize() -> bool:
    """QuantizeLinear at the highest opset that loads at all."""
    nodes = "q = QuantizeLinear(x, s, z) y = DequantizeLinear(q, s, z)"
    opset, ir = supported()
    return not _opens(
        _model("float[4] x", "float[4] y", nodes, opset=opset, ir=ir, s=np.float32(0.1), z=np.uint8(0))
    )


def _decoders_in_bodies_are_refused() -> bool:
    """A decoder of weights in a branch, whose codes are outside of it."""
    nodes = """y = If (c) <then_branch = t () => (float[4,64] a) { w = DequantizeLinear(q, s) a = MatMul(x, w) },
        else_branch = e () => (float[4,64] b) { b = Neg(x) }>"""
    model = _model("bool c, float[4,64] x", "float[4,64] y", nodes, q=np.ones((64, 64), np.int8), s=np.float32(0.01))
    return not _opens(model)


def _moved_decoders_end_the_process() -> bool:
    """A turned tensor between DequantizeLinear and a branch that alone reads it, opened in a process of its own."""
    nodes = """k = QuantizeLinear(x, s, z) d = DequantizeLinear(k, s, z) r = Transpose<perm = [1, 0]>(d)
        y = If (c) <then_branch = t () => (float[64,4] a) { a = Relu(r) },
        else_branch = e () => (float[64,4] b) { b = Neg(r) }>"""
    model = _model("bool c, float[4,64] x", "float[64,4] y", nodes, s=np.float32(0.1), z=np.uint8(3))
    with tempfile.TemporaryDirectory(prefix="onnxcomp-") as folder:
        try:
            run_isolated(model, [], folder=Path(folder))
        except (TargetError, VerificationError):
            return True
    return False


FAULTS = (
    Fault(
        "saturating integer sums",
        "sums of uint8 times int8 products do not fit where this processor adds them, and are cut off",
        "quantize-static and quantize-dynamic keep weights to 7 bits here; others need reduce_range",
        _sums_saturate,
    ),
    Fault(
        "rough products of decoded weights",
        "DequantizeLinear -> MatMul becomes MatMulNBits with activations rounded to 8 bits: 0.2 to 1% off",
        "store-compact decodes by Mul(Cast(codes), scale), which is exact; elsewhere set "
        "session.qdq_matmulnbits_accuracy_level=0",
        _decoded_products_are_rough,
    ),
    Fault(
        "wrong products of turned tensors and vectors",
        "Transpose -> MatMul by a vector of one dimension gives wrong values",
        "every result is held against the original; write the vector as a matrix of one column",
        _turned_vector_products_are_wrong,
    ),
    Fault(
        "normalizations behind a Cast do not load",
        "LayerNormalization that is written out right behind a Cast is fused over it, and the model refused",
        "what such a pass made is taken back; LayerNormalization as one node (opset 17) loads",
        _norms_behind_casts_are_refused,
    ),
    Fault(
        "newest opset without quantization",
        "at the highest opset that loads, QuantizeLinear and DequantizeLinear have no kernel",
        "onnxcomp leaves a model's opset unless it must be higher; export at a lower one",
        _newest_opset_cannot_quantize,
    ),
    Fault(
        "decoders in branches do not load",
        "DequantizeLinear -> MatMul in a branch or loop whose codes are outside of it is refused",
        "onnxcomp keeps codes in the scope that reads them",
        _decoders_in_bodies_are_refused,
    ),
    Fault(
        "moved decoders end the process",
        "DequantizeLinear -> Transpose (or another that moves values) that only a branch reads: opening it aborts",
        "quantize-static gives branches such tensors as floats",
        _moved_decoders_end_the_process,
    ),
)  # fmt: skip


def _model(inputs: str, outputs: str, nodes: str, *, opset: int = 13, ir: int = 8, **constants: Any) -> bytes:
    """A model from ONNX text, its constants as arrays."""
    text = f'<ir_version: {ir}, opset_import: ["" : {opset}]> probe ({inputs}) => ({outputs}) {{ {nodes} }}'
    made = parser.parse_model(text)
    held: Mapping[str, Array] = {name: np.asarray(value) for name, value in constants.items()}
    made.graph.initializer.extend(numpy_helper.from_array(value, name) for name, value in held.items())
    return bytes(made.SerializeToString())


def _opens(model: bytes) -> bool:
    try:
        Session(model)
    except TargetError:
        return False
    return True


def _is_off(found: Array, right: Array) -> bool:
    return bool(np.max(np.abs(found - right)) > FAR * np.max(np.abs(right)))
