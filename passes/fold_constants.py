"""What can be computed before the model runs is computed now, where the file doesn't grow by it.

    Concat(Shape(x)[0:1], [3]) -> constant      Transpose(weight) -> weight
    Cast(codes) * scale        -> stays: the result is larger than what makes it
    Reshape(y, [batch of y, 8]) -> Reshape(y, [0, 8]), which takes the size that y has there

Nodes are evaluated by ONNX Runtime on CPU, so the values are those that it would compute itself.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from onnx import ModelProto, NodeProto, numpy_helper

from onnxcomp.contract import Context, Effect, Exact, Outcome, Pass, parameter
from onnxcomp.errors import TargetError, VerificationError
from onnxcomp.graph.infer.shape_values import AxisSize, Partial, fully_known, partly_known_integers
from onnxcomp.graph.infer.shapes import Shapes, infer_shapes
from onnxcomp.graph.ir.nodes import Array, Constant, Node
from onnxcomp.graph.ir.query import constant_key, has_references, is_onnx, is_random, node_key, producer, takes_constant
from onnxcomp.graph.ir.reader import Graph, Scope, subgraphs_of
from onnxcomp.graph.ir.topology import ordered
from onnxcomp.graph.ir.writer import drop_unread, node_proto, sweep, tensor_proto
from onnxcomp.graph.storage.file_size import array_bytes, constant_bytes, freed_by, node_bytes
from onnxcomp.runtime import evaluate
from onnxcomp.tensors import bits_of

# Folding these away would undo a quantization; the rest makes no tensor, or is a constant already.
LEFT_ALONE = frozenset({
    "QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear", "Constant", "StringNormalizer",
    "SequenceConstruct", "SequenceEmpty", "SequenceInsert", "SequenceErase", "SplitToSequence", "Optional",
})  # fmt: skip
BATCH_BYTES = 2**26  # of constants that are evaluated in one session


@dataclass(frozen=True, kw_only=True)
class FoldConstants(Pass):
    """Compute what depends on constants and fixed shapes only, where the file does not grow by it."""

    # ONNX Runtime may keep float16 values in float32 between nodes; a constant is rounded
    effect = Effect(shrinks=("bytes", "load"), exact=Exact.TENSORS, rounding=True)
    as_stored = True

    max_result_bytes: int = parameter(2**28, low=0, help="largest result or operand that is computed")
    growth_bytes: int = parameter(0, low=0, help="bytes by which a folded part may make the file larger")

    def apply(self, graph: Graph, context: Context) -> Outcome:
        outcome = Outcome()
        before = -1
        while before != len(outcome.changed):
            before = len(outcome.changed)
            outcome.skipped.clear()
            _Folding(self, graph, context, outcome).fold()
            sweep(graph)
        return outcome


@dataclass(eq=False)
class _Part:
    """Tensors that could become constants together, and the scope of each."""

    targets: list[Any]
    name: str
    operand_bytes: int  # of the constants that it is computed from


class _Folding:
    """One round: find what is foldable, compute it, put it in place."""

    def __init__(self, settings: FoldConstants, graph: Graph, context: Context, outcome: Outcome) -> None:
        self.settings, self.context = settings, context
        self.graph = graph
        self.outcome = outcome
        self.shapes: Shapes = infer_shapes(graph)
        self.partly, types = partly_known_integers(graph, self.shapes)
        self.known: dict[Any, Array] = fully_known(self.partly, types)
        self.values = dict(self.known)
        self.outputs = {id(out) for scope in graph.scopes for out in scope.graph.outputs}
        self.homes = {node: scope for scope, node in graph.nodes()}
        self.scope_of: dict[Node, Scope] = {}  # of what can be computed, in order of computation
        for scope in graph.scopes:
            for node in ordered(scope.graph.nodes):
                known = all(out in self.values for out in node.outputs)
                if (known or self._computable(node, scope)) and context.selects(node_key(scope, node)):
                    self.scope_of[node] = scope
        self.order = {node: index for index, node in enumerate(self.scope_of)}

    def _computable(self, node: Node, scope: Scope) -> bool:
        if not is_onnx(node) or node.op in LEFT_ALONE or is_random(node) or node.was_dead:
            return False
        if subgraphs_of(node) or has_references(node) or not node.outputs:
            return False
        if any(id(out) in self.outputs for out in node.outputs):
            return False
        return all(self._is_known(each) for each in node.inputs)

    def _is_known(self, tensor: Any) -> bool:
        if isinstance(tensor, Constant) or not tensor.name or tensor in self.values:
            return True
        return producer(tensor) in self.scope_of

    def fold(self) -> None:
        """Fold connected parts as a whole; of those that would grow, the single results that don't."""
        parts = [self._part(nodes) for nodes in self._connected()]
        left = self._fold_parts([part for part in parts if part.targets])
        singles = [single for part in left for single in self._singles(part)]
        for part in [*left, *self._fold_parts(singles)]:
            if any(out.outputs for out in part.targets):
                self.outcome.skip(part.name, "the result is larger than what makes it")
        for sizes, values in self.partly.items():
            self._restate(sizes, values)

    def _restate(self, sizes: Any, values: Partial) -> None:
        """Put a constant in place of sizes that Reshapes alone read, where each that is open is one of their data's
        own, and the file does not grow by it."""
        maker = producer(sizes)
        if maker not in self.homes or id(sizes) in self.outputs or sizes in self.known:
            return
        stated = {_copying(reader, sizes, values) for reader in sizes.outputs}
        found = stated.pop() if len(stated) == 1 else None
        if found is None or not self.context.selects(key := node_key(self.homes[maker], maker)):
            return
        array = np.array(found, np.int64)
        if self._frees(_Part([sizes], key, 0), array_bytes(sizes.name, array)):
            self.graph.replace_reads(sizes, self.graph.constant(self.homes[maker], sizes.name, array))
            self.outcome.change(key, f"folded {maker.op}, whose open sizes Reshape copies")
            drop_unread(self.graph, [maker], self.homes, self.outputs)

    def _connected(self) -> list[list[Node]]:
        """The foldable nodes in groups that read from each other, each in order of computation."""
        group: dict[Node, list[Node]] = {}
        for node in self.scope_of:
            group[node] = [node]
            for maker in {made for each in node.inputs if (made := producer(each)) in group}:
                small, large = sorted((group[node], group[maker]), key=len)
                if small is not large:  # the smaller into the larger: a long chain is gone through once
                    large += small
                    group |= dict.fromkeys(small, large)
        groups = {id(nodes): nodes for nodes in group.values()}.values()
        return [sorted(nodes, key=self.order.__getitem__) for nodes in groups]

    def _singles(self, part: _Part) -> list[_Part]:
        """The results inside a part that could become constants without the rest, last ones first."""
        makers = self._makers(part.targets)
        found = [self._part([node], whole=False, within=part) for node in makers]
        found = [single for single in found if single.targets and single.targets != part.targets]
        for single in found[:1]:  # they share what they are computed from
            single.operand_bytes = part.operand_bytes
        return found

    def _part(self, nodes: Sequence[Node], *, whole: bool = True, within: _Part | None = None) -> _Part:
        """Nodes as a part. within: a part that they are of; its operands are not counted again where they are few."""
        inside = set(nodes)
        targets = [
            out
            for node in nodes
            for out in node.outputs
            if id(out) not in self.outputs and any(not whole or reader not in inside for reader in out.outputs)
        ]
        key = node_key(self.scope_of[nodes[-1]], nodes[-1])
        if self.graph.encodings and any(self._has_encoding(each) for each in freed_by(targets, self.outputs)):
            self.outcome.skip(key, "the encoding of its weight would be lost")
            return _Part([], key, 0)
        if within is not None and within.operand_bytes <= self.settings.max_result_bytes:
            return _Part(targets, key, 0)
        return _Part(targets, key, sum(each.nbytes for each in self._operands(targets)))

    def _has_encoding(self, freed: Node | Constant) -> bool:
        return isinstance(freed, Constant) and constant_key(self.graph, freed) in self.graph.encodings

    def _frees(self, part: _Part, size_bytes: int) -> bool:
        """Whether the file loses so many bytes by the part, or grows by no more than it may."""
        missing = size_bytes - self.settings.growth_bytes
        for each in freed_by(part.targets, self.outputs) if missing > 0 else ():
            missing -= constant_bytes(each) if isinstance(each, Constant) else node_bytes(self.graph, each)
            if missing <= 0:
                break  # how much more does not matter, and a chain may be long
        return missing <= 0

    def _makers(self, targets: Iterable[Any]) -> list[Node]:
        """The nodes that the targets are computed by, last ones first."""
        found: dict[Node, None] = {}
        waiting = [producer(each) for each in targets]
        while waiting:
            node = waiting.pop()
            if node is None or node in found or node not in self.scope_of:
                continue
            found[node] = None
            if not all(out in self.values for out in node.outputs):
                waiting.extend(producer(each) for each in node.inputs)
        return sorted(found, key=lambda node: -self.order[node])

    # --- computing -------------------------------------------------------------------------------------

    def _fold_parts(self, parts: list[_Part]) -> list[_Part]:
        """Compute and fold the parts that pay, batch by batch; gives those that do not."""
        candidates: list[_Part] = []
        left: list[_Part] = []
        for part in parts:
            (candidates if self._may_pay(part) else left).append(part)
        for opset, batch in self._batches(candidates):
            self._compute(batch, opset)
            for part in batch:
                if not all(each in self.values for each in part.targets):
                    continue  # not a numeric tensor, or ONNX Runtime cannot compute it, and that is noted
                if not any(producer(each) and each.outputs for each in part.targets):
                    continue  # folded with another part
                if not all(takes_constant(each, self.values[each].ndim) for each in part.targets):
                    continue
                gained = sum(array_bytes(each.name, self.values[each]) for each in part.targets if each.outputs)
                if self._frees(part, gained):
                    self._put_in_place(part)
                else:
                    left.append(part)
            self.values = dict(self.known)
        return left

    def _may_pay(self, part: _Part) -> bool:
        """Whether the results could be small enough, by their shapes as far as these are known."""
        total = 0
        for each in part.targets:
            static, data_type = self.shapes.static(each), self.shapes.data_type(each)
            if static is not None and data_type:
                total += int(np.prod(static, dtype=np.float64)) * bits_of(data_type) // 8
        return max(total, part.operand_bytes) <= self.settings.max_result_bytes and self._frees(part, total)

    def _operands(self, targets: Iterable[Any]) -> set[Constant]:
        nodes = self._makers(each for each in targets if each not in self.values)
        return {each for node in nodes for each in node.inputs if isinstance(each, Constant)}

    def _batches(self, parts: Iterable[_Part]) -> list[tuple[int, list[_Part]]]:
        """The parts by operator set and bounded size, with the operator set of each batch."""
        batches: dict[tuple[int, int], list[_Part]] = {}
        size_bytes = 0
        for part in parts:
            makers = [maker for each in part.targets if (maker := producer(each)) is not None]
            scope = self.scope_of[max(makers, key=self.order.__getitem__)]
            size_bytes += part.operand_bytes
            batches.setdefault((scope.opset, size_bytes // BATCH_BYTES), []).append(part)
        return [(opset, batch) for (opset, _), batch in batches.items()]

    def _compute(self, parts: Sequence[_Part], opset: int) -> None:
        """Fill ``values`` with the targets of the parts, in one session if ONNX Runtime takes them all."""
        missing = [part for part in parts if not all(each in self.values for each in part.targets)]
        if not missing:
            return
        try:
            self._evaluate(missing, opset)
        except (TargetError, VerificationError):
            self._compute_singly(missing, opset)

    def _compute_singly(self, parts: Sequence[_Part], opset: int) -> None:
        for part in parts:
            try:
                self._evaluate([part], opset)
            except (TargetError, VerificationError) as error:
                self.outcome.skip(part.name, f"ONNX Runtime does not compute it: {error}")

    def _evaluate(self, parts: Sequence[_Part], opset: int) -> None:
        targets = [each for part in parts for each in part.targets if each not in self.values]
        names: dict[Any, str] = {}
        results = evaluate(self._model(targets, opset, names).SerializeToString(), {})
        for each in targets:
            value = results[names[each]]
            if isinstance(value, np.ndarray) and value.dtype != object:
                self.values[each] = value

    def _model(self, targets: Sequence[Any], opset: int, names: dict[Any, str]) -> ModelProto:
        """A model without inputs that computes the targets, with names of its own."""
        proto = ModelProto(ir_version=max(4, self.graph.ir_version))
        proto.opset_import.add(version=opset)
        proto.graph.name = "fold"

        def name_of(tensor: Any) -> str:
            if not tensor.name or tensor in names:
                return names.get(tensor, "")
            names[tensor] = f"t{len(names)}"
            if isinstance(tensor, Constant):
                proto.graph.initializer.append(tensor_proto(self.graph, tensor, names[tensor]))
            elif tensor in self.values:
                proto.graph.initializer.append(numpy_helper.from_array(np.asarray(self.values[tensor]), names[tensor]))
            return names[tensor]

        for node in reversed(self._makers(targets)):
            if all(out in self.values for out in node.outputs):
                continue
            made = NodeProto()
            made.CopyFrom(node_proto(self.graph, node))
            del made.input[:], made.output[:], made.metadata_props[:]
            made.input.extend(name_of(each) for each in node.inputs)
            made.output.extend(name_of(each) for each in node.outputs)
            proto.graph.node.append(made)
        for each in targets:
            proto.graph.output.add(name=name_of(each))
        return proto

    def _put_in_place(self, part: _Part) -> None:
        makers = []
        for each in part.targets:
            maker = producer(each)
            if maker is None or not each.outputs:
                continue
            makers.append(maker)
            scope = self.scope_of[maker]
            constant = self.graph.constant(scope, each.name, self.values[each])
            constant.name = each.name  # its maker goes, and leaves the name
            self.graph.replace_reads(each, constant)
            self.outcome.change(node_key(scope, maker), f"folded {maker.op}")
        drop_unread(self.graph, makers, self.homes, self.outputs)


def _copying(reader: Node, sizes: Any, values: Partial) -> tuple[int, ...] | None:
    """The sizes as a Reshape that reads them may have them, with 0 for what its data has at the same place; None where
    others are open, or it is no Reshape."""
    if not is_onnx(reader, "Reshape") or has_references(reader) or reader.attrs.get("allowzero") or values.ndim != 1:
        return None
    data, given_sizes = reader.inputs
    if data is sizes or given_sizes is not sizes:
        return None
    copied = [isinstance(each, AxisSize) and each.tensor is data and each.axis == at for at, each in enumerate(values)]
    if any(isinstance(each, AxisSize) and not is_own for each, is_own in zip(values, copied, strict=True)):
        return None
    return tuple(0 if is_own else int(each) for each, is_own in zip(values, copied, strict=True))
