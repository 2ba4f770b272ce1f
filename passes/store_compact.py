"""Constants are stored by how their values are made, and decoded by standard operators.

    W = float32 (n)   ->   W = Reshape(Gather(table, Cast(bytes)), shape)

Nothing is lost: every decoder gives the constant's values to the bit. For each constant the ways of
``numerics.storage`` are weighed in bytes of the model file, names, nodes and tables included, and the
smallest is written, if any is smaller than the plain tensor.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np
from onnx import SparseTensorProto, TensorProto

from onnxcomp.contract import Context, Effect, Exact, Outcome, Pass, Structure, parameter
from onnxcomp.errors import PassError
from onnxcomp.graph.ir.nodes import Constant
from onnxcomp.graph.ir.reader import Graph, Scope
from onnxcomp.graph.storage.decoders import (
    MIN_BYTES,
    MIN_OPSET,
    DecoderCost,
    DecoderWriter,
    cost_of,
    root_of,
    tensor_bytes,
)
from onnxcomp.graph.storage.expand import differing_constants
from onnxcomp.graph.stored.decoder_steps import FOLDED_BYTES
from onnxcomp.model import Model
from onnxcomp.numerics.encodings.encoding import same_bits
from onnxcomp.numerics.encodings.expression import Given, evaluate
from onnxcomp.numerics.encodings.row_decoder import row_storages, rows_at
from onnxcomp.numerics.encodings.storage_options import Storage, storages
from onnxcomp.numerics.encodings.table_decoder import INDEX, Memo
from onnxcomp.tensors import FLOAT_TYPES

OTHERS = frozenset({
    TensorProto.BOOL, TensorProto.INT8, TensorProto.INT16, TensorProto.INT32, TensorProto.INT64,
    TensorProto.UINT8, TensorProto.UINT16, TensorProto.UINT32, TensorProto.UINT64,
})  # fmt: skip
MIN_OTHER_BYTES = 1024  # small integers are shapes, axes and the like, which shape inference must see
NO_GAIN = "no storage is smaller than the plain tensor"
TOO_LARGE = "ONNX Runtime computes no tensor over 1 GiB beforehand"
ROUNDS = 6  # in which choices settle; most models need three
FIRST_SHARES = (1.0, 0.3, 0.1, 0.02)
# What a byte that is computed when the session is created counts, in bytes of the file. With "bytes" it only
# decides between ways of nearly the same size. With "load" it rules out planes for 5 to 7 bits and most exceptions.
COMPUTED_PRICE = {"bytes": 1 / 1024, "load": 1 / 16}


@dataclass(frozen=True, eq=False)
class Way:
    """One way to store a constant; ``rows_first``: its rows are looked up as codes, and decoded after."""

    storage: Storage
    cost: DecoderCost
    rows_first: bool = False


@dataclass(eq=False)
class StorageChoice:
    """A constant, the ways to store it, and the one that is chosen (None: plain)."""

    scope: Scope
    constant: Constant
    plain_bytes: int
    memo: Memo
    ways: list[Way] = field(default_factory=list)
    chosen: Way | None = None
    too_large: bool = False

    @property
    def key(self) -> str:
        return self.scope.key(self.constant.name)

    @property
    def shared(self) -> Iterable[Hashable]:
        """The parts of the chosen way that other decoders may use too."""
        return self.chosen.cost.shared if self.chosen is not None else ()


@dataclass(eq=False)
class Root:
    """The main graph or a function's body: the place of shared tables."""

    scope: Scope
    choices: list[StorageChoice] = field(default_factory=list)

    def settle(self, *, price_of_computed: float, min_saving: float) -> None:
        """Choose a way for every constant, so that the file is small with the tables that they share.

        Constants choose one after another, the largest first, and again until none changes, each its best
        beside the others' choices. What the first time counts of the price of a table that nobody uses yet
        (others may follow) is tried in several ways. The file never grows: then all stay plain.
        """
        best: list[Way | None] = [None] * len(self.choices)
        most = 0
        order = sorted(self.choices, key=lambda each: -each.plain_bytes)
        for share in FIRST_SHARES:
            for each in self.choices:
                each.chosen = None
            uses: Counter[Hashable] = Counter()
            changed = self._round(order, uses, share, price_of_computed, min_saving)
            for _ in range(ROUNDS):
                if not changed:
                    break
                changed = self._round(order, uses, 1.0, price_of_computed, min_saving)
            if self._gain() > most:
                most, best = self._gain(), [each.chosen for each in self.choices]
        for each, chosen in zip(self.choices, best, strict=True):
            each.chosen = chosen

    def _round(
        self,
        order: list[StorageChoice],
        uses: Counter[Hashable],
        share: float,
        price_of_computed: float,
        min_saving: float,
    ) -> bool:
        """Let each constant choose again; whether any choice changed."""
        changed = False
        for each in order:
            uses.subtract(each.shared)
            before, each.chosen = each.chosen, None
            least = each.plain_bytes * (1 - min_saving)
            for way in each.ways:
                cost = way.cost
                price = cost.own + share * (cost.size(uses) - cost.own) + cost.computed * price_of_computed
                if price < least:
                    each.chosen, least = way, price
            uses.update(each.shared)
            changed |= each.chosen is not before
        return changed

    def _gain(self) -> int:
        """Bytes saved by all choices together, with the tables that they share."""
        tables: dict[Hashable, int] = {}
        gain = 0
        for each in self.choices:
            if each.chosen is not None:
                tables.update(each.chosen.cost.shared)
                gain += each.plain_bytes - each.chosen.cost.own
        return gain - sum(tables.values())


