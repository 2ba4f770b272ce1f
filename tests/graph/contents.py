"""Small protos for every kind of content that an ONNX model can hold, mostly kinds no exporter writes often.

They need not run: opening and closing a graph must keep what it does not understand.
"""

from collections.abc import Callable

import numpy as np
import onnx
from onnx import AttributeProto, TensorProto, helper, numpy_helper
from onnx.parser import parse_model

Content = Callable[[], onnx.ModelProto]
CONTENTS: dict[str, Content] = {}


def content(function: Content) -> Content:
    CONTENTS[function.__name__] = function
    return function


def plain() -> onnx.ModelProto:
    return parse_model("""
        <ir_version: 11, opset_import: ["" : 21, "com.example" : 3]>
        main (float[N,2] x) => (float[N,3] y) <float[2,3] w = {1,2,3,4,5,6}, float[3] b = {1,2,3}>
        { m = MatMul(x, w)  y = Add(m, b) }
    """)


def with_node(node: onnx.NodeProto) -> onnx.ModelProto:
    model = plain()
    model.graph.node.append(node)
    return model


@content
def metadata_and_doc_strings_everywhere() -> onnx.ModelProto:
    model = plain()
    model.doc_string, model.domain, model.model_version = "model", "org.example", 7
    model.producer_name, model.producer_version = "producer", "1.2"
    graph = model.graph
    graph.doc_string = "graph"
    for part in (model, graph, graph.node[0], graph.initializer[0], graph.input[0], graph.output[0]):
        part.metadata_props.add(key="first", value="1")
        part.metadata_props.add(key="second", value="")
    for part in (graph.node[1], graph.initializer[1], graph.input[0], graph.output[0]):
        part.doc_string = "it's a “doc string”\nof two lines"
    graph.value_info.append(helper.make_tensor_value_info("m", TensorProto.FLOAT, ["N", 3], "inner"))
    return model


@content
def quantization_annotation() -> onnx.ModelProto:
    model = plain()
    note = model.graph.quantization_annotation.add(tensor_name="m")
    note.quant_parameter_tensor_names.add(key="SCALE_TENSOR", value="b")
    return model


@content
def node_overload() -> onnx.ModelProto:
    return with_node(helper.make_node("F", ["x"], ["u"], domain="com.example", overload="second"))


@content
def device_configurations() -> onnx.ModelProto:
    model = plain()
    model.configuration.add(name="two", num_devices=2).device.extend(["a", "b"])
    place = model.graph.node[0].device_configurations.add(configuration_id="two", pipeline_stage=1)
    place.sharding_spec.add(tensor_name="w").device.extend([0, 1])
    return model


@content
def training_info() -> onnx.ModelProto:
    model = plain()
    training = model.training_info.add()
    training.algorithm.CopyFrom(plain().graph)
    training.initialization.CopyFrom(plain().graph)
    training.update_binding.add(key="w", value="m")
    return model


@content
def unused_initializers_and_nodes() -> onnx.ModelProto:
    model = with_node(helper.make_node("Neg", ["b"], ["unread"]))
    model.graph.initializer.append(numpy_helper.from_array(np.arange(4.0), "unused"))
    model.graph.initializer.insert(0, numpy_helper.from_array(np.arange(5.0), "unused_first"))
    return model


@content
def initializers_that_are_inputs() -> onnx.ModelProto:
    model = plain()
    model.graph.input.insert(0, helper.make_tensor_value_info("w", TensorProto.FLOAT, [2, 3]))
    return model


@content
def last_initializer_is_an_input() -> onnx.ModelProto:
    model = plain()
    model.graph.input.append(helper.make_tensor_value_info("b", TensorProto.FLOAT, [3], "overridable"))
    return model


@content
def ir_version_3() -> onnx.ModelProto:
    model = plain()
    model.ir_version = 3
    for tensor in model.graph.initializer:
        model.graph.input.append(helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims))
    return model


