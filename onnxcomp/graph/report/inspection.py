"""What a model consists of: its weights, bytes and multiply-accumulates by operator, and what could be gained.

found = inspect("model.onnx")
found.weight_bytes, found.tensors[0].name, found.gains[0].size_bytes
"""

from __future__ import annotations

import math
import os
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import onnx
from onnx import helper

from onnxcomp import formats
from onnxcomp.graph.infer.shapes import Shapes, infer_shapes, is_open
from onnxcomp.graph.ir.nodes import Constant, Node
from onnxcomp.graph.ir.query import node_key
from onnxcomp.graph.ir.reader import Graph, open_graph
from onnxcomp.graph.report.coded_sizes import GAIN_BITS, bytes_by_bits
from onnxcomp.graph.report.macs import Macs, count_macs
from onnxcomp.graph.storage.decoders import MIN_BYTES
from onnxcomp.graph.storage.texts import text_bytes
from onnxcomp.graph.stored.decoding import Decoders, above
from onnxcomp.graph.stored.opening import open_plain, weights_by_decoded_name
from onnxcomp.graph.weights.roles import roles_of, weights, with_true_encodings
from onnxcomp.input_shapes import Dims, settle
from onnxcomp.memory import uncollected
from onnxcomp.model import Model, load
from onnxcomp.operators import ONNX_DOMAINS
from onnxcomp.shown import Row, Shown
from onnxcomp.tensors import bits_of

KNOWN_DOMAINS = frozenset(
    {
        "", "ai.onnx", "ai.onnx.ml", "ai.onnx.training", "ai.onnx.preview", "ai.onnx.preview.training",
        "com.microsoft", "com.microsoft.nchwc", "com.ms.internal.nhwc", "org.pytorch.aten",
    }
)  # fmt: skip
QUANTIZED_OPS = frozenset(
    {"QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear", "MatMulInteger", "ConvInteger", "MatMulNBits",
     "DynamicQuantizeMatMul", "DynamicQuantizeLSTM", "MatMulIntegerToFloat", "MatMulBnb4", "GatherBlockQuantized"}
)  # fmt: skip
COMPACT = "(compact storage)"


