"""Arrays of numpy as torch tensors and back, on the same memory where that can be.

torch has no types below a byte: int4, uint4, int2, uint2 are held in int8 and uint8, float4 in float32.
"""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import torch
from numpy.typing import NDArray
from onnx import TensorProto, helper

Array = NDArray[Any]

TYPES: dict[int, torch.dtype] = {
    TensorProto.FLOAT: torch.float32, TensorProto.DOUBLE: torch.float64, TensorProto.FLOAT16: torch.float16,
    TensorProto.BFLOAT16: torch.bfloat16, TensorProto.BOOL: torch.bool,
    TensorProto.INT8: torch.int8, TensorProto.INT16: torch.int16, TensorProto.INT32: torch.int32,
    TensorProto.INT64: torch.int64, TensorProto.UINT8: torch.uint8, TensorProto.UINT16: torch.uint16,
    TensorProto.UINT32: torch.uint32, TensorProto.UINT64: torch.uint64,
    TensorProto.COMPLEX64: torch.complex64, TensorProto.COMPLEX128: torch.complex128,
    TensorProto.FLOAT8E4M3FN: torch.float8_e4m3fn, TensorProto.FLOAT8E4M3FNUZ: torch.float8_e4m3fnuz,
    TensorProto.FLOAT8E5M2: torch.float8_e5m2, TensorProto.FLOAT8E5M2FNUZ: torch.float8_e5m2fnuz,
    TensorProto.FLOAT8E8M0: torch.float8_e8m0fnu,
    TensorProto.INT4: torch.int8, TensorProto.UINT4: torch.uint8, TensorProto.INT2: torch.int8,
    TensorProto.UINT2: torch.uint8, TensorProto.FLOAT4E2M1: torch.float32,
}  # fmt: skip
"""The torch type in which an ONNX type is held."""
KINDS = {kept: kind for kind, kept in reversed(TYPES.items())}
"""The ONNX type of a torch type, whole bytes first."""
BELOW_A_BYTE: dict[int, tuple[int, int]] = {
    TensorProto.INT4: (-8, 7), TensorProto.UINT4: (0, 15), TensorProto.INT2: (-2, 1), TensorProto.UINT2: (0, 3),
    TensorProto.FLOAT4E2M1: (-6, 6),
}  # fmt: skip
"""Least and greatest value of the types that torch lacks."""
# numpy knows these from ml_dtypes only; torch takes them by their bits.
BY_BITS = {
    np.dtype(ml_dtypes.bfloat16): (np.int16, torch.bfloat16),
    np.dtype(ml_dtypes.float8_e4m3fn): (np.uint8, torch.float8_e4m3fn),
    np.dtype(ml_dtypes.float8_e4m3fnuz): (np.uint8, torch.float8_e4m3fnuz),
    np.dtype(ml_dtypes.float8_e5m2): (np.uint8, torch.float8_e5m2),
    np.dtype(ml_dtypes.float8_e5m2fnuz): (np.uint8, torch.float8_e5m2fnuz),
    np.dtype(ml_dtypes.float8_e8m0fnu): (np.uint8, torch.float8_e8m0fnu),
}
WIDENED = {
    np.dtype(ml_dtypes.int4): np.int8, np.dtype(ml_dtypes.uint4): np.uint8, np.dtype(ml_dtypes.int2): np.int8,
    np.dtype(ml_dtypes.uint2): np.uint8, np.dtype(ml_dtypes.float4_e2m1fn): np.float32,
}  # fmt: skip
BITS_OF = {kept: (bits, dtype) for dtype, (bits, kept) in BY_BITS.items()}


class _Lent:
    """A read-only array to numpy, as one that may be written to: torch warns of others. Nobody writes."""

    def __init__(self, values: Array) -> None:
        self.values = values
        start = values.__array_interface__["data"][0]
        self.__array_interface__ = {**values.__array_interface__, "data": (start, False)}


def to_torch(value: Any, device: str = "cpu") -> Any:
    """The tensor of an array, a list of those of a list; strings and None as they are."""
    if isinstance(value, list):
        return [to_torch(each, device) for each in value]
    if value is None or isinstance(value, torch.Tensor):
        return value
    array: Array = np.asarray(value)
    if array.dtype.kind in "OSU":
        return array
    if array.dtype in WIDENED:
        array = array.astype(WIDENED[array.dtype])
    bits, kept = BY_BITS.get(array.dtype, (None, None))
    if bits is not None:
        array = array.view(bits)
    if not array.dtype.isnative:
        array = array.astype(array.dtype.newbyteorder("="))
    if any(each < 0 for each in array.strides):
        array = array.copy()
    if not array.flags.writeable:
        array = np.asarray(_Lent(np.asarray(array)))
    tensor = torch.from_numpy(array)
    if kept is not None:
        tensor = tensor.view(kept)
    return tensor if device == "cpu" else tensor.to(device)


def to_numpy(value: Any, kind: int = 0) -> Any:
    """The array of a tensor, on the same memory where it is dense and on the CPU. kind: its ONNX type."""
    if isinstance(value, list):
        return [to_numpy(each, kind) for each in value]
    if not isinstance(value, torch.Tensor):
        return value
    tensor = value.detach().cpu().contiguous()
    if kind in TYPES and tensor.dtype != TYPES[kind]:  # whole numbers that were kept as floats for their derivatives
        tensor = tensor.to(TYPES[kind])
    bits, dtype = BITS_OF.get(tensor.dtype, (None, None))
    if bits is not None:
        return tensor.view(torch.int16 if bits is np.int16 else torch.uint8).numpy().view(dtype)
    array = tensor.numpy()
    return array.astype(helper.tensor_dtype_to_np_dtype(kind)) if kind in BELOW_A_BYTE else array


def limits(dtype: torch.dtype, kind: int = 0) -> tuple[float, float]:
    """The least and the greatest value of a type; ``kind`` if that is below a byte."""
    if kind in BELOW_A_BYTE:
        return BELOW_A_BYTE[kind]
    if dtype == torch.bool:
        return 0, 1
    info = torch.finfo(dtype) if dtype.is_floating_point else torch.iinfo(dtype)
    return info.min, info.max
