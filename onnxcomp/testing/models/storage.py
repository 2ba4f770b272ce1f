"""Every place where exporters put a weight: initializer, Constant node, behind Identity, Cast, ..."""

from collections.abc import Callable

import numpy as np
from onnx import TensorProto, helper, numpy_helper

from onnxcomp.testing.models.building import LAST_QDQ_OPSET, Builder

Form = Callable[[Builder, np.ndarray], str]


def weight(b: Builder, values: np.ndarray) -> str:
    """Store a float32 weight, half of the time plainly, and return the name of the tensor to read.

    The values may be rounded to what the form can hold (float16, int8, the values of an earlier weight).
    """
    usable = [form for form in FORMS if _possible(b, form, values)]
    form = b.choice(usable) if b.chance(50) else plain_weight
    name = form(b, values)
    # ONNX Runtime takes a sparse initializer into few operators only, not into Identity, so it is read once
    if form is not _sparse and name not in b.weights.setdefault(values.shape, []):
        b.weights[values.shape].append(name)
    return name


def random_weight(b: Builder, shape: tuple[int, ...], *, fan_in: int | None = None, offset: float = 0.0) -> str:
    """Store random values, scaled so that activations keep their size."""
    count = fan_in if fan_in is not None else max(1, int(np.prod(shape[1:], initial=1)))
    return weight(b, random_values(b, shape, fan_in=count, offset=offset))


def positive_weight(b: Builder, size: int) -> str:
    """Store variances: between 0.5 and 1.5, in a form that keeps them positive."""
    values = (b.random.random(size) + 0.5).astype(np.float32)
    return b.choice([plain_weight, plain_weight, _behind_cast, _computed])(b, values)


def random_values(b: Builder, shape: tuple[int, ...], *, fan_in: int, offset: float = 0.0) -> np.ndarray:
    """Return float32 values of one of three kinds: dense, half zeros, few levels."""
    values = b.normal(shape, scale=fan_in**-0.5)
    kind = b.choice(["dense", "dense", "zeros", "levels"])
    if kind == "zeros":
        values = np.where(b.random.random(shape) < 0.5, np.float32(0), values)
    elif kind == "levels":
        values = (np.round(values * np.sqrt(fan_in) * 4) / 4 * fan_in**-0.5).astype(np.float32)
    return (values + np.float32(offset)).astype(np.float32)


def _initializer(b: Builder, values: np.ndarray) -> str:
    return b.initializer(values)


def _typed(b: Builder, values: np.ndarray) -> str:
    return b.initializer(values, typed=True)


def _as_input(b: Builder, values: np.ndarray) -> str:
    return b.initializer(values, as_input=True)


def _constant_node(b: Builder, values: np.ndarray) -> str:
    return b.constant_node(values)


def _behind_identity(b: Builder, values: np.ndarray) -> str:
    return b.node("Identity", [_computed(b, values) if b.chance(30) else plain_weight(b, values)])


def _behind_cast(b: Builder, values: np.ndarray) -> str:
    dtype = b.choice([np.float16, np.float64])
    return b.node("Cast", [plain_weight(b, values.astype(dtype))], to=TensorProto.FLOAT)


def _behind_transpose(b: Builder, values: np.ndarray) -> str:
    perm = b.random.permutation(values.ndim)
    stored = np.ascontiguousarray(values.transpose(np.argsort(perm)))
    return b.node("Transpose", [plain_weight(b, stored)], perm=perm.tolist())


def _behind_reshape(b: Builder, values: np.ndarray) -> str:
    stored = values.reshape(-1) if b.chance(50) else values.reshape(values.shape[0], -1)
    return b.node("Reshape", [plain_weight(b, stored), b.constant(list(values.shape))])


def _reused(b: Builder, values: np.ndarray) -> str:
    return b.choice(_visible(b, values.shape))


def _duplicate(b: Builder, values: np.ndarray) -> str:
    """Store the same values twice in separate initializers; the first copy is read by a node of its own."""
    first = b.initializer(values)
    second = b.initializer(values)
    return b.node("Max", [first, second]) if b.chance(30) else second


def _computed(b: Builder, values: np.ndarray) -> str:
    """Leave something to fold: values = stored * 0.5 + stored * 0.5."""
    half = b.node("Mul", [plain_weight(b, values), b.constant(0.5, np.float32)])
    return b.node("Add", [half, half])


def _sparse(b: Builder, values: np.ndarray) -> str:
    kept = np.where(b.random.random(values.shape) < 0.2, values, np.float32(0))
    positions = np.flatnonzero(kept).astype(np.int64)
    name = b.name("sparse")
    sparse = helper.make_sparse_tensor(
        numpy_helper.from_array(kept.ravel()[positions], name),
        numpy_helper.from_array(positions, f"{name}_indices"),
        list(values.shape),
    )
    b.sparse_initializers.append(sparse)
    return name


def _dequantized(b: Builder, values: np.ndarray) -> str:
    """Store what an earlier quantization left: int8 codes and a scale."""
    scale = np.float32(max(float(np.abs(values).max(initial=0)), 1e-3) / 127)
    codes = np.clip(np.round(values / scale), -127, 127).astype(np.int8)
    return b.node("DequantizeLinear", [plain_weight(b, codes), b.constant(scale, np.float32)])


def _int4(b: Builder, values: np.ndarray) -> str:
    scale = np.float32(max(float(np.abs(values).max(initial=0)), 1e-3) / 7)
    codes = np.clip(np.round(values / scale), -7, 7).astype(np.int8)
    tensor = helper.make_tensor(b.name("weight"), TensorProto.INT4, values.shape, codes.ravel().tolist())
    b.add_initializer(tensor)
    return b.node("DequantizeLinear", [tensor.name, b.constant(scale, np.float32)])


def plain_weight(b: Builder, values: np.ndarray) -> str:
    """Store exactly these values as an initializer or a Constant node."""
    if b.may_hold_initializers and b.chance(70):
        return b.initializer(values)
    return b.constant_node(values)


def _visible(b: Builder, shape: tuple[int, ...]) -> list[str]:
    """Names of weights of this shape in this scope and the scopes around it."""
    names = list(b.weights.get(shape, []))
    return names + (_visible(b.outer, shape) if b.outer is not None else [])


def _possible(b: Builder, form: Form, values: np.ndarray) -> bool:
    if form in (_initializer, _typed, _duplicate):
        return b.may_hold_initializers
    if form is _as_input:
        return b.outer is None
    if form is _behind_transpose:
        return values.ndim >= 2
    if form is _behind_reshape:
        return values.ndim >= 1 and values.size > 0
    if form is _reused:
        return bool(_visible(b, values.shape))
    if form is _sparse:
        return b.outer is None and b.opset >= 11 and b.state.ir_version >= 6 and values.ndim >= 1
    if form is _dequantized:
        return 10 <= b.opset <= LAST_QDQ_OPSET
    if form is _int4:
        return 21 <= b.opset <= LAST_QDQ_OPSET and b.may_hold_initializers and values.ndim >= 1
    return True


# Plain initializers come first and thrice: they are what most exporters write.
FORMS: list[Form] = [
    *(_initializer, _initializer, _initializer, _typed, _constant_node, _constant_node, _as_input),
    *(_behind_identity, _behind_cast, _behind_transpose, _behind_reshape, _reused, _duplicate),
    *(_computed, _sparse, _dequantized, _int4),
]