@dataclass(frozen=True)
class TensorInfo:
    """One constant tensor.

    kind: what a weight is to its readers ("conv", "linear", "embedding", ...), "constant" for the others.
    operators: the operators that read it. size_bytes: on disk. encoding: how its values are made, as far as a
    pass noted it; "compact" for a tensor that is stored compactly and decoded when a session is created.
    bits_bytes: for a weight about how many bytes codes of so many bits would take; empty for the others.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    kind: str
    operators: tuple[str, ...]
    size_bytes: int
    encoding: str = ""
    bits_bytes: dict[int, int] = field(default_factory=dict)


@dataclass(frozen=True)
class OperatorInfo:
    """All nodes of one operator.

    weight_bytes: of the constants that they read, each counted at its first reader. macs: for a batch of one;
    None for operators that do not multiply and accumulate, or whose shapes are not known.
    """

    name: str
    count: int
    weight_bytes: int
    macs: int | None


@dataclass(frozen=True)
class Gain:
    """The size of the whole model with all weights in codes of so many bits, stored compactly."""

    bits: int
    size_bytes: int


@dataclass(frozen=True, repr=False)
class Inspection(Shown):
    """What a model consists of; bytes are those on disk.

    macs: of all nodes whose shapes are known, for a batch of one. macs_partial: dimensions that the model
    leaves open were counted as 1. macs_unknown: nodes that multiply but whose shapes are not known.
    text_bytes: of doc strings and exporters' metadata, which the recipes remove. input_shapes: those that were asked
    for, which multiply-accumulates are counted at. node_macs: of each node whose shapes are known, by its key.
    """

    name: str
    producer: str
    ir_version: int
    opsets: dict[str, int]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    size_bytes: int
    constant_bytes: int
    external_bytes: int
    text_bytes: int
    node_count: int
    subgraph_count: int
    function_count: int
    macs: int
    macs_partial: bool
    macs_unknown: int
    quantized: dict[str, int]
    custom_ops: tuple[str, ...]
    encoded_weights: int
    compact_tensors: int
    tensors: tuple[TensorInfo, ...]
    operators: tuple[OperatorInfo, ...]
    gains: tuple[Gain, ...]
    input_shapes: dict[str, list[int]] = field(default_factory=dict)
    node_macs: dict[str, int] = field(default_factory=dict)

    def headline(self) -> str:
        """Its name, bytes, weights and nodes."""
        parts = (f"{self.size_bytes:,} bytes", formats.count(self.weight_count, "weight"))
        return f"{self.name}: {', '.join((*parts, formats.count(self.node_count, 'node')))}"

    def rows(self) -> list[Row]:
        """Inputs, outputs, and the sizes that its weights could have."""
        found: list[Row] = [("input", each) for each in self.inputs]
        found += [("output", each) for each in self.outputs]
        found.append(("constants", f"{self.constant_bytes:,} bytes, {self.weight_bytes:,} of them in weights"))
        found.append(("MACs", f"{self.macs:,}{' at least' if self.macs_partial or self.macs_unknown else ''}"))
        found += [(f"in {each.bits} bits", f"about {each.size_bytes:,} bytes") for each in self.gains]
        return found

    @property
    def graph_bytes(self) -> int:
        """What is not data of constants: nodes, names, shapes, metadata."""
        return self.size_bytes - self.constant_bytes

    @property
    def weight_count(self) -> int:
        """The weights that a value pass may change."""
        return sum(each.kind != "constant" for each in self.tensors)

    @property
    def weight_bytes(self) -> int:
        """The bytes of those weights."""
        return sum(each.size_bytes for each in self.tensors if each.kind != "constant")


def inspect(
    source: str | os.PathLike[str] | bytes | onnx.ModelProto | Model,
    *,
    input_shapes: Mapping[str, Sequence[int]] | None = None,
) -> Inspection:
    """Describe a model; nothing is run. Raises ModelError for what is not a readable model.

    input_shapes: input -> sizes to count multiply-accumulates at, a batch of one where they leave it open. Raises
    ParameterError where the model cannot have them.
    """
    with uncollected():
        return inspected(open_graph(with_true_encodings(load(source))), input_shapes)


def inspected(graph: Graph, input_shapes: Mapping[str, Sequence[int]] | None = None) -> Inspection:
    """The same of a model that was opened, which stays as it is."""
    model, proto = graph.model, graph.model.proto
    stated = settle({each.name: _declared(each) for each in _real_inputs(proto)}, input_shapes or {})
    shapes = infer_shapes(graph, batch=1, inputs=stated if input_shapes else None)
    counted = count_macs(graph, shapes)
    known = [each for each in counted.values() if each is not None]
    compact = _compact(graph, shapes)
    tensors = _tensors(graph, compact)
    size = model.path.stat().st_size + _external_bytes(model) if model.path else model.size_bytes
    return Inspection(
        name=model.name,
        producer=" ".join(filter(None, [proto.producer_name, proto.producer_version])),
        ir_version=proto.ir_version,
        opsets={each.domain or "ai.onnx": each.version for each in proto.opset_import},
        inputs=tuple(_described(each) for each in _real_inputs(proto)),
        outputs=tuple(_described(each) for each in proto.graph.output),
        size_bytes=size,
        constant_bytes=sum(each.size_bytes for each in tensors),
        external_bytes=_external_bytes(model),
        text_bytes=text_bytes(proto),
        node_count=sum(1 for _ in graph.nodes()),
        subgraph_count=sum(scope.kind == "subgraph" for scope in graph.scopes),
        function_count=len(proto.functions),
        macs=sum(each.count for each in known),
        node_macs={node_key(scope, node): own.count for scope, node in graph.nodes() if (own := counted.get(node))},
        macs_partial=any(each.is_partial for each in known),
        macs_unknown=sum(each is None for each in counted.values()),
        quantized=_quantized(graph),
        custom_ops=custom_operators(graph),
        encoded_weights=len(model.encodings),
        compact_tensors=len(compact),
        tensors=tensors,
        operators=_operators(graph, counted, compact),
        gains=_gains(size, tensors),
        input_shapes={name: list(sizes) for name, sizes in (input_shapes or {}).items()},
    )


def has_something_to_compress(model: Model) -> bool:
    """Whether the model has a constant of more bytes than its storage would take; attributes are none."""
    return any(constant.nbytes >= MIN_BYTES for scope in open_graph(model).scopes for constant in scope.constants)


def custom_operators(graph: Graph) -> tuple[str, ...]:
    """The operators that stock ONNX Runtime has not, as ``domain:name``, sorted."""
    functions = {(each.domain, each.name) for each in graph.model.proto.functions}
    found = {
        f"{node.domain}:{node.op}"
        for _, node in graph.nodes()
        if (node.domain or "") not in KNOWN_DOMAINS and (node.domain, node.op) not in functions
    }
    return tuple(sorted(found))


def contributed_operators(graph: Graph) -> tuple[str, ...]:
    """The operators that ONNX Runtime has beside ONNX's own, as ``domain:name``, sorted."""
    custom = set(custom_operators(graph))
    functions = {(each.domain, each.name) for each in graph.model.proto.functions}
    found = {
        f"{node.domain}:{node.op}"
        for _, node in graph.nodes()
        if (node.domain or "").startswith("com.microsoft") and (node.domain, node.op) not in functions
    }
    return tuple(sorted(found - custom))


