"""What a model declares to the outside: names, types and shapes of its inputs and outputs."""

from __future__ import annotations

from onnx import TensorProto, TensorShapeProto, ValueInfoProto

from onnxcomp.model import Model
from onnxcomp.tensors import SHORT_FLOAT_TYPES


def changed_signature(original: Model, model: Model, *, shorter_ends: bool = False) -> str | None:
    """What differs between the declared inputs and outputs of two models, or None.

    shorter_ends: what was float32 may be float16 or bfloat16.
    """
    for side in ("input", "output"):
        left = _declared(original, side)
        right = _declared(model, side)
        if list(left) != list(right):
            return f"{side}s changed from {', '.join(left)} to {', '.join(right)}"
        for name, info in left.items():
            if not _same_type(info, right[name], shorter_ends):
                return f"{side} {name} changed its type or shape"
    return None


def _declared(model: Model, side: str) -> dict[str, ValueInfoProto]:
    graph = model.proto.graph
    constant = {tensor.name for tensor in graph.initializer} | {each.values.name for each in graph.sparse_initializer}
    items = graph.input if side == "input" else graph.output
    return {item.name: item for item in items if side == "output" or item.name not in constant}


def _same_type(left: ValueInfoProto, right: ValueInfoProto, shorter_ends: bool) -> bool:
    """Equal types; a dimension that the original leaves open may have become known."""
    if left.type.WhichOneof("value") != "tensor_type" or right.type.WhichOneof("value") != "tensor_type":
        return bool(left.type == right.type)
    old, new = left.type.tensor_type, right.type.tensor_type
    is_shorter = shorter_ends and old.elem_type == TensorProto.FLOAT and new.elem_type in SHORT_FLOAT_TYPES
    if old.elem_type != new.elem_type and not is_shorter:
        return False
    if not old.HasField("shape"):
        return True
    if not new.HasField("shape") or len(old.shape.dim) != len(new.shape.dim):
        return False
    return all(_is_open(before) or before == after for before, after in zip(old.shape.dim, new.shape.dim, strict=True))


def _is_open(dim: TensorShapeProto.Dimension) -> bool:
    """Whether the dimension may have any size and no name; PaddlePaddle writes -1 for that."""
    kind = dim.WhichOneof("value")
    return kind is None or (kind == "dim_value" and dim.dim_value < 0) or (kind == "dim_param" and not dim.dim_param)
