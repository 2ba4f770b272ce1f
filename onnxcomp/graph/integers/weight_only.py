"""Write a matrix of codes in front of the nodes that read it, for products and for tables.

    MatMul(x, W)     com.microsoft.MatMulNBits(x, codes, scales)            by_kernel
                     MatMul(x, DequantizeLinear(codes, scales))             by_decoder
    Gather(W, ids)   Cast(Gather(codes, ids)) * Gather(scales, ids)         one scale a row, 8 bits
                     com.microsoft.GatherBlockQuantized(codes, ids, scales)
                     the same by Gather from a table that takes bytes apart

A table is looked up first and decoded after. ONNX Runtime keeps a decoder that stands before a Gather, and runs it
over the whole table at every inference.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import ml_dtypes
import numpy as np
from onnx import helper

from onnxcomp.graph.integers.qdq_writer import BLOCK_OPSET, PER_AXIS_OPSET, PER_TENSOR_OPSET
from onnxcomp.graph.ir.nodes import Array, Constant, Variable
from onnxcomp.graph.ir.reader import Graph, Scope
from onnxcomp.graph.weights.linear_op import LinearOp
from onnxcomp.graph.weights.lookups import Lookup
from onnxcomp.numerics.integers.blockwise import RowBlocks, pack_last
from onnxcomp.operators import MICROSOFT

OPSET_OF_BITS = {8: PER_TENSOR_OPSET, 4: BLOCK_OPSET, 2: 25}


def integer_type(bits: int, *, signed: bool) -> np.dtype[Any]:
    """The numpy type of codes, ml_dtypes' below 8 bits."""
    name = f"{'int' if signed else 'uint'}{bits}"
    return np.dtype(name if bits == 8 else getattr(ml_dtypes, name))


