"""A model as the rules want it: calls written out, of an opset that they know, parameters as inputs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from onnxcomp.errors import ParameterError
from onnxcomp.graph.infer.shapes import Shapes, infer_shapes
from onnxcomp.graph.ir.functions import written_out
from onnxcomp.graph.ir.nodes import Constant, Node, Variable
from onnxcomp.graph.ir.reader import Graph, close_graph, open_graph
from onnxcomp.graph.opset import raise_opset
from onnxcomp.model import Model
from onnxcomp.training.backward import fused, recurrent
from onnxcomp.training.backward.decompose import decomposed
from onnxcomp.training.backward.differentiate import differentiate
from onnxcomp.training.backward.sweep import between

OPSET = 18  # from which on all reductions take their axes as an input, and elements can be scattered and added

assert fused  # these register what operators are made of
assert recurrent


@dataclass(frozen=True)
class Step:
    """One graph for the loss and the gradients.

    outputs: parameter -> the name of its gradient, as far as the loss depends on it. reasons: by operator, why there
    is no such graph; the model is then the one that was given.
    """

    model: Model
    outputs: dict[str, str] = field(default_factory=dict)
    reasons: dict[str, str] = field(default_factory=dict)


def step_of(model: Model, loss: str, parameters: Sequence[str]) -> Step:
    """The graph of a step. Raises ParameterError where the loss or a parameter is no such thing in the model."""
    graph = open_graph(written_out(model))
    if graph.opset < 1:
        graph.opset_imports[""] = OPSET
    reason = raise_opset(graph, OPSET)
    if reason is not None:
        named = reason.split(" ", 1)[0]
        is_operator = any(node.op == named for _, node in graph.nodes())
        return Step(model, reasons={named if is_operator else "opset": reason})
    for name in parameters:
        free(graph, name)

    def on_the_way(each: Graph, shapes: Shapes) -> Sequence[Node]:
        return between(each.main.graph.nodes, shapes, [_output(each, loss)], _inputs(each, parameters).values()).nodes

    graph = open_graph(decomposed(close_graph(graph), on_the_way))
    output, tensors = _output(graph, loss), _inputs(graph, parameters)
    made = differentiate(graph, infer_shapes(graph, computed=True), output, list(tensors.values()))
    if made.reasons:
        return Step(model, reasons=made.reasons)
    outputs, names = [output], {}
    for name, tensor in tensors.items():
        if tensor in made.gradients:
            gradient = graph.variable(f"gradient of {name}", dtype=tensor.dtype, shape=tensor.shape)
            graph.node(graph.main, "Identity", [made.gradients[tensor].tensor], [gradient])
            outputs.append(gradient)
            names[name] = gradient.name
    graph.main.graph.outputs = outputs
    return Step(close_graph(graph), names)


def free(graph: Graph, name: str) -> None:
    """Make an input of a parameter. Raises ParameterError where it is no constant of the main graph."""
    main = graph.main
    constant = next((each for each in main.constants if each.name == name), None)
    if isinstance(constant, Constant):
        main.graph.inputs.append(graph.to_variable(constant))
        return
    if not any(each.name == name for each in main.overridable):
        raise ParameterError(f"{graph.model.name}: there is no constant {name} to be trained")
    main.overridable = [each for each in main.overridable if each.name != name]


def _output(graph: Graph, loss: str) -> Any:
    found = next((each for each in graph.main.graph.outputs if each.name == loss), None)
    if found is None:
        raise ParameterError(f"{graph.model.name}: the loss {loss} is not an output of the model")
    return found


def _inputs(graph: Graph, names: Sequence[str]) -> dict[str, Variable]:
    inputs = {each.name: each for each in graph.main.graph.inputs}
    return {name: inputs[name] for name in names}