@content
def attributes_of_rare_types() -> onnx.ModelProto:
    tensor = numpy_helper.from_array(np.float32([1, 2]), "t")
    sparse = helper.make_sparse_tensor(tensor, numpy_helper.from_array(np.int64([0, 3]), "i"), [5])
    graph = plain().graph
    node = helper.make_node("Opaque", ["x"], ["u"], domain="com.example", floats=[0.1, -0.0, float("nan")])
    for attribute in (
        AttributeProto(name="graphs", type=AttributeProto.GRAPHS, graphs=[graph, graph]),
        AttributeProto(name="tensors", type=AttributeProto.TENSORS, tensors=[tensor, tensor]),
        AttributeProto(name="sparse", type=AttributeProto.SPARSE_TENSOR, sparse_tensor=sparse),
        AttributeProto(name="sparses", type=AttributeProto.SPARSE_TENSORS, sparse_tensors=[sparse]),
        AttributeProto(
            name="type", type=AttributeProto.TYPE_PROTO, tp=helper.make_tensor_type_proto(1, [2, "N"])
        ),
        AttributeProto(
            name="types",
            type=AttributeProto.TYPE_PROTOS,
            type_protos=[helper.make_tensor_type_proto(7, None)],
        ),
        AttributeProto(name="text", type=AttributeProto.STRING, s=b"\xff\x00 not utf-8", doc_string="bytes"),
        AttributeProto(name="texts", type=AttributeProto.STRINGS, strings=[b"", b"\xfe", b"a"]),
        AttributeProto(name="zero", type=AttributeProto.INT, i=0),
        AttributeProto(name="nan", type=AttributeProto.FLOAT, f=float("nan")),
        AttributeProto(name="old", i=3),  # before IR version 3 attributes had no type
    ):
        node.attribute.append(attribute)
    return with_node(node)


@content
def empty_lists_in_attributes() -> onnx.ModelProto:
    kinds = ("INTS", "FLOATS", "STRINGS", "TENSORS", "GRAPHS", "SPARSE_TENSORS", "TYPE_PROTOS")
    attributes = [AttributeProto(name=kind.lower(), type=getattr(AttributeProto, kind)) for kind in kinds]
    node = helper.make_node("Opaque", ["", "x", ""], ["", "u", ""], domain="com.example")
    node.attribute.extend(attributes)
    return with_node(node)


@content
def inputs_of_rare_types() -> onnx.ModelProto:
    model = plain()
    tensor = helper.make_tensor_type_proto(TensorProto.FLOAT, [2, None, "N"])
    sequence = helper.make_sequence_type_proto(tensor)
    types = {
        "optional": helper.make_optional_type_proto(tensor),
        "optional_sequence": helper.make_optional_type_proto(sequence),
        "sequence": sequence,
        "map": helper.make_map_type_proto(TensorProto.STRING, tensor),
        "sparse": helper.make_sparse_tensor_type_proto(TensorProto.FLOAT, [4]),
        "unranked": helper.make_tensor_type_proto(TensorProto.FLOAT, None),
        "denoted": helper.make_tensor_type_proto(TensorProto.FLOAT, ["N", 3]),
    }
    types["denoted"].tensor_type.shape.dim[0].denotation = "DATA_BATCH"
    types["denoted"].denotation = "TENSOR"
    for name, kind in types.items():
        model.graph.input.append(helper.make_value_info(name, kind))
        model.graph.value_info.append(helper.make_value_info(f"{name}_inner", kind))
        model.graph.output.append(helper.make_value_info(f"{name}_inner", kind))
        model.graph.node.append(helper.make_node("Identity", [name], [f"{name}_inner"]))
    model.graph.input.add(name="untyped")
    return model


@content
def tensors_of_every_type() -> onnx.ModelProto:
    model = plain()
    values = np.array([-2, -1, 0, 1, 2, 3, 1], np.float32)
    numbers = set(TensorProto.DataType.values()) - {TensorProto.UNDEFINED, TensorProto.STRING}
    for number in sorted(numbers):
        kind = helper.tensor_dtype_to_np_dtype(number)
        given = np.abs(values) if kind.kind == "u" or "uint" in kind.name or "e8m0" in kind.name else values
        tensor = numpy_helper.from_array(given.astype(kind), f"w_{kind.name}")
        model.graph.initializer.append(tensor)
        model.graph.node.append(
            helper.make_node("Opaque", [tensor.name], [f"u_{kind.name}"], domain="com.example")
        )
    model.graph.initializer.append(numpy_helper.from_array(np.array(["a", "é", ""], object), "texts"))
    model.graph.initializer.append(helper.make_tensor("typed4", TensorProto.INT4, [3], [1, -2, 3]))
    model.graph.initializer.append(helper.make_tensor("typed_bf16", TensorProto.BFLOAT16, [2], [1.5, -2.0]))
    model.graph.initializer.append(helper.make_tensor("empty", TensorProto.FLOAT, [0, 4], []))
    model.graph.initializer.append(helper.make_tensor("scalar", TensorProto.FLOAT, [], [4.0]))
    return model


@content
def constant_nodes_of_every_form() -> onnx.ModelProto:
    model = plain()
    sparse = helper.make_sparse_tensor(
        numpy_helper.from_array(np.float32([1, 2]), "v"), numpy_helper.from_array(np.int64([0, 3]), "i"), [5]
    )
    forms = {
        "value": numpy_helper.from_array(np.float32([[1, 2]]), "inner_name"),
        "value_float": 1.5,
        "value_floats": [1.5, float("nan"), -0.0],
        "value_int": 3,
        "value_ints": [3, 4],
        "value_string": "text",
        "value_strings": ["a", "b"],
        "sparse_value": sparse,
    }
    for name, value in forms.items():
        node = helper.make_node(
            "Constant", [], [f"c_{name}"], name=f"node_{name}", doc_string="doc", **{name: value}
        )
        model.graph.node.insert(1, node)
        model.graph.node.append(helper.make_node("Identity", [f"c_{name}"], [f"u_{name}"]))
    model.graph.node.append(helper.make_node("Constant", [], ["unread"], value_int=1))
    return model


