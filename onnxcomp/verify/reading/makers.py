"""What the integers of a tensor are: rounded numbers, or labels, indices and flags.

Cast<int16>(Mul(s, 20000)) -> numbers    ArgMax(z), Cast<int64>(Greater(p, 0.5)), Round(Sigmoid(z)) -> labels
"""

from __future__ import annotations

from collections.abc import Iterable
from enum import IntEnum
from typing import Any

from onnxcomp.graph.dataflow.origins import COMPARISONS, HEAVY, Origins, TensorOrigin
from onnxcomp.graph.ir.nodes import Constant, Node
from onnxcomp.graph.ir.query import is_onnx, producer
from onnxcomp.graph.ir.scopes import subgraphs_of
from onnxcomp.tensors import ALL_FLOAT_TYPES

LABELLED = frozenset({
    "ArgMax", "ArgMin", "NonZero", "NonMaxSuppression", "OneHot", "Multinomial", "Bernoulli", "Hardmax", "Not", "And",
    "Or", "Xor", "Sign", "Shape", "Size", *COMPARISONS,
})  # fmt: skip
FIRST_ONLY = frozenset({"Unique", "TopK"})  # their first output is of what they are given, the others are indices
OF_FIRST = frozenset({
    "Gather", "GatherElements", "GatherND", "Compress", "Reshape", "Slice", "Expand", "Tile", "Pad", "Squeeze",
    "Unsqueeze", "Split", "QuantizeLinear", "DequantizeLinear", "Cast", "Clip", "Resize", "ReverseSequence",
})  # fmt: skip
CHOSEN = frozenset({"Gather", "GatherElements", "GatherND", "ArrayFeatureExtractor"})
CLASSIFIERS = frozenset({  # of ai.onnx.ml: their first output is labels
    "LinearClassifier", "SVMClassifier", "TreeEnsembleClassifier", "LabelEncoder", "CategoryMapper", "ZipMap",
})  # fmt: skip
PROBABILITIES = frozenset({"Sigmoid", "HardSigmoid", "Softmax"})
SCALES = frozenset({"Mul", "Div", "QuantizeLinear", "Pow", "Exp"})


class Maker(IntEnum):
    """What a tensor's elements are; of several that go into one, the greatest counts."""

    NOTHING = 0
    NUMBERS = 1
    SHARES = 2  # between 0 and 1: rounded, they are flags
    LABELS = 3


def maker_of(tensor: Any, origins: Origins) -> Maker:
    """What the elements of a tensor of the main graph are."""
    return _Search(origins).of(tensor)


class _Search:
    """Goes up from a tensor as far as elements keep what they are. Without recursion: graphs are deep."""

    def __init__(self, origins: Origins) -> None:
        self._origins = origins
        self._known: dict[Any, Maker] = {}

    def of(self, tensor: Any) -> Maker:
        stack = [tensor]
        while stack:
            current = stack[-1]
            waiting = [each for each in self._sources(current) if each not in self._known]
            if waiting and current not in self._known:
                self._known[current] = Maker.NOTHING  # until its sources are known
                stack.extend(waiting)
                continue
            self._known[current] = self._made(current)
            stack.pop()
        return self._known[tensor]

    def _sources(self, tensor: Any) -> list[Any]:
        """The tensors whose elements, moved or changed a little, are those of this one."""
        node = producer(tensor)
        if node is None or self._settled(node, tensor) is not None:
            return []
        tensors: Iterable[Any] = node.inputs
        if node.op in OF_FIRST or node.op in FIRST_ONLY:
            tensors = node.inputs[:1]
        elif node.op == "Where":
            tensors = node.inputs[1:]
        return [each for each in tensors if each.name and not isinstance(each, Constant)]

    def _settled(self, node: Node, tensor: Any) -> Maker | None:
        """What the node makes whatever goes in, None where that depends. One of some constants, chosen by an index, is
        a label."""
        if node.op in CHOSEN and isinstance(node.inputs[0], Constant) and not isinstance(node.inputs[1], Constant):
            return Maker.LABELS
        if node.op in CLASSIFIERS and tensor is node.outputs[0]:
            return Maker.LABELS
        if not is_onnx(node) or node.op in HEAVY:
            return Maker.NUMBERS
        if subgraphs_of(node) or node.op in LABELLED or (node.op in FIRST_ONLY and tensor is not node.outputs[0]):
            return Maker.LABELS
        if node.op in PROBABILITIES:
            return Maker.SHARES
        return None

    def _made(self, tensor: Any) -> Maker:
        if self._origins.of(tensor) is not TensorOrigin.COMPUTED:
            is_whole = not isinstance(tensor, Constant) and not self._origins.is_float(tensor)
            return Maker.LABELS if is_whole and self._origins.of(tensor) is TensorOrigin.GIVEN else Maker.NOTHING
        node = producer(tensor)
        if node is None:
            return Maker.NOTHING
        settled = self._settled(node, tensor)
        if settled is not None:
            return settled
        found = max((self._known[each] for each in self._sources(tensor)), default=Maker.NOTHING)
        if found is Maker.SHARES and node.op in SCALES:
            return Maker.NUMBERS
        casts = node.op == "Cast" and node.attrs.get("to") not in ALL_FLOAT_TYPES
        if (casts and self._origins.is_float(node.inputs[0])) or node.op in ("Round", "Floor", "Ceil"):
            return {Maker.SHARES: Maker.LABELS, Maker.NOTHING: Maker.NUMBERS}.get(found, found)
        return found