@dataclass(frozen=True, kw_only=True)
class StoreCompact(Pass):
    """Store every constant in the fewest bytes, exactly, with decoders of standard operators.

    ONNX Runtime computes the decoders once, when the session is created: inference is as fast as before, and
    creating the session takes more time and memory. `onnxcomp expand` undoes it for runtimes that do not.
    A constant stays plain where nothing is smaller, where it is an output of its graph, below opset 7, and
    where its decoder would compute a tensor over 1 GiB, which ONNX Runtime does not compute beforehand; but of
    such a table from which only rows are looked up, the codes are looked up, and decoded after.
    """

    effect = Effect(shrinks=("bytes",), exact=Exact.TENSORS)
    paper = "https://arxiv.org/abs/1510.00149"
    makes = frozenset({Structure.COMPACT})
    stores_encodings = True
    as_stored = True

    prefer: str = parameter(
        "bytes",
        choices=("bytes", "load"),
        help="bytes: the smallest file; load: faster session creation with less memory, where that costs little",
    )
    min_saving: float = parameter(
        0.05, low=0.0, high=0.99, help="leave a constant plain unless this share of its bytes is saved"
    )

    def faults(self, before: Model, after: Model) -> Sequence[str]:
        """The constants whose decoders do not give the very values."""
        return differing_constants(before, after)

    def apply(self, graph: Graph, context: Context) -> Outcome:
        outcome = Outcome()
        roots = {id(scope): Root(scope) for scope in graph.scopes if scope.parent is None}
        candidates = _candidates(graph)
        for done, (scope, constant) in enumerate(candidates):
            key = scope.key(constant.name)
            context.progress(done, len(candidates), key)
            reason = self._refusal(graph, scope, constant, context)
            if reason is None:
                root = roots[id(root_of(scope))]
                root.choices.append(_weighed(graph, root.scope, scope, constant))
            else:
                outcome.skip(key, reason)
        for root in roots.values():
            root.settle(price_of_computed=COMPUTED_PRICE[self.prefer], min_saving=self.min_saving)
            _write(graph, root, outcome)
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


def _weighed(graph: Graph, root: Scope, scope: Scope, constant: Constant) -> StorageChoice:
    """The constant with all ways to store it that are smaller than plain, shared tables left aside."""
    choice = StorageChoice(scope, constant, _plain_bytes(constant, root), Memo())
    encoding = graph.encodings.get(choice.key)
    for storage in storages(lambda: constant.values, encoding, opset=root.opset, memo=choice.memo):
        cost = cost_of(storage.term, root)
        choice.too_large |= cost.largest > FOLDED_BYTES
        if cost.own < choice.plain_bytes and cost.largest <= FOLDED_BYTES:
            choice.ways.append(Way(storage, cost))
    if choice.too_large and _is_looked_up(constant):
        for name, term in row_storages(lambda: constant.values, encoding, memo=choice.memo):
            rows = rows_at(term, constant.shape[0], Given((1,), INDEX, None))
            if rows is not None and (cost := cost_of(rows, root)).largest <= FOLDED_BYTES:
                choice.ways.append(Way(Storage(name, term), cost, rows_first=True))
    choice.memo.drop()
    return choice


def _is_looked_up(constant: Constant) -> bool:
    """Whether all that is done with the constant is to look up its rows."""
    return all(
        node.op == "Gather" and not node.domain and not node.attrs.get("axis", 0)
        and node.inputs[0] is constant and node.inputs[1] is not constant
        for node in constant.outputs
    )  # fmt: skip


def _write(graph: Graph, root: Root, outcome: Outcome) -> None:
    uses = Counter(key for each in root.choices for key in each.shared)
    writer = DecoderWriter(graph, root.scope)
    for choice in root.choices:
        if choice.chosen is None:
            outcome.skip(choice.key, TOO_LARGE if choice.too_large else NO_GAIN)
            continue
        storage, cost = choice.chosen.storage, choice.chosen.cost
        _check(choice.key, choice.constant, storage)
        put = writer.look_up if choice.chosen.rows_first else writer.replace
        put(choice.scope, choice.constant, storage.term)
        choice.memo.drop()
        graph.encodings.pop(choice.key, None)
        size = cost.size({key: count - 1 for key, count in uses.items()})
        outcome.change(
            choice.key, storage.name, bytes_before=choice.plain_bytes, bytes_after=size,
            bits_per_value=round(size * 8 / choice.constant.size, 2),
        )  # fmt: skip
    writer.finish()


def _candidates(graph: Graph) -> list[tuple[Scope, Constant]]:
    """The constants that are large enough, of types that decoders can make."""
    found = []
    for scope in graph.scopes:
        for constant in scope.constants:
            kind, size = constant.data_type, constant.nbytes
            wanted = (kind in FLOAT_TYPES and size >= MIN_BYTES) or (kind in OTHERS and size >= MIN_OTHER_BYTES)
            if wanted and (constant.outputs or graph.is_output(constant)):
                found.append((scope, constant))
    return found


def _plain_bytes(constant: Constant, root: Scope) -> int:
    if isinstance(constant.origin, SparseTensorProto):
        return int(constant.origin.ByteSize())
    return tensor_bytes(tuple(constant.shape), constant.nbytes, root)


def _check(key: str, constant: Constant, storage: Storage) -> None:
    """A decoder that does not give the values is a fault of this package, and must never be written."""
    if not same_bits(evaluate(storage.term), np.asarray(constant.values)):
        raise PassError(f"store-compact: {key}: stored as {storage.name}, it would decode to other values.")
