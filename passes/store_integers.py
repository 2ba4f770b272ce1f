"""Weights on a grid are stored as the integers that they are, and decoded where they are used.

    MatMul(x, W)    ->   MatMulNBits(x, codes, scales)         or   MatMul(x, DequantizeLinear(codes, scales))
    Gather(W, ids)  ->   Cast(Gather(codes, ids)) * Gather(scales, ids)

Unlike ``store-compact``, whose decoders run once, when the session is created, the codes stay codes in memory,
and what is read for each product is a fourth to a sixteenth of the bytes.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field

import numpy as np

from onnxcomp.contract import (
    Context,
    Effect,
    Exact,
    Outcome,
    Quantity,
    SelectingPass,
    Site,
    Structure,
    Survey,
    parameter,
)
from onnxcomp.graph.infer.shapes import Shapes, infer_shapes
from onnxcomp.graph.integers.qdq_writer import BLOCK_OPSET
from onnxcomp.graph.integers.weight_only import CodesWriter, is_uniform, needed_opset
from onnxcomp.graph.ir.nodes import Array, Constant
from onnxcomp.graph.ir.query import is_onnx
from onnxcomp.graph.ir.reader import Graph
from onnxcomp.graph.opset import raise_opset
from onnxcomp.graph.weights.linear_op import LinearOp, replaceable_op
from onnxcomp.graph.weights.lookups import Lookup, lookup_of
from onnxcomp.graph.weights.roles import Weight, weights
from onnxcomp.numerics.encodings.encoding import GridEncoding
from onnxcomp.numerics.integers.blockwise import (
    RowBlocks,
    cheapest_block,
    fit_rows,
    rows_of_grid,
    shared_block,
    stored_bits,
)
from onnxcomp.numerics.metrics.weight_error import relative_error
from onnxcomp.operators import MATRIX_PRODUCTS

# Execution providers that have MatMulNBits and GatherBlockQuantized.
WITH_KERNELS = frozenset({"cpu", "cuda", "webgpu", "js", "dml"})
# ONNX Runtime that first has MatMulNBits of so many bits, and GatherBlockQuantized of packed bytes.
KERNEL_SINCE = {4: (1, 17), 8: (1, 22), 2: (1, 24)}
LOOKUP_SINCE = (1, 23)
# 2-bit blocks of 16 and 256 have no fast kernel in ONNX Runtime 1.32 (17 times float32's time).
KERNEL_BLOCKS = {8: (16, 32, 64, 128, 256), 4: (16, 32, 64, 128, 256), 2: (32, 64, 128)}
REASONS = {
    "conv": "a decoder before Conv would run at every inference",
    "conv_transpose": "a decoder before ConvTranspose would run at every inference",
    "recurrent": "a decoder before a recurrent node would run at every inference",
    "bias": "a node adds it",
    "other": "a node reads it that needs it decoded",
    "linear": "a product reads it cast, in more than two dimensions, or on the left of what has no known dimensions",
    "embedding": "a Gather reads it along another axis, or changed in form",
}


@dataclass(eq=False)
class Readers:
    """The nodes that use a weight as codes."""

    products: list[LinearOp] = field(default_factory=list)
    lookups: list[Lookup] = field(default_factory=list)

    @property
    def nodes(self) -> list[LinearOp | Lookup]:
        """All of them."""
        return [*self.products, *self.lookups]

    @property
    def summed(self) -> int | None:
        """The constant's axis along which blocks run, None where readers differ."""
        axes = {each.matrix_axes[0] for each in self.products} | ({1} if self.lookups else set())
        return axes.pop() if len(axes) == 1 else None


