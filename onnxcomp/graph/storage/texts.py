"""Doc strings and metadata: which of them inference reads, which are the user's, and how many bytes the others are."""

from __future__ import annotations

import fnmatch
from collections.abc import Callable
from typing import Any

from onnx import ModelProto

# Read by ONNX Runtime when it opens a session, so never taken out.
RUNTIME_KEYS = ("ort*", "onnxruntime*", "session.*", "layer_ann*")
# Written by ONNX Runtime's tools into the model itself, where all other entries are the user's. Exporters write theirs
# on graphs, functions, nodes and tensors.
TOOL_KEYS = frozenset({"onnx.infer", "onnx.quant.pre_process"})
HOLDERS = frozenset({
    "GraphProto", "NodeProto", "AttributeProto", "TensorProto", "SparseTensorProto", "ValueInfoProto", "FunctionProto",
})  # fmt: skip


def is_read(key: str) -> bool:
    """Whether inference reads metadata under this key, wherever it stands."""
    return any(fnmatch.fnmatchcase(key, pattern) for pattern in RUNTIME_KEYS)


def is_users(key: str) -> bool:
    """Whether an entry of the model's own metadata stays: all but what is known to be a tool's."""
    return is_read(key) or key not in TOOL_KEYS


def text_bytes(proto: ModelProto) -> int:
    """Bytes of doc strings, and of metadata that neither inference reads nor the user wrote into the model."""
    return _bytes(proto, is_users)


def _bytes(message: Any, stays: Callable[[str], bool]) -> int:
    total = 0
    for field, value in message.ListFields():
        if field.name == "doc_string":
            total += _framed(len(value.encode()))
        elif field.name == "metadata_props":
            total += sum(_framed(each.ByteSize()) for each in value if not stays(each.key))
        elif field.message_type is not None and field.message_type.name in HOLDERS:
            total += sum(_bytes(each, is_read) for each in (value if field.is_repeated else (value,)))
    return total


def _framed(size: int) -> int:
    """The bytes of a field of this length with its tag and its length."""
    return 1 + max(1, -(-size.bit_length() // 7)) + size
