"""What a model states of a tensor: its ValueInfoProto, brought up to what a pass has made of it."""

from __future__ import annotations

from typing import Any

import numpy as np
from onnx import ValueInfoProto, helper

from onnxcomp.graph.ir.nodes import Constant
from onnxcomp.graph.ir.scopes import type_of


def info_of(variable: Any) -> ValueInfoProto | None:
    """The origin's statement, unless a pass has given the variable another type, shape or name since."""
    origin: ValueInfoProto | None = getattr(variable, "origin", None)
    if origin is not None and origin.name == variable.name and type_of(origin) == (variable.dtype, variable.shape):
        return origin
    if variable.dtype is None:
        return None
    shape = None if variable.shape is None else list(variable.shape)
    element = helper.np_dtype_to_tensor_dtype(np.dtype(variable.dtype))
    return helper.make_tensor_value_info(variable.name, element, shape)


def retyped(info: ValueInfoProto, tensor: Any) -> ValueInfoProto:
    """What is stated of a tensor, with its element type, or a constant's shape, if that has changed since."""
    if isinstance(tensor, Constant) and type_of(info)[1] not in (None, list(tensor.shape), tuple(tensor.shape)):
        return required_info(tensor)
    dtype = getattr(tensor, "dtype", None)
    if dtype is None or not info.type.tensor_type.elem_type:
        return info
    element = tensor.data_type if isinstance(tensor, Constant) else helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    if element == info.type.tensor_type.elem_type:
        return info
    changed = ValueInfoProto()
    changed.CopyFrom(info)
    changed.type.tensor_type.elem_type = element
    return changed


def required_info(tensor: Any) -> ValueInfoProto:
    if isinstance(tensor, Constant):
        return helper.make_tensor_value_info(tensor.name, tensor.data_type, list(tensor.shape))
    info = info_of(tensor)
    return info if info is not None else ValueInfoProto(name=tensor.name)