@dataclass(frozen=True, kw_only=True)
class StoreIntegers(SelectingPass):
    """Store weights of MatMul, Gemm and embedding Gather as integers of 8, 4 or 2 bits, for speed and memory.

    A weight that quantize-weights left on a grid keeps its values to the bit: codes of 3 bits are kept in 4, of 5
    to 7 in 8. One that lies on no grid is rounded to one here, unless ``fit`` says otherwise; one on a codebook is
    left alone. What reads it otherwise (Conv, LSTM, a batch of matrices) would have it decoded at every inference,
    so these are left alone, too.

    form nbits: MatMulNBits computes with codes. At accuracy_level 4 it rounds the inputs to 8 bits, block by block:
    0.2 to 1% of output error. Level 0 keeps them in float32, at 30 times the time for 2 and 8 bits.
    form dequantize: standard operators, exact as written; but ONNX Runtime on CPU makes MatMulNBits of level 4 of
    DequantizeLinear and MatMul, unless session.qdq_matmulnbits_accuracy_level says otherwise; and where an
    activation follows, several products read the weight, or blocks are no power of two from 16 on, it decodes at
    every inference. Blocks need opset 21, 4 bits 21, 2 bits 25. form auto: nbits where the target has the kernels.
    """

    effect = Effect(shrinks=("bytes", "latency", "memory"), exact=Exact.NOWHERE)
    paper = "https://arxiv.org/abs/2210.17323"
    makes = frozenset({Structure.INTEGERS})
    destroys = frozenset({Structure.COMPACT})

    form: str = parameter("auto", choices=("auto", "dequantize", "nbits"), help="how products read the codes")
    roles: str = parameter("all", choices=("all", "products", "tables"), help="which weights")
    bits: int = parameter(4, low=2, high=8, help="bits of a code, for products on no grid yet")
    table_bits: int = parameter(8, low=2, high=8, help="bits of a code, for tables on no grid yet")
    block_size: int = parameter(
        32, low=16, high=256, help="values that share a scale, for weights on no grid yet; rounded to a power of two"
    )
    symmetric: bool = parameter(True, help="keep zero points in the middle, for weights on no grid yet")
    search_range: bool = parameter(True, help="clip outliers where that makes the squared error less")
    fit: bool = parameter(True, help="round weights that lie on no grid yet")
    accuracy_level: int = parameter(
        4, low=0, high=4, help="MatMulNBits computes in float32 (0, 1), float16 (2), bfloat16 (3) or int8 (4)"
    )
    min_elements: int = parameter(16384, low=2, help="leave weights with fewer values alone")

    def sites(self, graph: Graph, context: Context) -> Survey:
        outcome = Outcome()
        found = self._found(graph, infer_shapes(graph), context, outcome)
        sites = [Site(each.name, tuple(each.node_names), {Quantity.BYTES: each.size_bytes}) for each, _, _ in found]
        return Survey(tuple(sites), tuple(outcome.skipped))

    def edit(self, graph: Graph, context: Context) -> Outcome:
        outcome, shapes = Outcome(), infer_shapes(graph)
        form = _form(self.form, context)
        found = self._found(graph, shapes, context, outcome)
        if form == "dequantize" and found:
            self._raise(graph, context, [(each, summed) for each, readers, summed in found if readers.products])
            outcome, shapes = Outcome(), infer_shapes(graph)
            found = self._found(graph, shapes, context, outcome)
        for done, (weight, readers, summed) in enumerate(found):
            if context.is_over():
                outcome.is_cut_short = True
                break
            context.progress(done, len(found), weight.name)
            made = self._rows(weight, readers, summed, form)
            if isinstance(made, RowBlocks):
                made = _refusal(readers, made, form, context) or made
            if isinstance(made, str):
                outcome.skip(weight.name, made)
                continue
            error = _error(weight, made, summed)
            self._write(graph, weight, readers, made, form, context, shapes)
            block = "a row" if made.scales.shape[1] == 1 else f"{made.block_size} values"
            outcome.change(
                weight.name, f"{made.bits} bits, a scale for {block}", bits=made.bits, error=error,
                nodes=[each.node.op for each in readers.products] + ["Gather"] * len(readers.lookups),
            )  # fmt: skip
        return outcome

    def _found(
        self, graph: Graph, shapes: Shapes, context: Context, outcome: Outcome
    ) -> list[tuple[Weight, Readers, int]]:
        """The weights to store, what reads them, and the axis along which their blocks run."""
        readers = _readers(graph, shapes)
        found = []
        for weight in weights(graph, min_size=self.min_elements):
            if not context.selects(weight.name, *weight.node_names):
                if context.excludes(weight.name, *weight.node_names):
                    outcome.skip(weight.name, "excluded")
                continue
            own = readers[weight.tensor]
            reason = self._reason(weight, own)
            if reason is not None or own.summed is None:
                outcome.skip(weight.name, reason or "its readers sum over different axes")
            else:
                found.append((weight, own, own.summed))
        return found

    def _reason(self, weight: Weight, readers: Readers) -> str | None:
        if len(readers.nodes) < len(weight.roles):
            known = {id(each.node) for each in readers.nodes}
            return REASONS[next(role.kind for role in weight.roles if id(role.node) not in known)]
        if (self.roles == "tables" and readers.products) or (self.roles == "products" and readers.lookups):
            return f"only {self.roles} are to be stored"
        if weight.dtype not in (np.float32, np.float16):
            return f"it is {weight.dtype}"
        return None if np.isfinite(weight.values).all() else "it has values that are not finite"

    def _raise(self, graph: Graph, context: Context, found: list[tuple[Weight, int]]) -> None:
        """Bring the model to the opset that the most demanding weight needs, where that is allowed and possible."""
        wanted = [0]
        for weight, summed in found:
            encoding = weight.encoding
            if isinstance(encoding, GridEncoding) and shared_block(encoding, weight.shape, summed):
                blocks = 1 if shared_block(encoding, weight.shape, summed) == weight.shape[summed] else 2
                wanted.append(needed_opset(stored_bits(encoding.levels), blocks=blocks, uniform=False))
            elif self.fit:
                wanted.append(needed_opset(stored_bits(2**self.bits), blocks=2, uniform=False))
        highest = context.max_opset or max(wanted)
        raise_opset(graph, max((each for each in wanted if each <= highest), default=0))

    def _rows(self, weight: Weight, readers: Readers, summed: int, form: str) -> RowBlocks | str:
        """The weight as codes, or the reason why it has none."""
        encoding = weight.encoding
        values = np.asarray(weight.values)
        codes = None if encoding is None else encoding.encode(values)
        if codes is None or encoding is None:
            if not self.fit:
                return "it lies on no grid"
            matrix = values if summed == 1 else values.T
            return self._fitted(matrix.astype(np.float32), readers, form)
        if not isinstance(encoding, GridEncoding):
            return f"its levels are those of a {encoding.kind}"
        return self._kept(encoding, codes, readers, summed, form)

    def _kept(self, encoding: GridEncoding, codes: Array, readers: Readers, summed: int, form: str) -> RowBlocks | str:
        """The codes of a weight that lies on a grid."""
        shared, row = shared_block(encoding, tuple(codes.shape), summed), codes.shape[summed]
        if shared is None:
            return "its blocks do not run along the summed axis"
        bits = stored_bits(encoding.levels)
        if readers.lookups:
            bits = _whole_bytes(bits, row, shared)
        if form == "dequantize" or (not readers.products and bits == 8 and shared == row):
            return rows_of_grid(encoding, codes, summed=summed, least_bits=bits)
        block = cheapest_block(shared, row, bits, KERNEL_BLOCKS[bits])
        if block is None and bits == 2:  # blocks of 16
            bits, block = 4, cheapest_block(shared, row, 4, KERNEL_BLOCKS[4])
        if block is None:
            return f"MatMulNBits has no blocks of {shared}"
        return rows_of_grid(encoding, codes, summed=summed, block_size=block, least_bits=bits)

    def _fitted(self, matrix: Array, readers: Readers, form: str) -> RowBlocks:
        """The matrix (N, K) rounded to a grid."""
        bits = self.bits if readers.products else self.table_bits
        row, stored = matrix.shape[1], stored_bits(2**bits)
        if not readers.products and stored == 8:
            block = row
        elif form == "dequantize":
            has_blocks = not readers.products or _opset(readers) >= BLOCK_OPSET
            block = _dividing_block(row, self.block_size) if has_blocks else row
        else:
            block = _kernel_block(row, self.block_size, KERNEL_BLOCKS[stored])
        least = _whole_bytes(stored, row, block) if readers.lookups else stored
        return fit_rows(
            matrix, bits=bits, block_size=block, symmetric=self.symmetric, search=self.search_range, least_bits=least
        )

    def _write(
        self,
        graph: Graph,
        weight: Weight,
        readers: Readers,
        rows: RowBlocks,
        form: str,
        context: Context,
        shapes: Shapes,
    ) -> None:
        is_tied = bool(readers.products and readers.lookups)
        writer = CodesWriter(graph, weight.scope, weight.tensor.name, rows, weight.dtype, is_tied=is_tied)
        places = {id(each.scope): each.scope for each in readers.nodes}
        place = next(iter(places.values())) if len(places) == 1 else weight.scope
        for product in readers.products:
            if form == "nbits":
                writer.by_kernel(product, accuracy_level=self.accuracy_level)
            else:
                writer.by_decoder(product, place)
        for lookup in readers.lookups:
            simple = rows.bits == 8 and rows.scales.shape[1] == 1 and not is_tied
            if form == "nbits" and not simple and _has(context, LOOKUP_SINCE):
                writer.rows_by_kernel(lookup)
            else:
                writer.rows_by_decoder(lookup, shapes.rank(lookup.node.inputs[1]))
        graph.encodings.pop(weight.name, None)


