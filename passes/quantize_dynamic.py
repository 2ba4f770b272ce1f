"""Products compute with 8-bit integers whose grid is taken from each input while the model runs.

    MatMul(x, W)   ->   x_q, s, z = DynamicQuantizeLinear(x);  Cast(MatMulInteger(x_q, W_q, z)) * (s * W_scale)
    LSTM           ->   com.microsoft.DynamicQuantizeLSTM

No calibration is needed, and no range can be wrong; finding the range costs time at every run, which pays
where an input is small beside the weight: transformers, recurrent nets, wide fully connected layers.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from onnxcomp.contract import Context, Effect, Exact, Outcome, SelectingPass, Site, Structure, Survey, parameter
from onnxcomp.graph.infer.shapes import Shapes, infer_shapes
from onnxcomp.graph.integers.dynamic import ATTENTION_ATTRIBUTES, DynamicWriter
from onnxcomp.graph.ir.nodes import Constant, Node
from onnxcomp.graph.ir.query import constant_keys, given, has_references, is_onnx, node_key
from onnxcomp.graph.ir.reader import Graph, Scope
from onnxcomp.graph.opset import raise_opset
from onnxcomp.graph.weights.linear_op import LinearOp, replaceable_op
from onnxcomp.numerics.encodings.encoding import Encoding, GridEncoding
from onnxcomp.numerics.integers.symmetric_int8 import (
    FULL_LIMIT,
    REDUCED_LIMIT,
    SignedCodes,
    codes_of_grid,
    fit_codes,
    is_sliced,
)
from onnxcomp.numerics.metrics.weight_error import relative_error
from onnxcomp.operators import MATRIX_PRODUCTS, MICROSOFT, RECURRENT
from onnxcomp.target import QuantizationStyle

OPSET = 11  # DynamicQuantizeLinear
KERNELS_ON_CPU = frozenset({"LSTM", "Attention"})


@dataclass(frozen=True, eq=False)
class WeightPart:
    """A constant operand: its own axes that share a scale, and its axes in the order in which codes are stored."""

    weight: Constant
    shared: tuple[int, ...]
    perm: tuple[int, ...]


@dataclass(frozen=True, eq=False)
class DynamicUnit:
    """A node that can compute with integers, and its constant operands."""

    key: str
    op: str
    parts: tuple[WeightPart, ...]
    write: Callable[..., None]  # (writer, *codes of the parts)


@dataclass(frozen=True, kw_only=True)
class QuantizeDynamic(SelectingPass):
    """Run MatMul, Gemm and LSTM in 8-bit integers, with ranges taken while the model runs.

    Weights get one scale an output channel; one that lies on such a grid of at most 8 bits already keeps its
    values, and one whose levels are of another kind is left alone. Nodes in subgraphs and functions are
    rewritten, too. A GRU or RNN stays in float: ONNX Runtime has no integer kernel for them. Convolutions are
    left alone unless ``convolutions`` asks for them: ONNX Runtime's ConvInteger takes 0.9 to 3.3 times as long as
    float32 (static ranges are what makes a Conv fast).
    """

    effect = Effect(shrinks=("bytes", "latency"), exact=Exact.NOWHERE)
    paper = "https://arxiv.org/abs/1712.05877"
    makes = frozenset({Structure.INTEGERS})
    destroys = frozenset({Structure.COMPACT})
    # The gates of an exported LSTM are put in order by nodes that fold once the branches around them are chosen.
    prepared_by = ("remove-noops", "fold-constants", "inline-branches", "fold-constants")

    # Time over float32's, K = N = 128, 256, 512, one thread: 1.06, 0.96, 0.74 for one row; 0.72, 0.47, 0.36 for 32.
    min_elements: int = parameter(16384, low=1, help="leave nodes alone whose weights have fewer values")
    convolutions: bool = parameter(False, help="rewrite Conv, too")

    def sites(self, graph: Graph, context: Context) -> Survey:
        outcome = Outcome()
        units = self._units(graph, context, outcome)
        return Survey(tuple(Site(each.key) for each in units), tuple(outcome.skipped))

    def edit(self, graph: Graph, context: Context) -> Outcome:
        outcome = Outcome()
        units = self._units(graph, context, outcome)
        if units and graph.opset < OPSET:
            reason = _raise(graph, context)
            if reason:
                for unit in units:
                    outcome.skip(unit.key, reason)
                return outcome
            outcome = Outcome()
            units = self._units(graph, context, outcome)
        style = QuantizationStyle() if context.target is None else context.target.style
        writer = DynamicWriter(graph, unsigned=style.weight == "uint8")
        codes = _Codes(graph, units, REDUCED_LIMIT if style.reduce_range else FULL_LIMIT)
        for done, unit in enumerate(units):
            context.progress(done, len(units), unit.key)
            weights = [codes.of(part) for part in unit.parts]
            unit.write(writer, *(each for each, _ in weights))
            outcome.change(
                unit.key,
                f"{unit.op} in uint8 by ranges of each run",
                weight=[codes.keys[each.weight] for each in unit.parts],
                error=max(error for _, error in weights),
            )
        return outcome

    def _units(self, graph: Graph, context: Context, outcome: Outcome) -> list[DynamicUnit]:
        """The nodes that can be rewritten; says why others of these operators cannot."""
        keys = constant_keys(graph)
        units = []
        shapes = infer_shapes(graph)
        on_cpu = context.target is None or context.target.name == "cpu"
        for scope, node in graph.nodes():
            if not _is_candidate(node):
                continue
            names = (node_key(scope, node), *(keys[each] for each in node.inputs if each in keys))
            if not context.selects(*names):
                continue
            unit = self._unit(scope, node, shapes, on_cpu)
            if isinstance(unit, DynamicUnit):
                unit = self._refusal(graph, unit, keys) or unit
            if isinstance(unit, str):
                outcome.skip(names[0], unit)
            elif context.selects(unit.key, *(keys[each.weight] for each in unit.parts)):
                units.append(unit)
        return units

    def _unit(self, scope: Scope, node: Node, shapes: Shapes, on_cpu: bool) -> DynamicUnit | str:
        """The unit of a node, or the reason why there is none."""
        if node.op in KERNELS_ON_CPU and not on_cpu:
            return f"only ONNX Runtime's CPU provider has an integer {node.op}"
        if node.op in MATRIX_PRODUCTS:
            product = replaceable_op(scope, node, shapes)
            return product if isinstance(product, str) else _product_unit(product)
        if node.op == "Conv":
            if not self.convolutions:
                return "dynamic ranges do not make a Conv faster (convolutions rewrites it all the same)"
            return _convolution_unit(scope, node, shapes)
        if node.op == "LSTM":
            return _recurrent_unit(scope, node)
        if node.op == "Attention":
            return _attention_unit(scope, node)
        return f"ONNX Runtime has no integer {node.op}"

    def _refusal(self, graph: Graph, unit: DynamicUnit, keys: dict[Constant, str]) -> str | None:
        """Why the weights of a unit cannot be integers, or None."""
        if sum(part.weight.size for part in unit.parts) < self.min_elements:
            return f"its weight has fewer than {self.min_elements} values"
        for part in unit.parts:
            weight = part.weight
            if weight.dtype != np.float32:
                return f"its weight is {weight.dtype}"
            encoding = graph.encodings.get(keys[weight])
            unfit = encoding is not None and not is_sliced(encoding, tuple(weight.shape), part.shared)
            if encoding is not None and unfit and encoding.encode(weight.values) is not None:
                return "its levels are not on one grid an output channel"
            if not np.isfinite(weight.values).all():
                return "its weight has values that are not finite"
        return None


def _is_candidate(node: Node) -> bool:
    if node.domain == MICROSOFT:
        return str(node.op) == "Attention"
    return is_onnx(node, *MATRIX_PRODUCTS, *RECURRENT, "Conv")


def _raise(graph: Graph, context: Context) -> str | None:
    if context.max_opset is not None and context.max_opset < OPSET:
        return f"dynamic ranges need opset {OPSET}, and {context.max_opset} is the highest allowed"
    return raise_opset(graph, OPSET)


def _product_unit(product: LinearOp) -> DynamicUnit:
    def write(writer: DynamicWriter, weight: SignedCodes) -> None:
        writer.product(product, weight)

    part = WeightPart(product.weight, tuple(sorted(product.matrix_axes[:-1])), product.matrix_axes)
    return DynamicUnit(product.key, product.node.op, (part,), write)


def _convolution_unit(scope: Scope, node: Node, shapes: Shapes) -> DynamicUnit | str:
    found = replaceable_op(scope, node, shapes)
    if isinstance(found, str):
        return found
    if not found.is_direct:
        return "its weight is not a constant"

    def write(writer: DynamicWriter, weight: SignedCodes) -> None:
        writer.convolution(found, weight)

    return DynamicUnit(found.key, "Conv", (WeightPart(found.weight, found.perm[1:], found.perm),), write)


def _recurrent_unit(scope: Scope, node: Node) -> DynamicUnit | str:
    inner, recurrent = node.inputs[1], node.inputs[2]
    if not isinstance(inner, Constant) or not isinstance(recurrent, Constant):
        return "its weights are not constants"
    if has_references(node):
        return "its attributes are parameters of a function"
    if node.attrs.get("layout", 0):
        return "ONNX Runtime has no LSTM of that layout"

    def write(writer: DynamicWriter, first: SignedCodes, second: SignedCodes) -> None:
        writer.recurrent(scope, node, first, second)

    axes = (0, 1, 2)
    parts = WeightPart(inner, (2,), axes), WeightPart(recurrent, (2,), axes)
    return DynamicUnit(node_key(scope, node), "LSTM", parts, write)


def _attention_unit(scope: Scope, node: Node) -> DynamicUnit | str:
    weight = node.inputs[1]
    if not isinstance(weight, Constant) or len(weight.shape) != 2:
        return "its weight is not a constant matrix"
    stated = {name for name, value in node.attrs.items() if value != 0}
    if has_references(node) or given(node, 2) is None or any(given(node, each) for each in range(5, 10)):
        return "ONNX Runtime has no integer Attention with these inputs"
    if not stated <= ATTENTION_ATTRIBUTES:
        return f"ONNX Runtime has no integer Attention with {', '.join(sorted(stated - ATTENTION_ATTRIBUTES))}"

    def write(writer: DynamicWriter, codes: SignedCodes) -> None:
        writer.attention(scope, node, codes)

    return DynamicUnit(node_key(scope, node), "Attention", (WeightPart(weight, (0,), (0, 1)),), write)


class _Codes:
    """The codes of weights and their relative errors, found once for all nodes that read them alike."""

    def __init__(self, graph: Graph, units: list[DynamicUnit], limit: int) -> None:
        self.keys = constant_keys(graph)
        self._graph = graph
        self._limit = limit
        self._waiting = Counter((part.weight, part.shared) for unit in units for part in unit.parts)
        self._found: dict[Any, tuple[SignedCodes, float]] = {}

    def of(self, part: WeightPart) -> tuple[SignedCodes, float]:
        """The codes in the order in which they are stored."""
        key = (part.weight, part.shared)
        if key not in self._found:
            values = np.asarray(part.weight.values)
            own = self._kept(part, self._graph.encodings.get(self.keys[part.weight]))
            made = own or fit_codes(values, part.shared, limit=self._limit)
            self._found[key] = (made, relative_error(values, made.values()))
        self._waiting[key] -= 1
        made, error = self._found[key] if self._waiting[key] else self._found.pop(key)
        return SignedCodes(made.codes.transpose(part.perm), made.scales.transpose(part.perm)), error

    def _kept(self, part: WeightPart, encoding: Encoding | None) -> SignedCodes | None:
        """The codes that the weight's encoding gives, None where it has none of this form."""
        if not isinstance(encoding, GridEncoding) or not is_sliced(encoding, tuple(part.weight.shape), part.shared):
            return None
        codes = encoding.encode(part.weight.values)
        return None if codes is None else codes_of_grid(encoding, codes, part.shared, limit=self._limit)