class CodesWriter:
    """Stores one weight's codes, in the scope where the weight was, and lets its readers use them.

    dtype: the weight's; scales are stored in it. is_tied: products and lookups read the same codes.
    Each array is stored once, however many nodes read it.
    """

    def __init__(
        self, graph: Graph, home: Scope, name: str, rows: RowBlocks, dtype: np.dtype[Any], *, is_tied: bool = False
    ) -> None:
        self._graph = graph
        self._home = home
        self._name = name
        self._rows = rows
        self._dtype = dtype
        self._is_tied = is_tied
        self._stored: dict[str, Constant] = {}

    # --- products --------------------------------------------------------------------------------------------

    def by_kernel(self, product: LinearOp, *, accuracy_level: int) -> None:
        """MatMul or Gemm as MatMulNBits, which has the weight's rows packed."""
        rows = self._rows
        inputs = [self._packed(), self._scales(product.alpha)]
        zero_points = rows.packed_zero_points()
        if zero_points is not None:
            inputs.append(self._store("packed_zeros", zero_points))
        attrs = {
            "K": int(rows.codes.shape[1]), "N": int(rows.codes.shape[0]), "bits": rows.bits,
            "block_size": rows.block_size, "accuracy_level": accuracy_level,
        }  # fmt: skip
        self._graph.opset_imports.setdefault(MICROSOFT, 1)

        def multiply(source: Any, result: Any) -> None:
            self._graph.node(
                product.scope, "MatMulNBits", [source, *inputs], [result],
                name=product.node.name, attrs=attrs, domain=MICROSOFT,
            )  # fmt: skip

        product.replace_with(self._graph, multiply)

    def by_decoder(self, product: LinearOp, place: Scope) -> None:
        """MatMul or Gemm reading DequantizeLinear, of its own, since ONNX Runtime fuses only what has one reader.

        It fuses no Gemm that does more than add a vector, so that becomes MatMul and what else it does.
        place: the scope of decoder and codes. ONNX Runtime (1.32) opens no session where it fuses a decoder in a
        subgraph whose codes are outside.
        """
        rows, node = self._rows, product.node
        self._home = place
        decoded = self._graph.variable(f"{self._name}_decoded")
        columns = self._by_column(rows.scales * np.float32(product.alpha))
        inputs = [self._columns(place), self._store(f"column_scales_{product.alpha:g}", columns, self._dtype)]
        if rows.zero_points is not None:
            kind = integer_type(rows.bits, signed=False)
            inputs.append(self._store("column_zeros", self._by_column(rows.zero_points), kind))
        self._graph.node(place, "DequantizeLinear", inputs, [decoded], attrs=self._axis())
        if (node.op == "MatMul" and product.index == 1) or _only_adds_a_vector(product):
            node.inputs[1] = decoded
            node.attrs.pop("transB", None)
            return

        def multiply(source: Any, result: Any) -> None:
            self._graph.node(product.scope, "MatMul", [source, decoded], [result], name=node.name)

        product.replace_with(self._graph, multiply)

    def _columns(self, scope: Scope) -> Any:
        """The codes (K, N); bytes that lookups read as rows are turned, which ONNX Runtime does beforehand."""
        if self._is_tied and self._rows.bits == 8 and self._rows.scales.shape[1] == 1:
            return self._add(scope, "Transpose", [self._store("codes", self._typed())], perm=[1, 0])
        return self._store("columns", self._typed().T)

    def _typed(self) -> Array:
        """The codes (N, K) in their own type: signed about zero where the zero point is the middle."""
        rows = self._rows
        if rows.zero_points is not None:
            return rows.codes.astype(integer_type(rows.bits, signed=False))
        return (rows.codes.astype(np.int16) - rows.middle).astype(np.int8).astype(integer_type(rows.bits, signed=True))

    def _axis(self) -> dict[str, int]:
        if self._is_uniform():
            return {}
        if self._rows.scales.shape[1] == 1:
            return {"axis": 1}
        return {"axis": 0, "block_size": self._rows.block_size}

    def _by_column(self, array: Array) -> Array:
        """Scales or zero points as DequantizeLinear takes them for codes (K, N): (), (N,) or (blocks, N)."""
        if self._is_uniform():
            array = array[0, 0].reshape(())
        elif array.shape[1] == 1:
            array = array[:, 0]
        else:
            array = array.T
        return array

    def _is_uniform(self) -> bool:
        return is_uniform(self._rows)

    # --- tables ----------------------------------------------------------------------------------------------

    def rows_by_kernel(self, lookup: Lookup) -> None:
        """A Gather as GatherBlockQuantized; the packed codes may be those of a MatMulNBits."""
        rows = self._rows
        inputs = [self._flat_codes(lookup.scope), lookup.node.inputs[1], self._scales()]
        zero_points = rows.packed_zero_points()
        if zero_points is not None:
            inputs.append(self._store("packed_zeros", zero_points))
        attrs = {"gather_axis": 0, "quantize_axis": 1, "block_size": rows.block_size, "bits": rows.bits}
        self._graph.opset_imports.setdefault(MICROSOFT, 1)
        scope, name, outputs = lookup.scope, lookup.node.name, list(lookup.node.outputs)
        self._graph.remove_node(scope, lookup.node)
        self._graph.node(scope, "GatherBlockQuantized", inputs, outputs, name=name, attrs=attrs, domain=MICROSOFT)

    def rows_by_decoder(self, lookup: Lookup, rank: int | None) -> None:
        """A Gather of codes, decoded after by standard operators. rank: of the ids, None where it is not known."""
        rows, scope = self._rows, lookup.scope
        ids, result = lookup.node.inputs[1], lookup.node.outputs[0]
        name = lookup.node.name
        self._graph.remove_node(scope, lookup.node)
        if rows.bits == 8 and rows.scales.shape[1] == 1:
            self._one_scale(scope, ids, result, name)
        else:
            self._blocks(scope, ids, result, name, rank)

    def _one_scale(self, scope: Scope, ids: Any, result: Any, name: str) -> None:
        rows = self._rows
        looked = self._add(scope, "Gather", [self._store("codes", self._typed()), ids], name=name)
        values = self._add(scope, "Cast", [looked], to=self._element())
        if rows.zero_points is not None:
            zero = self._add(scope, "Gather", [self._store("zeros", rows.zero_points), ids])
            values = self._add(scope, "Sub", [values, self._add(scope, "Cast", [zero], to=self._element())])
        self._graph.node(scope, "Mul", [values, self._scales_at(scope, ids)], [result])

    def _blocks(self, scope: Scope, ids: Any, result: Any, name: str, rank: int | None) -> None:
        """Bytes are looked up, taken apart, and scaled as (.., blocks, block_size)."""
        rows = self._rows
        blocks = rows.scales.shape[1]
        looked = self._add(scope, "Gather", [self._packed(), ids], name=name)  # (.., blocks, bytes)
        if rows.bits == 8:
            codes = self._add(scope, "Cast", [looked], to=self._element())
        else:
            index = self._add(scope, "Cast", [looked], to=helper.np_dtype_to_tensor_dtype(np.dtype(np.int32)))
            parts = self._add(scope, "Gather", [self._store("parts", parts_of_bytes(rows.bits), self._dtype), index])
            codes = self._form(scope, parts, ids, rank, [blocks, rows.block_size])
        if rows.zero_points is None:
            zero: Any = self._store("middle", np.array(rows.middle), self._dtype)
        else:
            found = self._add(scope, "Gather", [self._store("zeros3", rows.zero_points[..., None]), ids])
            zero = self._add(scope, "Cast", [found], to=self._element())
        values = self._add(scope, "Sub", [codes, zero])
        scales = self._add(scope, "Gather", [self._store("scales3", rows.scales[..., None], self._dtype), ids])
        scaled = self._add(scope, "Mul", [values, scales])
        width = rows.codes.shape[1]
        whole = blocks * rows.block_size
        flat = self._form(scope, scaled, ids, rank, [whole], result if whole == width else None)
        if whole != width:
            self._cut(scope, flat, width, result)

    def _form(
        self, scope: Scope, tensor: Any, ids: Any, rank: int | None, last: Sequence[int], result: Any = None
    ) -> Any:
        """The tensor as (the dimensions of ids.., *last)."""
        if rank is None:
            own = self._add(scope, "Shape", [ids])
            form = self._add(scope, "Concat", [own, self._whole(scope, "width", last)], axis=0)
        else:
            form = self._whole(scope, "form", [*[0] * rank, *last])  # 0: the dimension stays
        return self._add(scope, "Reshape", [tensor, form], result=result)

    def _cut(self, scope: Scope, tensor: Any, width: int, result: Any) -> None:
        """The first ``width`` elements of the last axis."""
        index = self._whole(scope, "kept", range(width))
        self._graph.node(scope, "Gather", [tensor, index], [result], attrs={"axis": -1})

    def _scales_at(self, scope: Scope, ids: Any) -> Any:
        if self._is_uniform():
            return self._store("scale", self._rows.scales[0, 0].reshape(()), self._dtype)
        return self._add(scope, "Gather", [self._scales(), ids])

    # --- what is stored --------------------------------------------------------------------------------------

    def _packed(self) -> Constant:
        return self._store("packed", self._rows.packed())

    def _scales(self, factor: float = 1.0) -> Constant:
        what = "scales" if factor == 1 else f"scales_{factor:g}"
        return self._store(what, self._rows.scales * np.float32(factor), self._dtype)

    def _flat_codes(self, scope: Scope) -> Any:
        """The packed codes as (rows, bytes), from those of a MatMulNBits where there are some."""
        rows = self._rows
        if "packed" not in self._stored or rows.codes.shape[1] % rows.block_size:
            padded = np.zeros((len(rows.codes), -(-rows.codes.shape[1] * rows.bits // 8) * 8 // rows.bits), np.uint8)
            padded[:, : rows.codes.shape[1]] = rows.codes
            return self._store("flat", pack_last(padded, rows.bits))
        form = self._whole(scope, "form", [len(rows.codes), rows.codes.shape[1] * rows.bits // 8])
        return self._add(scope, "Reshape", [self._stored["packed"], form])

    def _store(self, what: str, values: Array, dtype: np.dtype[Any] | None = None) -> Constant:
        if what not in self._stored:
            array = values if dtype is None else values.astype(dtype)
            self._stored[what] = self._graph.constant(self._home, f"{self._name}_{what}", _compact(array))
        return self._stored[what]

    def _whole(self, scope: Scope, base: str, values: Sequence[int]) -> Constant:
        return self._graph.constant(scope, f"{self._name}_{base}", np.array(list(values), np.int64))

    def _element(self) -> int:
        return int(helper.np_dtype_to_tensor_dtype(self._dtype))

    def _add(
        self, scope: Scope, op: str, inputs: list[Any], *, name: str = "", result: Any = None, **attrs: Any
    ) -> Variable:
        made: Variable = self._graph.variable(f"{self._name}_{op.lower()}") if result is None else result
        self._graph.node(scope, op, inputs, [made], name=name, attrs=attrs)
        return made


def _only_adds_a_vector(product: LinearOp) -> bool:
    """Whether a Gemm is x @ W + c, c a vector or nothing."""
    plain = product.node.op == "Gemm" and not product.swaps_data and product.alpha == 1 and product.beta == 1
    addend = product.addend
    return plain and (addend is None or (isinstance(addend, Constant) and len(addend.shape) == 1))


def parts_of_bytes(bits: int) -> Array:
    """(256, 8 / bits): the codes in each byte, the first from the lowest bits."""
    places = np.arange(8 // bits) * bits
    parts: Array = (np.arange(256)[:, None] >> places) & (2**bits - 1)
    return parts


def needed_opset(rows_bits: int, *, blocks: int, uniform: bool) -> int:
    """The opset at which DequantizeLinear takes such codes: ``blocks`` scales a row, or one for all."""
    form = PER_TENSOR_OPSET if uniform else PER_AXIS_OPSET if blocks == 1 else BLOCK_OPSET
    return max(OPSET_OF_BITS[rows_bits], form)


def is_uniform(rows: RowBlocks) -> bool:
    """Whether one scale and zero point serve for all."""
    arrays = [rows.scales, *([] if rows.zero_points is None else [rows.zero_points])]
    return all(each.size > 0 and bool(np.all(each == each.flat[0])) for each in arrays)


def _compact(values: Array) -> Array:
    """In row-major order; a scalar stays one."""
    return np.ascontiguousarray(values).reshape(values.shape)
