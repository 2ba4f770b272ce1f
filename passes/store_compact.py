"""Constants are stored by how their values are made, and decoded by standard operators.

    W = float32 (n)   ->   W = Reshape(Gather(table, Cast(bytes)), shape)

Nothing is lost: every decoder gives the constant's values to the bit. For each constant the ways of
``numerics.storage`` are weighed in bytes of the model file, names, nodes and tables included, and the
smallest is written, if any is smaller than the plain tensor.
"""

from __future__ import annotations

import math
from collections.abc import Hashable
from dataclasses import dataclass, field

import numpy as np
from onnx import SparseTensorProto, TensorProto

from onnxcomp.contract import Context, Effect, Outcome, Pass, parameter
from onnxcomp.errors import PassError
from onnxcomp.graph.decoders import MIN_OPSET, Cost, Writer, cost_of, root_of, tensor_bytes
from onnxcomp.graph.ir import Constant
from onnxcomp.graph.surgery import Graph, Scope
from onnxcomp.numerics.encoding import same_bits
from onnxcomp.numerics.formula import evaluate
from onnxcomp.numerics.lookup import Memo
from onnxcomp.numerics.storage import Storage, storages

FLOATS = frozenset({TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16, TensorProto.DOUBLE})
OTHERS = frozenset({
    TensorProto.BOOL, TensorProto.INT8, TensorProto.INT16, TensorProto.INT32, TensorProto.INT64,
    TensorProto.UINT8, TensorProto.UINT16, TensorProto.UINT32, TensorProto.UINT64,
})  # fmt: skip
MIN_BYTES = 64  # no decoder is smaller than that
MIN_OTHER_BYTES = 1024  # small integers are shapes, axes and the like, which shape inference must see
FOLDED_BYTES = 2**30  # ONNX Runtime folds no node whose output is larger
SHARES = 4  # of a shared table's price, that one weight is charged with when it is weighed


@dataclass(frozen=True, eq=False)
class Choice:
    """A constant and the best way to store it."""

    scope: Scope
    constant: Constant
    storage: Storage
    plain_bytes: int
    cost: Cost
    memo: Memo


@dataclass(eq=False)
class Root:
    """The main graph or a function's body: the place of shared tables."""

    scope: Scope
    present: set[Hashable] = field(default_factory=set)
    choices: list[Choice] = field(default_factory=list)

    @property
    def gain(self) -> int:
        """Bytes saved by all choices together, with the tables that they share."""
        tables: dict[Hashable, int] = {}
        for each in self.choices:
            tables.update(each.cost.shared)
        return sum(each.plain_bytes - each.cost.own for each in self.choices) - sum(tables.values())


