"""Inputs for a model of the tests."""

import numpy as np
import onnx
from onnx import TensorProto, helper

from onnxcomp.testing.models.linear import VOCABULARY


def feeds_for(model: onnx.ModelProto, seed: int = 0) -> dict[str, np.ndarray]:
    """Draw an array for every input that has no initializer; a symbolic dimension has the size 1, 2 or 3.

    Integers lie below `VOCABULARY`, so they can index every table of the drawn models.
    """
    random = np.random.default_rng(seed)
    sizes: dict[str, int] = {}
    given = {tensor.name for tensor in model.graph.initializer}
    given |= {sparse.values.name for sparse in model.graph.sparse_initializer}
    feeds = {}
    for value in model.graph.input:
        if value.name in given:
            continue
        tensor = value.type.tensor_type
        shape = []
        for index, dimension in enumerate(tensor.shape.dim):
            if dimension.HasField("dim_value"):
                shape.append(dimension.dim_value)
            else:
                label = dimension.dim_param or f"{value.name}:{index}"
                shape.append(sizes.setdefault(label, int(random.integers(1, 4))))
        feeds[value.name] = _array(random, tensor.elem_type, shape)
    return feeds


def _array(random: np.random.Generator, elem_type: int, shape: list[int]) -> np.ndarray:
    dtype = helper.tensor_dtype_to_np_dtype(elem_type)
    if elem_type == TensorProto.BOOL:
        return np.asarray(random.random(shape) < 0.5)
    if np.issubdtype(dtype, np.integer):
        return random.integers(0, VOCABULARY, shape).astype(dtype)
    return np.asarray(random.standard_normal(shape)).astype(dtype)
