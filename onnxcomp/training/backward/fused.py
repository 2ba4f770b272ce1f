"""What ONNX Runtime's own fused operators are made of."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from onnxcomp.operators import MICROSOFT
from onnxcomp.training.backward.decompose import composition
from onnxcomp.training.backward.rule import Adjoints, At, NoRuleError, rule
from onnxcomp.training.backward.rules.activations import gelu_by_erf
from onnxcomp.training.backward.values import Symbol

PASSED_ON = frozenset({"Relu", "Sigmoid", "Tanh", "LeakyRelu", "Clip", "HardSigmoid", "HardSwish"})


@rule("Gelu", domain=MICROSOFT)
def gelu(at: At) -> Adjoints:
    return at.dy * gelu_by_erf(at.x)


@composition("BiasGelu")
def bias_gelu(at: At) -> Sequence[Symbol]:
    return [at.op("Gelu", at.x + at.needs(1), domain=MICROSOFT)]


@composition("FastGelu")
def fast_gelu(at: At) -> Sequence[Symbol]:
    """By tanh: x/2 * (1 + tanh(c * (x + 0.044715 x^3)))."""
    bias = at.input(1)
    x = at.x if bias is None else at.x + bias
    inner = at.op("Tanh", x * (x * x * (0.7978845608028654 * 0.044715) + 0.7978845608028654))
    return [x * (inner + 1.0) * 0.5]


@composition("QuickGelu")
def quick_gelu(at: At) -> Sequence[Symbol]:
    return [at.x * at.op("Sigmoid", at.x * float(at.attr("alpha", 1.702)))]


@composition("SkipLayerNormalization", "SkipSimplifiedLayerNormalization")
def skip_layer_normalization(at: At) -> Sequence[Symbol]:
    """The sum itself is the fourth output."""
    x = at.x + at.needs(1)
    is_simple = at.node.op == "SkipSimplifiedLayerNormalization"
    bias = at.input(3 if is_simple else 4)
    x = x if bias is None else x + bias
    epsilon = float(at.attr("epsilon", 1e-12))
    if is_simple:
        return [by_root_mean_square(at, x, at.needs(2), epsilon), x, x, x]
    given = [each for each in (at.needs(2), at.input(3)) if each is not None]
    return [at.op("LayerNormalization", x, *given, axis=-1, epsilon=epsilon), x, x, x]


@composition("SimplifiedLayerNormalization", domain="")
def simplified_layer_normalization(at: At) -> Sequence[Symbol]:
    if int(at.attr("axis", -1)) not in (-1, at.rank(at.x) - 1):
        raise NoRuleError("it normalizes over more than the last axis")
    return [by_root_mean_square(at, at.x, at.needs(1), float(at.attr("epsilon", 1e-5)))]


def by_root_mean_square(at: At, x: Symbol, scale: Symbol, epsilon: float) -> Symbol:
    """x over the root of its mean square along the last axis."""
    return x / at.op("Sqrt", (x * x).mean([-1], keep=True) + epsilon) * scale


@composition("FusedMatMul", "TransposeMatMul")
def fused_matmul(at: At) -> Sequence[Symbol]:
    if at.attr("transBatchA", 0) or at.attr("transBatchB", 0):
        raise NoRuleError("it turns batches")
    a, b = at.needs(0), at.needs(1)
    a = a.turned(at.rank(a)) if at.attr("transA", 0) else a
    b = b.turned(at.rank(b)) if at.attr("transB", 0) else b
    made, alpha = at.op("MatMul", a, b), float(at.attr("alpha", 1.0))
    return [made if alpha == 1.0 else made * alpha]


@composition("FusedGemm", "FusedConv")
def with_activation(at: At) -> Sequence[Symbol]:
    """The operator itself, what is added, the activation."""
    activation = at.attr("activation", "")
    numbers = list(at.attr("activation_params") or [])
    own = {name: value for name, value in at.node.attrs.items() if not name.startswith("activation")}
    given = [at.input(index) for index in range(min(len(at.node.inputs), 3))]
    made = at.op(at.node.op.removeprefix("Fused"), *given, **own)
    added = at.input(3)
    made = made if added is None else made + added
    if not activation:
        return [made]
    if activation not in PASSED_ON:
        raise NoRuleError(f"its activation is {activation}")
    if activation == "Clip":
        return [at.op("Clip", made, *map(float, numbers))]
    stated = {name.removeprefix("activation_"): at.attr(name) for name in ("activation_alpha", "activation_beta")}
    named: dict[str, Any] = {name: value for name, value in stated.items() if value is not None}
    named.update(zip(("alpha", "beta"), map(float, numbers), strict=False))
    return [at.op(activation, made, **named)]


@composition("MultiHeadAttention")
def multi_head_attention(at: At) -> Sequence[Symbol]:
    """Softmax(Q K' * scale + bias) V for each head; queries, keys and values are (batch, sequence, width)."""
    if any(at.input(index) is not None for index in (3, 4, *range(6, len(at.node.inputs)))) or at.attr(
        "unidirectional"
    ):
        raise NoRuleError("it has a bias, a mask or a past")
    query, key, value = at.needs(0), at.needs(1), at.needs(2)
    if any(at.rank(each) != 3 for each in (query, key, value)):
        raise NoRuleError("its operands are packed")
    return [attention(at, query, key, value, at.input(5))]


@composition("Attention")
def packed_attention(at: At) -> Sequence[Symbol]:
    """X W + b is queries, keys and values beside each other; a mask (batch, sequence) of 0 and 1 may close keys."""
    if any(at.input(index) is not None for index in (4, 5, 6)) or at.attr("unidirectional") or at.attr("do_rotary"):
        raise NoRuleError("it has a past or looks one way")
    mask, bias = at.input(3), at.input(2)
    if mask is not None and at.rank(mask) != 2:
        raise NoRuleError("its mask is no (batch, sequence)")
    packed = at.op("MatMul", at.x, at.needs(1))
    packed = packed if bias is None else packed + bias
    width = at.static(at.needs(1), "its weight")[1]
    sizes = list(at.attr("qkv_hidden_sizes") or [width // 3] * 3)
    query, key, value = at.write.ops("Split", packed, sizes, outputs=3, attrs={"axis": 2})
    closed = None
    if mask is not None:
        lowest = float(at.attr("mask_filter_value", -10000.0))
        closed = ((1.0 - mask.cast(at.x.data_type)) * lowest).unsqueeze([1, 2])
    return [attention(at, query, key, value, closed)]


def attention(at: At, query: Symbol, key: Symbol, value: Symbol, added: Symbol | None) -> Symbol:
    """(batch, sequence, heads * size): the heads' softmax(Q K' * scale + added) V beside each other."""
    heads = int(at.attr("num_heads"))

    def split(operand: Symbol, perm: Sequence[int]) -> Symbol:
        return operand.reshape([0, 0, heads, -1]).transpose(perm)

    queries, keys, values = split(query, [0, 2, 1, 3]), split(key, [0, 2, 3, 1]), split(value, [0, 2, 1, 3])
    scale = float(at.attr("scale", 0.0))
    size = at.op("Shape", queries, start=3).cast(query.data_type)
    scores = at.op("MatMul", queries, keys)
    scores = scores * scale if scale else scores / at.op("Sqrt", size)
    scores = scores if added is None else scores + added
    made = at.op("MatMul", at.op("Softmax", scores, axis=-1), values)
    return made.transpose([0, 2, 1, 3]).reshape([0, 0, -1])