def _form(form: str, context: Context) -> str:
    if form != "auto":
        return form
    has_kernels = context.target is None or context.target.name in WITH_KERNELS
    return "nbits" if has_kernels and _has(context, KERNEL_SINCE[4]) else "dequantize"


def _has(context: Context, since: tuple[int, int]) -> bool:
    """Whether every ONNX Runtime that must load the result has what came with that version."""
    oldest = None if context.target is None else context.target.min_ort
    return oldest is None or oldest >= since


def _readers(graph: Graph, shapes: Shapes) -> dict[Constant, Readers]:
    """What uses each constant as the weight of a product or as a table of rows."""
    found: defaultdict[Constant, Readers] = defaultdict(Readers)
    for scope, node in graph.nodes():
        if is_onnx(node, *MATRIX_PRODUCTS):
            product = replaceable_op(scope, node, shapes)
            if isinstance(product, LinearOp) and len(product.perm) == 2:
                found[product.weight].products.append(product)
        elif (lookup := lookup_of(scope, node)) is not None:
            found[lookup.weight].lookups.append(lookup)
    return found


def _dividing_block(row: int, most: int) -> int:
    """The largest power of two from 16 to ``most`` that divides the row; the row itself where there is none."""
    return next((block for block in (256, 128, 64, 32, 16) if block <= most and row % block == 0), row)


