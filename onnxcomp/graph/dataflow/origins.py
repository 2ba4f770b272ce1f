"""Where tensors come from: known before the model runs, given with the inputs, or computed; and whose length varies.

    Shape(x) -> FIXED    Reshape(x), Greater(ids, 3) -> GIVEN    MatMul(x, w) -> COMPUTED
    NonZero(MatMul(x, w)) varies in length with what is computed, NonZero(x) does not: x is the same for every
    form of the model.
"""

from __future__ import annotations

from enum import IntEnum
from typing import Any

import onnx_graphsurgeon as gs

from onnxcomp.graph.infer.shapes import Shapes, infer_shapes
from onnxcomp.graph.ir.nodes import Constant, Node
from onnxcomp.graph.ir.query import given, is_onnx, is_random
from onnxcomp.graph.ir.scopes import Graph, subgraphs_of
from onnxcomp.graph.ir.topology import ordered
from onnxcomp.operators import LINEAR, RECURRENT
from onnxcomp.tensors import ALL_FLOAT_TYPES

# Operators that hand on elements as they are.
MOVES = frozenset({
    "Identity", "Reshape", "Transpose", "Squeeze", "Unsqueeze", "Flatten", "Slice", "Split", "Concat", "Gather",
    "GatherElements", "GatherND", "Expand", "Tile", "Pad", "Compress", "DepthToSpace", "SpaceToDepth", "Cast",
    "CastLike", "SplitToSequence", "SequenceAt", "SequenceConstruct", "ConcatFromSequence", "SequenceInsert",
    "Optional", "OptionalGetElement", "Trilu", "ReverseSequence", "Where", "ScatterElements", "ScatterND", "Scatter",
})  # fmt: skip
COMPARISONS = frozenset({"Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual", "IsNaN", "IsInf"})
# Operators with weights, or of the kind that has some: what they give is as good to compare as anything.
HEAVY = LINEAR | RECURRENT | frozenset({
    "Einsum", "MatMulInteger", "ConvInteger", "QLinearMatMul", "QLinearConv", "BatchNormalization",
    "LayerNormalization", "InstanceNormalization", "GroupNormalization", "RMSNormalization", "Attention", "DeformConv",
    "LinearAttention", "RoiAlign", "GridSample", "DFT", "STFT", "MaxRoiPool",
})  # fmt: skip
# Operators whose output has a length that their input's values decide: the input that does, None for all.
LENGTHS: dict[str, int | None] = {"NonZero": 0, "NonMaxSuppression": None, "Compress": 1, "Unique": 0}
# Inputs that hold sizes or bounds.
SIZES: dict[str, tuple[int, ...]] = {
    "Reshape": (1,), "Expand": (1,), "Tile": (1,), "ConstantOfShape": (0,), "Range": (0, 1, 2), "Slice": (1, 2, 3, 4),
    "Pad": (1,), "Resize": (2, 3), "Upsample": (1,), "OneHot": (1,), "TopK": (1,), "Split": (1,),
}  # fmt: skip
EVERY_OPEN_SIZE = 64
SWEEPS = 3  # through the body of a loop: states take on what an iteration makes of them


class TensorOrigin(IntEnum):
    """What a tensor's values depend on."""

    FIXED = 0
    GIVEN = 1
    COMPUTED = 2