@content
def sparse_initializers() -> onnx.ModelProto:
    model = plain()
    for name, indices in (("linear", np.int64([0, 3])), ("by_axis", np.int64([[0, 0], [1, 2]]))):
        values = numpy_helper.from_array(np.float32([1, 2]), name)
        sparse = helper.make_sparse_tensor(values, numpy_helper.from_array(indices, f"{name}_i"), [2, 3])
        model.graph.sparse_initializer.append(sparse)
        model.graph.node.append(helper.make_node("Identity", [name], [f"u_{name}"]))
    return model


@content
def functions_with_attribute_references() -> onnx.ModelProto:
    return parse_model("""
        <ir_version: 11, opset_import: ["" : 21, "com.example" : 3]>
        main (float[N,2] x) => (float[N,2] y) { y = com.example.Act <alpha = 0.5> (x) }
        <domain: "com.example", opset_import: ["" : 18, "com.example" : 3], doc_string: "a function">
        Act <alpha, beta: float = 2.0> (x) => (y)
        {
            own = Constant <value = float[2] {1, 2}> ()
            shifted = Add (x, own)
            inner = LeakyRelu <alpha: float = @alpha> (shifted)
            y = com.example.Inner <gamma: float = @beta> (inner)
        }
        <domain: "com.example", opset_import: ["" : 21]>
        Inner <gamma> (x) => (y) { c = Constant <value_float: float = @gamma> ()  y = Mul (x, c) }
    """)


@content
def subgraphs_that_capture() -> onnx.ModelProto:
    return parse_model("""
        <ir_version: 10, opset_import: ["" : 21]>
        main (float[2] x, bool c) => (float[2] y) <float[2] w = {1,2}, float[2] v = {3,4}>
        {
            y = If (c) <
                then_branch = then () => (float[2] t) <float[2] own = {5,6}> {
                    s = Add (x, w)
                    t = If (c) <
                        then_branch = deep () => (float[2] d) { d = Mul (s, own) },
                        else_branch = deeper () => (float[2] d) <float[2] w = {7,8}> { d = Mul (s, w) }
                    >
                },
                else_branch = other () => (float[2] t) { t = Sub (x, v) }
            >
        }
    """)


@content
def equal_names_in_sibling_branches() -> onnx.ModelProto:
    return parse_model("""
        <ir_version: 10, opset_import: ["" : 21]>
        main (float[2] x, bool c) => (float[2] y)
        {
            y = If (c) <
                then_branch = a () => (float[2] t) <float[2] w = {5,6}> { t = Add (x, w) },
                else_branch = b () => (float[2] t) <float[2] w = {7,8}> { t = Add (x, w) }
            >
        }
    """)


@content
def loop_and_scan_bodies() -> onnx.ModelProto:
    return parse_model("""
        <ir_version: 10, opset_import: ["" : 21]>
        main (float[2] x, float[4,2] xs, int64 n, bool c) => (float[2] y, float[4,2] zs)
        {
            y = Loop (n, c, x) <body = step (int64 i, bool go, float[2] s) => (bool go_on, float[2] s2)
                <float[2] w = {1,2}> { go_on = Identity (go)  s2 = Add (s, w) }>
            last, zs = Scan <num_scan_inputs = 1,
                body = each (float[2] a, float[2] b) => (float[2] a2, float[2] z)
                { a2 = Add (a, b)  z = Identity (a2) }> (y, xs)
        }
    """)


@content
def unknown_domains_and_versions() -> onnx.ModelProto:
    model = with_node(helper.make_node("Anything", ["x", "w", "missing_outer"], ["u"], domain="my.own"))
    model.opset_import.add(domain="my.own", version=12)
    model.opset_import.add(domain="ai.onnx.ml", version=3)
    model.opset_import.add(domain="unused.domain", version=1)
    return model


@content
def outputs_that_are_inputs_or_weights() -> onnx.ModelProto:
    model = plain()
    model.graph.output.append(helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 2]))
    model.graph.output.append(helper.make_tensor_value_info("w", TensorProto.FLOAT, [2, 3]))
    return model


@content
def no_names_at_all() -> onnx.ModelProto:
    model = plain()
    model.graph.name = ""
    model.graph.node[0].name = ""
    model.graph.ClearField("name")
    return model
