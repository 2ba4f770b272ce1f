"""A folder as model servers want it: python model_repository.py small.onnx models NAME [VERSION]

    models/NAME/VERSION/model.onnx     Triton, OpenVINO Model Server, onnxruntime-server
    models/NAME/config.pbtxt           Triton: inputs and outputs, read from the model

External data go along under the names that the model refers to.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import onnx
from onnx import TensorProto
from onnx.external_data_helper import ExternalDataInfo, uses_external_data

TYPES = {
    TensorProto.FLOAT: "TYPE_FP32", TensorProto.FLOAT16: "TYPE_FP16", TensorProto.DOUBLE: "TYPE_FP64",
    TensorProto.INT8: "TYPE_INT8", TensorProto.INT16: "TYPE_INT16", TensorProto.INT32: "TYPE_INT32",
    TensorProto.INT64: "TYPE_INT64", TensorProto.UINT8: "TYPE_UINT8", TensorProto.UINT16: "TYPE_UINT16",
    TensorProto.UINT32: "TYPE_UINT32", TensorProto.UINT64: "TYPE_UINT64", TensorProto.BOOL: "TYPE_BOOL",
    TensorProto.STRING: "TYPE_STRING",
}  # fmt: skip


def make_repository(model: Path, root: Path, name: str, version: int = 1) -> Path:
    """Write the folder; gives the path of the model in it."""
    proto = onnx.load(model, load_external_data=False)
    target = root / name / str(version) / "model.onnx"
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(model, target)
    tensors = [each for each in proto.graph.initializer if uses_external_data(each)]
    for location in {ExternalDataInfo(each).location for each in tensors}:
        shutil.copyfile(model.parent / location, target.parent / location)
    (root / name / "config.pbtxt").write_text(triton_config(proto, name), encoding="utf-8")
    return target


def triton_config(proto: onnx.ModelProto, name: str) -> str:
    """Triton's config.pbtxt. Shapes are given whole (max_batch_size 0), with -1 for what is open."""
    weights = {each.name for each in proto.graph.initializer}
    parts = [f'name: "{name}"\nbackend: "onnxruntime"\nmax_batch_size: 0']
    for key, values in (("input", proto.graph.input), ("output", proto.graph.output)):
        for each in values:
            if each.name not in weights:
                parts.append(f"{key} [ {_value(each)} ]")
    return "\n".join(parts) + "\n"


def _value(value: onnx.ValueInfoProto) -> str:
    tensor = value.type.tensor_type
    dims = [dim.dim_value if dim.HasField("dim_value") else -1 for dim in tensor.shape.dim]
    return f'{{ name: "{value.name}" data_type: {TYPES[tensor.elem_type]} dims: [ {", ".join(map(str, dims))} ] }}'


if __name__ == "__main__":
    print(make_repository(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3], *map(int, sys.argv[4:5])))
