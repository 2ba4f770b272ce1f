"""Write products, recurrent nodes and convolutions so that their inputs become integers while the model runs.

    MatMul(x, W)     x_q, s, z = DynamicQuantizeLinear(x)
                     y = Cast(MatMulInteger(x_q, W_q, z)) * (s * W_scale)
    Conv(x, W, b)    y = Cast(ConvInteger(x_q, W_q, z, 128)) * (s * W_scale) + b
    LSTM             com.microsoft.DynamicQuantizeLSTM
    Attention        com.microsoft.QAttention, from and to com.microsoft

ONNX Runtime makes one kernel of the first form, DynamicQuantizeMatMul, or MatMulIntegerToFloat where several
nodes read x_q; a following Add of a vector goes in too. The formulas are for symmetric weights.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from onnx import TensorProto

from onnxcomp.graph.ir.nodes import Array, Constant, Node, Variable
from onnxcomp.graph.ir.query import given
from onnxcomp.graph.ir.reader import Graph, Scope
from onnxcomp.graph.weights.linear_op import LinearOp
from onnxcomp.numerics.integers.symmetric_int8 import SignedCodes
from onnxcomp.operators import MICROSOFT

# Of the attributes of Attention, those that QAttention has, too.
ATTENTION_ATTRIBUTES = frozenset({"num_heads", "unidirectional", "scale", "mask_filter_value"})


class DynamicWriter:
    """Rewrites nodes one after another. A tensor that several nodes of a scope read is quantized once in it.

    unsigned: store weights as uint8 with 128 for zero.
    """

    def __init__(self, graph: Graph, *, unsigned: bool) -> None:
        self._graph = graph
        self._unsigned = unsigned
        self._homes = {constant: scope for scope in graph.scopes for constant in scope.constants}
        self._quantized: dict[Any, tuple[Variable, Variable, Variable]] = {}
        self._stored: dict[Any, tuple[Constant, Constant | None]] = {}

    def product(self, product: LinearOp, weight: SignedCodes) -> None:
        """Replace a MatMul or Gemm. weight: (.., K, N), one scale a column."""
        columns = weight.scales.reshape(-1) * np.float32(product.alpha)
        stored = self._store(product.weight, product.matrix_axes, weight.codes, unsigned=self._unsigned)

        def multiply(source: Any, result: Any) -> None:
            codes, scale, zero = self._quantize(product.scope, source)
            whole = self._variable(result, "sum")
            inputs = [codes, stored[0], zero, *([] if stored[1] is None else [stored[1]])]
            self._graph.node(product.scope, "MatMulInteger", inputs, [whole], name=product.node.name)
            self._scale(product.scope, whole, scale, columns, result)

        product.replace_with(self._graph, multiply)

    def convolution(self, op: LinearOp, weight: SignedCodes) -> None:
        """Replace a Conv that reads its weight itself. weight: (M, C / group, ..), one scale an output channel.

        Always with uint8 weights: ONNX Runtime (1.32) takes 4 to 5 times as long with int8.
        """
        scope, node, rank = op.scope, op.node, weight.codes.ndim
        stored, middle = self._store(op.weight, op.perm, weight.codes, unsigned=True)
        attrs, made = dict(node.attrs), node.outputs[0]

        def multiply(source: Any, result: Any) -> None:
            codes, scale, zero = self._quantize(scope, source)
            whole = self._variable(made, "sum")
            self._graph.node(scope, "ConvInteger", [codes, stored, zero, middle], [whole], name=node.name, attrs=attrs)
            self._scale(scope, whole, scale, weight.scales.reshape(-1, *[1] * (rank - 2)), result)

        op.replace_with(self._graph, multiply)

    def recurrent(self, scope: Scope, node: Node, inner: SignedCodes, recurrent: SignedCodes) -> None:
        """Replace an LSTM. inner: W (D, 4H, I), recurrent: R (D, 4H, H), one scale for each direction and row."""
        inputs: list[Any] = [*node.inputs, *(Variable("") for _ in range(8 - len(node.inputs)))]
        extra = []
        for index, weight in ((1, inner), (2, recurrent)):
            turned = weight.codes.transpose(0, 2, 1)
            inputs[index] = self._store(inputs[index], (0, 2, 1), turned, unsigned=False)[0]
            scales = weight.scales.reshape(weight.codes.shape[:2])
            extra += [self._constant(scope, "scales", scales), self._zeros(scope, scales.shape)]
        outputs, attrs = list(node.outputs), dict(node.attrs)
        self._graph.remove_node(scope, node)
        self._put(scope, "DynamicQuantizeLSTM", [*inputs, *extra], outputs, node.name, attrs)

    def attention(self, scope: Scope, node: Node, weight: SignedCodes) -> None:
        """Replace com.microsoft.Attention. weight: (I, 3H), one scale a column."""
        source, bias, mask, past = (given(node, index) or Variable("") for index in (0, 2, 3, 4))
        stored = self._store(node.inputs[1], (0, 1), weight.codes, unsigned=False)[0]
        columns = weight.scales.reshape(-1)
        outputs = list(node.outputs)
        attrs = {name: value for name, value in node.attrs.items() if name in ATTENTION_ATTRIBUTES}
        self._graph.remove_node(scope, node)
        codes, scale, zero = self._quantize(scope, source)
        scales, zeros = self._constant(scope, "scales", columns), self._zeros(scope, columns.shape)
        inputs = [codes, stored, bias, scale, scales, mask, zero, zeros, past]
        self._put(scope, "QAttention", inputs, outputs, node.name, attrs)

    def _put(
        self, scope: Scope, op: str, inputs: list[Any], outputs: list[Any], name: str, attrs: dict[str, Any]
    ) -> None:
        while inputs and isinstance(inputs[-1], Variable) and not inputs[-1].name:
            inputs.pop()
        self._graph.opset_imports.setdefault(MICROSOFT, 1)
        self._graph.node(scope, op, inputs, outputs, name=name, attrs=attrs, domain=MICROSOFT)

    def _quantize(self, scope: Scope, source: Any) -> tuple[Variable, Variable, Variable]:
        """Codes, scale and zero point of a tensor."""
        key = (id(scope), source)
        if key not in self._quantized:
            made = (
                self._graph.variable(f"{source.name}_codes"),
                self._graph.variable(f"{source.name}_scale"),
                self._graph.variable(f"{source.name}_zero"),
            )
            self._graph.node(scope, "DynamicQuantizeLinear", [source], list(made))
            self._quantized[key] = made
        return self._quantized[key]

    def _scale(self, scope: Scope, whole: Any, scale: Any, weights: Array, result: Any) -> None:
        """result = whole * (scale * weights), whole an integer tensor."""
        floats, both = self._variable(result, "float"), self._variable(result, "scale")
        self._graph.node(scope, "Cast", [whole], [floats], attrs={"to": int(TensorProto.FLOAT)})
        constant = self._constant(scope, "scales", weights if weights.size != 1 else weights.reshape(()))
        self._graph.node(scope, "Mul", [scale, constant], [both])
        self._graph.node(scope, "Mul", [floats, both], [result])

    def _store(
        self, constant: Constant, perm: tuple[int, ...], codes: Array, *, unsigned: bool
    ) -> tuple[Constant, Constant | None]:
        """The codes of a weight, once for all nodes that read it this way, and their zero point where it is not 0."""
        key = (constant, perm, unsigned)
        if key not in self._stored:
            home = self._homes[constant]
            made = (codes.astype(np.int16) + 128).astype(np.uint8) if unsigned else np.ascontiguousarray(codes)
            zero = self._graph.constant(home, "middle", np.array(128, np.uint8)) if unsigned else None
            name = f"{constant.name}_{made.dtype.name}"
            self._stored[key] = (self._graph.constant(home, name, made), zero)
        return self._stored[key]

    def _zeros(self, scope: Scope, shape: tuple[int, ...]) -> Constant:
        return self._constant(scope, "zeros", np.zeros(shape, np.int8))

    def _constant(self, scope: Scope, base: str, values: Array) -> Constant:
        return self._graph.constant(scope, base, np.ascontiguousarray(values).reshape(values.shape))

    def _variable(self, tensor: Any, what: str) -> Variable:
        return self._graph.variable(f"{tensor.name}_{what}")