def operator_name(node: Node) -> str:
    """The operator, with its domain where that is not ONNX's own."""
    return node.op if node.domain in ONNX_DOMAINS else f"{node.domain}:{node.op}"


@dataclass(frozen=True, eq=False)
class Compact:
    """A tensor that nodes compute from fewer bytes, and what only it needs: shared tables go to the first."""

    info: TensorInfo
    nodes: frozenset[Node]
    constants: frozenset[Constant]


def _compact(graph: Graph, shapes: Shapes) -> list[Compact]:
    """The tensors that are stored compactly: decoded from constants of fewer bytes than they have."""
    found: list[Compact] = []
    names: dict[str, str] | None = None  # by which the model knows the weight that a decoder makes, where it has two
    claimed: set[Constant] = set()
    for scope, node in Decoders(graph).outputs():
        output = node.outputs[0]
        shape, data_type = shapes.static(output), shapes.data_type(output)
        nodes, constants = above(node)
        own = constants - claimed
        size = sum(map(stored_bytes, own))
        if shape is None or not data_type or (math.prod(shape) * bits_of(data_type) + 7) // 8 <= size:
            continue
        claimed |= own
        roles = {role.kind for role in roles_of(graph, output, len(shape))} - {"bias"}
        key, is_weight = scope.key(output.name), bool(roles) and len(shape) > 1
        if names is None:
            names = weights_by_decoded_name(open_plain(graph.model))
        info = TensorInfo(
            names.get(key, key),
            shape,
            onnx.TensorProto.DataType.Name(data_type).lower(),
            "/".join(sorted(roles)) if is_weight else "constant",
            tuple(sorted({operator_name(each) for each in output.outputs})),
            size,
            "compact",
            bytes_by_bits(shape, helper.tensor_dtype_to_np_dtype(data_type), size) if is_weight else {},
        )
        found.append(Compact(info, nodes, frozenset(own)))
    return found