def _kernel_block(row: int, most: int, blocks: tuple[int, ...]) -> int:
    """The smallest block that takes in the whole row, or else the largest up to ``most``."""
    allowed = [block for block in blocks if block <= most] or [blocks[0]]
    return next((block for block in allowed if block >= row), allowed[-1])


def _whole_bytes(bits: int, row: int, block: int) -> int:
    """The bits of a stored code so that each row, and each block but the last, fills whole bytes."""
    return bits if row * bits % 8 == 0 and (block >= row or block * bits % 8 == 0) else 8


def _opset(readers: Readers) -> int:
    return min(each.scope.opset for each in readers.products)


def _refusal(readers: Readers, rows: RowBlocks, form: str, context: Context) -> str | None:
    """Why codes cannot be written in this form, or None."""
    if not readers.products:
        return None
    if form == "nbits":
        since = KERNEL_SINCE[rows.bits]
        words = f"MatMulNBits of {rows.bits} bits came with ONNX Runtime {since[0]}.{since[1]}"
        return None if _has(context, since) else words
    needed = needed_opset(rows.bits, blocks=rows.scales.shape[1], uniform=is_uniform(rows))
    return None if _opset(readers) >= needed else f"DequantizeLinear has such codes from opset {needed} on"


def _error(weight: Weight, rows: RowBlocks, summed: int) -> float:
    matrix = np.asarray(weight.values) if summed == 1 else np.asarray(weight.values).T
    return relative_error(np.ascontiguousarray(matrix), rows.values())