@dataclass(frozen=True, kw_only=True)
class StoreCompact(Pass):
    """Store every constant in the fewest bytes, exactly, with decoders of standard operators.

    ONNX Runtime computes the decoders once, when the session is created: inference is as fast as before, and
    creating the session takes more time and memory. `onnxcomp expand` undoes it for runtimes that do not.
    A constant stays plain where nothing is smaller, where it is an output of its graph, below opset 7, and
    where its decoder would compute a tensor over 1 GiB, which ONNX Runtime does not compute beforehand.
    """

    effect = Effect(shrinks=("bytes",), exact=True)
    paper = "https://arxiv.org/abs/1510.00149"
    makes = frozenset({"compact"})

    prefer: str = parameter(
        "bytes",
        choices=("bytes", "load"),
        help="bytes: the smallest file; load: only what one lookup or cast decodes, for faster session creation",
    )
    min_saving: float = parameter(
        0.0, low=0.0, high=0.99, help="leave a constant plain unless this share of its bytes is saved"
    )

    def apply(self, graph: Graph, context: Context) -> Outcome:
        outcome = Outcome()
        roots = [Root(scope) for scope in graph.scopes if scope.parent is None]
        by_scope = {id(root.scope): root for root in roots}
        candidates = sorted(_candidates(graph), key=lambda found: -found[1].nbytes)  # the large pay for the tables
        for done, (scope, constant) in enumerate(candidates):
            key = scope.key(constant.name)
            context.progress(done, len(candidates), key)
            reason = self._refusal(graph, scope, constant, context)
            if reason is None:
                reason = self._choose(graph, by_scope[id(root_of(scope))], scope, constant)
            if reason is not None:
                outcome.skip(key, reason)
        for root in roots:
            self._write(graph, root, outcome)
        return outcome

    def _refusal(self, graph: Graph, scope: Scope, constant: Constant, context: Context) -> str | None:
        readers = [each.name for each in constant.outputs if each.name]
        if not context.selects(scope.key(constant.name), *readers):
            return "excluded"
        if scope.opset < MIN_OPSET:
            return f"opset {scope.opset} has no broadcasting: decoders need opset {MIN_OPSET}"
        if graph.is_output(constant):
            return "it is an output of its graph"
        return None

    def _choose(self, graph: Graph, root: Root, scope: Scope, constant: Constant) -> str | None:
        """Add the best way to the root's choices, or say why the constant stays plain."""
        memo = Memo()
        plain = _plain_bytes(constant, root.scope)
        best, least, too_large = None, plain * (1 - self.min_saving), False
        encoding = graph.encodings.get(scope.key(constant.name))
        simple = self.prefer == "load"
        for storage in storages(lambda: constant.values, encoding, opset=root.scope.opset, simple=simple, memo=memo):
            cost = cost_of(storage.term, root.scope)
            if cost.peak_output > FOLDED_BYTES:
                too_large = True
                continue
            missing = sum(size for key, size in cost.shared.items() if key not in root.present)
            weighed = cost.own + missing / SHARES
            if weighed < least:
                best, least = Choice(scope, constant, storage, plain, cost, memo), weighed
        memo.drop()
        if best is not None:
            root.choices.append(best)
            root.present.update(best.cost.shared)
            return None
        if too_large:
            return "ONNX Runtime computes no tensor over 1 GiB beforehand"
        return "no storage is smaller than the plain tensor"

    def _write(self, graph: Graph, root: Root, outcome: Outcome) -> None:
        if not root.choices:
            return
        if root.gain <= 0:
            for choice in root.choices:
                outcome.skip(choice.scope.key(choice.constant.name), "the decoder is larger than what it saves")
            return
        writer = Writer(graph, root.scope)
        for choice in root.choices:
            key = choice.scope.key(choice.constant.name)
            _check(key, choice)
            writer.replace(choice.scope, choice.constant, choice.storage.term)
            choice.memo.drop()
            graph.encodings.pop(key, None)
            outcome.change(
                key, choice.storage.name, bytes_before=choice.plain_bytes, bytes_after=choice.cost.own,
                bits_per_value=round(choice.cost.own * 8 / math.prod(choice.constant.shape), 2),
            )  # fmt: skip
        writer.finish()


def _candidates(graph: Graph) -> list[tuple[Scope, Constant]]:
    """The constants that are large enough, of types that decoders can make."""
    found = []
    for scope in graph.scopes:
        for constant in scope.constants:
            kind, size = constant.data_type, constant.nbytes
            wanted = (kind in FLOATS and size >= MIN_BYTES) or (kind in OTHERS and size >= MIN_OTHER_BYTES)
            if wanted and (constant.outputs or graph.is_output(constant)):
                found.append((scope, constant))
    return found


def _plain_bytes(constant: Constant, root: Scope) -> int:
    if isinstance(constant.origin, SparseTensorProto):
        return int(constant.origin.ByteSize())
    return tensor_bytes(tuple(constant.shape), constant.nbytes, root)


def _check(key: str, choice: Choice) -> None:
    """A decoder that does not give the values is a fault of this package, and must never be written."""
    if not same_bits(evaluate(choice.storage.term), np.asarray(choice.constant.values)):
        raise PassError(f"store-compact: {key}: stored as {choice.storage.name}, it would decode to other values.")
