"""Operators of other domains as ONNX's plain ones, as far as shapes go, for inference that does not know them.

    FusedConv(x, w, b, z)                    Conv(x, w, b)
    FusedMatMul<transB = 1>(x, w)            MatMul(x, w turned)
    MultiHeadAttention(q, k, v)              Einsum<abc,ade->abe>(q, v)
    Attention(x, w), of d values             Einsum<abc,d->abd>(x, vector of d)
    SkipLayerNormalization(x, s, ..)         Identity(x)
    ai.onnx.ml.Scaler(x), Normalizer(x)      Cast<to = FLOAT>(x)
    ai.onnx.ml.Imputer(x), Binarizer(x)      Identity(x)
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from onnx import GraphProto, NodeProto, OperatorSetIdProto, TensorProto, helper

from onnxcomp.operators import MACHINE_LEARNING, MICROSOFT, ONNX_DOMAINS

EINSUM_OPSET = 12
CAST_OPSET = 6  # from here on Cast names its type by a number
Constants = dict[str, TensorProto]
SAME = (
    "Gelu", "QuickGelu", "BiasGelu", "FastGelu", "SkipLayerNormalization", "SkipSimplifiedLayerNormalization",
)  # fmt: skip
TO_FLOATS = frozenset({"Scaler", "Normalizer"})  # whatever numbers they read
KEEPING_TYPE = frozenset({"Binarizer", "Imputer"})


def restate_elementwise(graphs: Iterable[GraphProto], opset: int) -> None:
    """Put ONNX's operators in the place of those of ai.onnx.ml whose output has the shape of their input, for the
    shapes. opset: of ONNX's operators, 0 where the model has none."""
    for graph in graphs if opset >= CAST_OPSET else ():
        for node in graph.node:
            if node.domain != MACHINE_LEARNING:
                continue
            if node.op_type in TO_FLOATS:
                _become(node, "Cast", node.input[:1])
                node.attribute.append(helper.make_attribute("to", TensorProto.FLOAT))
            elif node.op_type in KEEPING_TYPE:
                _become(node, "Identity", node.input[:1])


def stated_opset(opsets: Iterable[OperatorSetIdProto]) -> int:
    """The version of ONNX's operators that a model states, 0 for none."""
    return max((each.version for each in opsets if each.domain in ONNX_DOMAINS), default=0)


def restate_microsoft(graph: GraphProto, opset: int) -> None:
    """Put ONNX's operators in the place of ONNX Runtime's, in the main graph of a skeleton, for their shapes."""
    held = {each.name: each for each in graph.initializer}
    for node in graph.node:
        rule = RULES.get(node.op_type) if node.domain == MICROSOFT else None
        if rule is not None:
            rule(graph, node, held, opset)


def _same(graph: GraphProto, node: NodeProto, held: Constants, opset: int) -> None:
    _become(node, "Identity", node.input[:1])


def _without_activation(graph: GraphProto, node: NodeProto, held: Constants, opset: int) -> None:
    kept = {each.name: each for each in node.attribute if not each.name.startswith("activation")}
    _become(node, node.op_type.removeprefix("Fused"), node.input[:3])
    node.attribute.extend(kept.values())


def _product(graph: GraphProto, node: NodeProto, held: Constants, opset: int) -> None:
    """A constant that is turned is put the other way round; what is computed must not be turned."""
    flags = {each.name: each.i for each in node.attribute}
    inputs = list(node.input[:2])
    for place, name in enumerate(("transA", "transB")):
        if flags.get(name):
            matrix = held.get(inputs[place])
            if matrix is None or len(matrix.dims) != 2:
                return
            inputs[place] = _stand_in(graph, f"{node.output[0]}_turned_{place}", matrix.dims[::-1], matrix.data_type)
    if not flags.get("transBatchA") and not flags.get("transBatchB"):
        _become(node, "MatMul", inputs)


def _stand_in(graph: GraphProto, name: str, dims: Sequence[int], data_type: int) -> str:
    """A constant of these sizes, whose data is nowhere."""
    tensor = graph.initializer.add(name=name, dims=dims, data_type=data_type)
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="nowhere")
    return name


def _multi_head(graph: GraphProto, node: NodeProto, held: Constants, opset: int) -> None:
    if opset >= EINSUM_OPSET and len(node.input) > 2 and all(node.input[:3]):
        _become(node, "Einsum", [node.input[0], node.input[2]], "abc,ade->abe")


def _attention(graph: GraphProto, node: NodeProto, held: Constants, opset: int) -> None:
    stated = next((list(each.ints) for each in node.attribute if each.name == "qkv_hidden_sizes"), [])
    weight = held.get(node.input[1])
    if weight is not None and len(weight.dims) == 2 and opset >= EINSUM_OPSET:
        size = int(stated[2]) if len(stated) == 3 else weight.dims[1] // 3
        values = _stand_in(graph, f"{node.output[0]}_values", [size], weight.data_type)
        _become(node, "Einsum", [node.input[0], values], "abc,d->abd")


def _become(node: NodeProto, op: str, inputs: Sequence[str], equation: str = "") -> None:
    given, outputs = list(inputs), node.output[:1]
    del node.input[:], node.output[:], node.attribute[:]
    node.op_type, node.domain = op, ""
    node.input.extend(given)
    node.output.extend(outputs)
    if equation:
        node.attribute.append(helper.make_attribute("equation", equation))


RULES: dict[str, Callable[[GraphProto, NodeProto, Constants, int], None]] = {
    **dict.fromkeys(SAME, _same),
    **dict.fromkeys(["FusedConv", "FusedGemm"], _without_activation),
    "FusedMatMul": _product,
    "MultiHeadAttention": _multi_head,
    "Attention": _attention,
}