class Origins:
    """The origin of each tensor of the main graph and its subgraphs. Functions must be written out before."""

    def __init__(self, graph: Graph) -> None:
        self._shapes = infer_shapes(graph, every=EVERY_OPEN_SIZE, computed=True)
        self._known: dict[Any, TensorOrigin] = {}
        self._varying: set[Any] = set()
        for each in graph.main.graph.inputs:
            self._known[each] = TensorOrigin.GIVEN
        self._visit(graph.main.graph)

    @property
    def shapes(self) -> Shapes:
        """Types and shapes, as they are where every open dimension of an input has the same size."""
        return self._shapes

    def of(self, tensor: Any) -> TensorOrigin:
        """What the values depend on; constants and what nothing makes are FIXED."""
        return self._known.get(tensor, TensorOrigin.FIXED)

    def varies(self, tensor: Any) -> bool:
        """Whether the number of elements depends on computed values."""
        return tensor in self._varying

    def is_float(self, tensor: Any) -> bool:
        """Whether it holds floats, or may: what follows operators that onnx does not know has no type."""
        kind = self._shapes.data_type(tensor)
        return kind in ALL_FLOAT_TYPES or kind == 0

    def _visit(self, body: gs.Graph) -> None:
        for node in ordered(body.nodes):
            bodies = subgraphs_of(node)
            if is_onnx(node, "If"):
                self._branch(node, bodies)
            elif bodies:
                self._repeat(node, bodies)
            else:
                self._plain(node)

    def _note(self, tensor: Any, origin: TensorOrigin, varies: bool) -> None:
        self._known[tensor] = origin
        if varies and self._shapes.static(tensor) is None:
            self._varying.add(tensor)

    def _plain(self, node: Node) -> None:
        inputs = [each for each in node.inputs if each.name]
        most = max(map(self.of, inputs), default=TensorOrigin.FIXED)
        varies = any(map(self.varies, inputs))
        if is_onnx(node, "Shape", "Size"):
            most, varies = TensorOrigin.COMPUTED if varies else TensorOrigin.FIXED, False
        elif is_random(node):
            most = TensorOrigin.GIVEN if node.op.startswith("Random") else max(TensorOrigin.GIVEN, most)
        elif is_onnx(node, "ConstantOfShape", "EyeLike"):
            most, varies = TensorOrigin.FIXED, varies or most is TensorOrigin.COMPUTED
        else:
            varies = varies or self._makes_length(node)
        for out in node.outputs:
            made = most is TensorOrigin.GIVEN and self._computes(node, out)
            self._note(out, TensorOrigin.COMPUTED if made else most, varies)

    def _computes(self, node: Node, out: Any) -> bool:
        """Whether the node makes of what is given something that depends on the model's own numbers."""
        if not is_onnx(node) or node.op in HEAVY:
            return True
        if node.op in COMPARISONS or is_random(node):
            return False
        if node.op in MOVES:
            data = node.inputs[0] if node.inputs else None
            is_float = isinstance(data, Constant) and data.data_type in ALL_FLOAT_TYPES
            return is_float and node.op in ("Gather", "GatherND")
        return self.is_float(out)

    def _makes_length(self, node: Node) -> bool:
        if not is_onnx(node):
            return False
        if node.op in LENGTHS:
            at = LENGTHS[node.op]
            deciding = [each for each in node.inputs if each.name] if at is None else [given(node, at)]
        else:
            deciding = [given(node, at) for at in SIZES.get(node.op, ())]
        return any(each is not None and self.of(each) is TensorOrigin.COMPUTED for each in deciding)

    def _branch(self, node: Node, bodies: list[gs.Graph]) -> None:
        for body in bodies:
            self._visit(body)
        deciding = self.of(node.inputs[0]) if node.inputs else TensorOrigin.FIXED
        for index, out in enumerate(node.outputs):
            results = [body.outputs[index] for body in bodies if index < len(body.outputs)]
            varies = deciding is TensorOrigin.COMPUTED or any(map(self.varies, results))
            self._note(out, max([deciding, *map(self.of, results)]), varies)

    def _repeat(self, node: Node, bodies: list[gs.Graph]) -> None:
        """A Loop or Scan: what goes from one iteration to the next takes on what iterations make of it."""
        is_loop = is_onnx(node, "Loop")
        for body in bodies:
            # A Loop's body takes the number of the iteration first, and gives no such thing.
            carried = list(zip(body.inputs[is_loop:], [*node.inputs[is_loop:]], strict=False))
            for inner, outer in carried:
                self._note(inner, self.of(outer), self.varies(outer))
            states = len(carried) if is_loop else len(node.inputs) - node.attrs.get("num_scan_inputs", 0)
            for _ in range(SWEEPS):
                self._visit(body)
                for inner, made in zip(body.inputs[is_loop:][:states], body.outputs, strict=False):
                    self._note(inner, max(self.of(inner), self.of(made)), self.varies(made))
        stops = [*node.inputs[:2], *(body.outputs[0] for body in bodies if body.outputs)] if is_loop else []
        decided = any(self.of(each) is TensorOrigin.COMPUTED for each in stops)
        results = [each for body in bodies for each in body.outputs[is_loop:]]
        most = max(map(self.of, [*node.inputs, *results]), default=TensorOrigin.FIXED)
        varies = decided or any(map(self.varies, results))
        for out in node.outputs:
            self._note(out, most, varies)