def _tensors(graph: Graph, compact: Sequence[Compact]) -> tuple[TensorInfo, ...]:
    """Every constant of the model, the largest first; a compact one as what it decodes to."""
    by_constant = {weight.tensor: weight for weight in weights(graph)}
    found = [each.info for each in compact]
    decoded = {constant for each in compact for constant in each.constants}
    for scope in graph.scopes:
        for constant in scope.constants:
            if constant in decoded:
                continue
            weight = by_constant.get(constant)
            kind = "constant" if weight is None else "/".join(sorted(weight.kinds))
            name = scope.key(constant.name)
            encoding = graph.encodings.get(name)
            info = TensorInfo(
                name,
                tuple(constant.shape),
                onnx.TensorProto.DataType.Name(constant.data_type).lower(),
                kind,
                tuple(sorted({operator_name(each) for each in constant.outputs})),
                stored_bytes(constant),
                "" if encoding is None else f"{encoding.kind}, {encoding.level_count} levels",
                {} if weight is None else bytes_by_bits(weight.shape, weight.dtype, weight.size_bytes),
            )
            found.append(info)
    return tuple(sorted(found, key=lambda each: -each.size_bytes))


def stored_bytes(constant: Constant) -> int:
    """Bytes of a constant's data on disk."""
    return (constant.size * bits_of(constant.data_type) + 7) // 8


def _operators(graph: Graph, counted: dict[Node, Macs | None], compact: Sequence[Compact]) -> tuple[OperatorInfo, ...]:
    """One entry an operator, most bytes first; the nodes of compact storage together."""
    decoders = {node for each in compact for node in each.nodes}
    count: Counter[str] = Counter()
    size: Counter[str] = Counter()
    macs: Counter[str] = Counter()
    seen: set[Constant] = set()
    for _, node in graph.nodes():
        name = COMPACT if node in decoders else operator_name(node)
        count[name] += 1
        for tensor in node.inputs:
            if isinstance(tensor, Constant) and tensor not in seen:
                seen.add(tensor)
                size[name] += stored_bytes(tensor)
        own = counted.get(node)
        if own is not None:
            macs[name] += own.count
    found = [OperatorInfo(name, number, size[name], macs.get(name)) for name, number in count.items()]
    return tuple(sorted(found, key=lambda each: (-each.weight_bytes, -(each.macs or 0), -each.count, each.name)))


def _quantized(graph: Graph) -> dict[str, int]:
    """Operators of quantization -> how many; empty for a model in floats."""
    found = Counter(
        node.op for _, node in graph.nodes() if node.op in QUANTIZED_OPS or node.op.startswith(("QLinear", "QGemm"))
    )
    return dict(found.most_common())


def _gains(size: int, tensors: Iterable[TensorInfo]) -> tuple[Gain, ...]:
    found = []
    for bits in GAIN_BITS:
        saved = sum(each.size_bytes - each.bits_bytes[bits] for each in tensors if bits in each.bits_bytes)
        found.append(Gain(bits, size - saved))
    return tuple(found)


def _external_bytes(model: Model) -> int:
    """Bytes of the data files that the model was read with."""
    own = None if model.path is None else model.path.resolve()
    return sum(each.stat().st_size for each in model.inputs.paths if each != own)


def _real_inputs(proto: onnx.ModelProto) -> list[onnx.ValueInfoProto]:
    """The graph's inputs that no initializer gives a value."""
    given = {each.name for each in proto.graph.initializer}
    given |= {each.values.name for each in proto.graph.sparse_initializer}
    return [each for each in proto.graph.input if each.name not in given]


def _declared(info: onnx.ValueInfoProto) -> Dims:
    """The dimensions of an input: numbers, symbols, None; () where nothing is said of them."""
    dims = info.type.tensor_type.shape.dim
    return tuple((each.dim_param or None) if is_open(each) else each.dim_value for each in dims)


def _described(info: onnx.ValueInfoProto) -> str:
    """``name float32 [batch, 3, 224, 224]``."""
    kind = info.type.WhichOneof("value")
    if kind != "tensor_type":
        return f"{info.name} {(kind or 'unknown').removesuffix('_type')}"
    tensor = info.type.tensor_type
    name = onnx.TensorProto.DataType.Name(tensor.elem_type).lower()
    if not tensor.HasField("shape"):
        return f"{info.name} {name}"
    dims = ["?" if each is None else str(each) for each in _declared(info)]
    return f"{info.name} {name} [{', '.join(dims)}]"
