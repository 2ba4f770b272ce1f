"""Random nodes of a model, and seeds that make fresh sessions draw the same numbers from them.

    RandomNormalLike(x)  ->  RandomNormalLike<seed = 15000000>(x)

Without a seed ONNX Runtime starts each node from its index among the nodes, or (Dropout) from wherever the process
is, so a rewrite changes the noise. Each node has a generator of its own that goes on from run to run.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass

from onnx import AttributeProto, FunctionProto, GraphProto, ModelProto, NodeProto, helper, numpy_helper

from onnxcomp.operators import ONNX_DOMAINS

# Two runs, or two nodes of the same inputs, need not give the same values.
RANDOM_OPS = frozenset({
    "RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike", "Multinomial", "Bernoulli",
})  # fmt: skip
FIRST_SEED = 15_000_000  # ONNX keeps most seeds as float32, which holds every whole number below 2^24
TRAINING = 2  # Dropout's input that says whether it draws


@dataclass(frozen=True)
class Seed:
    """A seed that was given to a node: of this operator, with this first output."""

    value: int
    operator: str
    output: str


def random_nodes(proto: ModelProto) -> Iterator[NodeProto]:
    """The nodes that draw numbers, in subgraphs and functions too."""
    for body in _bodies(proto):
        silent = _false_constants(body)
        for node in body.node:
            if _draws(node, silent):
                yield node


def add_seeds(proto: ModelProto, alike: Sequence[Seed] = ()) -> tuple[Seed, ...]:
    """Give every random node that has no seed one, in place; what was given.

    alike: the seeds of another form of the model; a node of the same output gets its seed, then one of the same
    operator, in order.
    """
    nodes = list(random_nodes(proto))
    taken: set[float] = {each.value for each in alike}
    taken |= {_value(each) for node in nodes if (each := seed_of(node)) is not None}
    free = (value for value in range(FIRST_SEED, 2**24) if value not in taken)
    bare = [node for node in nodes if seed_of(node) is None]
    chosen = _paired(bare, alike)
    given = []
    for index, node in enumerate(bare):
        value = chosen.get(index) or next(free)
        node.attribute.append(helper.make_attribute("seed", value if node.op_type == "Dropout" else float(value)))
        given.append(Seed(value, node.op_type, _first_output(node)))
    return tuple(given)


def take_seeds(proto: ModelProto, seeds: Iterable[Seed]) -> None:
    """Take these seeds out again, in place."""
    values = {each.value for each in seeds}
    for body in _bodies(proto):
        for node in body.node:
            if _is_given(node, values):
                kept = [each for each in node.attribute if each.name != "seed"]
                del node.attribute[:]
                node.attribute.extend(kept)


def seed_of(node: NodeProto) -> AttributeProto | None:
    """The node's seed, None where it has none."""
    return next((each for each in node.attribute if each.name == "seed"), None)


def _paired(nodes: Sequence[NodeProto], alike: Sequence[Seed]) -> dict[int, int]:
    """Which seed each node (by its position) takes over."""
    left = {(each.operator, each.output): each.value for each in alike}
    found = {
        index: left.pop(key) for index, node in enumerate(nodes) if (key := (node.op_type, _first_output(node))) in left
    }
    for index, node in enumerate(nodes):
        other = next((key for key in left if key[0] == node.op_type), None)
        if index not in found and other is not None:
            found[index] = left.pop(other)
    return found


def _draws(node: NodeProto, silent: Collection[str]) -> bool:
    if node.domain not in ONNX_DOMAINS:
        return False
    if node.op_type == "Dropout":
        mode = node.input[TRAINING] if len(node.input) > TRAINING else ""
        return bool(mode) and mode not in silent
    return node.op_type in RANDOM_OPS


def _false_constants(body: GraphProto | FunctionProto) -> set[str]:
    """The constants of a graph that are one False."""
    tensors = [(each.name, each) for each in body.initializer] if isinstance(body, GraphProto) else []
    for node in body.node:
        if node.op_type == "Constant" and len(node.attribute) == 1 and node.attribute[0].HasField("t"):
            tensors.append((node.output[0], node.attribute[0].t))
    return {
        name
        for name, tensor in tensors
        if tensor.data_type == tensor.BOOL and len(tensor.dims) == 0 and not numpy_helper.to_array(tensor).any()
    }


def _is_given(node: NodeProto, values: Collection[int]) -> bool:
    if node.domain not in ONNX_DOMAINS or node.op_type not in (*RANDOM_OPS, "Dropout"):
        return False
    seed = seed_of(node)
    return seed is not None and not seed.ref_attr_name and _value(seed) in values


def _value(seed: AttributeProto) -> float:
    return seed.i if seed.type == AttributeProto.INT else seed.f


def _first_output(node: NodeProto) -> str:
    return node.output[0] if node.output else ""


def _bodies(proto: ModelProto) -> Iterator[GraphProto | FunctionProto]:
    waiting: list[GraphProto | FunctionProto] = [proto.graph, *proto.functions]
    while waiting:
        body = waiting.pop(0)
        yield body
        for node in body.node:
            for attribute in node.attribute:
                waiting += [*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs]
