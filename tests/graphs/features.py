"""What occurs in a model, read from the proto alone, so that a test can say what the drawn models cover."""

from collections import Counter
from collections.abc import Iterator

import onnx
from onnx import AttributeProto, GraphProto, NodeProto, helper


def features_of(model: onnx.ModelProto) -> set[str]:
    """Return the names of the features of `model`: "Conv/2d", "weight/Constant node", ..."""
    found = {f"opset {entry.version}" for entry in model.opset_import if not entry.domain}
    found |= _of_interface(model)
    for graph, depth in _graphs(model.graph):
        found |= _of_weights(graph, depth)
        for node in graph.node:
            found |= {node.op_type, *_of_node(node, graph)} if node.domain != "tests.functions" else set()
            found |= {f"{node.op_type} with outer weight"} if _reads_outer_weight(node, graph) else set()
    if model.functions:
        found.add("local function")
        nodes = [node for function in model.functions for node in function.node]
        if any(a.ref_attr_name for node in nodes for a in node.attribute):
            found.add("local function/attribute reference")
    return found


def _graphs(graph: GraphProto, depth: int = 0) -> Iterator[tuple[GraphProto, int]]:
    yield graph, depth
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.type == AttributeProto.GRAPH:
                yield from _graphs(attribute.g, depth + 1)


def _of_interface(model: onnx.ModelProto) -> set[str]:
    graph = model.graph
    given = {tensor.name for tensor in graph.initializer}
    inputs = [value for value in graph.input if value.name not in given]
    symbolic = any(dim.dim_param for value in inputs for dim in value.type.tensor_type.shape.dim)
    facts = {
        "symbolic batch": symbolic,
        "fixed batch": not symbolic,
        "IR 3": model.ir_version == 3,
        "initializer as input": model.ir_version > 3 and any(value.name in given for value in graph.input),
        "several inputs": len(inputs) > 1,
        "several outputs": len(graph.output) > 1,
        "integer input": any(value.type.tensor_type.elem_type in (6, 7) for value in inputs),
        "value_info": bool(graph.value_info),
        "metadata": bool(model.metadata_props),
        "doc strings": any(node.doc_string for node in graph.node),
        "node metadata": any(node.metadata_props for node in graph.node),
        "com.microsoft": any(node.domain == "com.microsoft" for node in graph.node),
    }
    return {name for name, holds in facts.items() if holds}


def _of_weights(graph: GraphProto, depth: int) -> set[str]:
    found: set[str] = set()
    reads = Counter(name for node in graph.node for name in node.input if name)
    outputs = {value.name for value in graph.output}
    seen: set[bytes] = set()
    readers: dict[str, set[str]] = {}
    for node in graph.node:
        for index, name in enumerate(node.input):
            readers.setdefault(name, set()).add(f"{node.op_type} {index}")
    for tensor in graph.initializer:
        found |= {"weight/unused"} if not reads[tensor.name] and tensor.name not in outputs else set()
        found |= {"weight/typed field"} if len(tensor.float_data) else set()
        found |= {"weight/shared"} if reads[tensor.name] > 1 else set()
        found |= {"weight/two roles"} if len(readers.get(tensor.name, ())) > 1 else set()
        found |= {"weight/large"} if _size(tensor.dims) > 1024 else set()
        found |= {"weight/in subgraph"} if depth else set()
        found |= {f"weight/{helper.tensor_dtype_to_string(tensor.data_type)}"}
        content = tensor.raw_data + bytes(str(list(tensor.dims)), "ascii")
        found |= {"weight/duplicate"} if content in seen and len(tensor.raw_data) > 16 else set()
        seen.add(content)
    found |= {"weight/sparse"} if graph.sparse_initializer else set()
    constants = {tensor.name for tensor in graph.initializer}
    for node in graph.node:
        if node.op_type == "Constant":
            constants.add(node.output[0])
            found |= {"weight/Constant node"} if node.attribute[0].t.data_type == 1 else set()
            found |= {f"Constant/{node.attribute[0].name}"}
        elif node.input and all(name in constants for name in node.input):
            found.add(f"weight/behind {node.op_type}")
    return found


def _size(dims: list[int]) -> int:
    product = 1
    for dim in dims:
        product *= dim
    return product


def _reads_outer_weight(node: NodeProto, graph: GraphProto) -> bool:
    """Whether a body of `node` reads an initializer or Constant of the graph around it."""
    constants = {tensor.name for tensor in graph.initializer}
    constants |= {each.output[0] for each in graph.node if each.op_type == "Constant"}
    bodies = [attribute.g for attribute in node.attribute if attribute.type == AttributeProto.GRAPH]
    return any(name in constants for body in bodies for inner in body.node for name in inner.input)


def _of_node(node: NodeProto, graph: GraphProto) -> set[str]:
    attributes = {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}
    op = node.op_type
    found: set[str] = set()
    if op in ("Conv", "ConvTranspose", "MaxPool", "AveragePool"):
        found |= _of_geometry(op, attributes)
        found |= {f"{op}/bias" if len(node.input) > 2 else f"{op}/no bias"} if "Conv" in op else set()
        kernels = [list(t.dims) for t in graph.initializer if t.name in node.input[1:2]]
        groups = attributes.get("group", 1)
        for shape in kernels:
            depthwise = groups > 1 and shape[1 if op == "Conv" else 0] in (1, groups)
            found |= {f"{op}/{len(shape) - 2}d", *([f"{op}/depthwise"] if depthwise else [])}
    elif op == "Gemm":
        found.add(f"Gemm/transA={attributes.get('transA', 0)} transB={attributes.get('transB', 0)}")
        found |= {f"Gemm/{name}" for name in ("alpha", "beta") if name in attributes}
        found |= {"Gemm/no C"} if len(node.input) < 3 else set()
    elif op in ("LSTM", "GRU", "RNN"):
        found.add(f"{op}/{attributes.get('direction', b'forward').decode()}")
        names = ("X", "W", "R", "B", "sequence_lens", "initial_h", "initial_c", "P")
        found |= {f"{op}/{name}" for name, given in zip(names, node.input, strict=False) if given}
    if op in ("MatMul", "Gemm") and _is_weight(graph, node.input[0]):
        found.add(f"{op}/weight left")
    if op == "MatMul" and _is_weight(graph, node.input[1]):
        found.add(f"MatMul/weight rank {_rank(graph, node.input[1])}")
    return found


def _of_geometry(op: str, attributes: dict[str, object]) -> set[str]:
    found = set()
    for name in ("strides", "dilations", "pads", "output_padding", "output_shape", "kernel_shape"):
        if name in attributes:
            found.add(f"{op}/{name}")
    if "auto_pad" in attributes:
        found.add(f"{op}/auto_pad {attributes['auto_pad'].decode()}")  # type: ignore[attr-defined]
    if attributes.get("group", 1) != 1:
        found.add(f"{op}/group")
    pads = attributes.get("pads")
    if isinstance(pads, list) and pads[: len(pads) // 2] != pads[len(pads) // 2 :]:
        found.add(f"{op}/uneven pads")
    return found


def _is_weight(graph: GraphProto, name: str) -> bool:
    return any(tensor.name == name for tensor in graph.initializer)


def _rank(graph: GraphProto, name: str) -> int:
    return next(len(tensor.dims) for tensor in graph.initializer if tensor.name == name)
