"""What memory a training step takes, known before it starts: activations and their gradients, weights and theirs."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import ModelProto, helper
from onnx.shape_inference import InferenceError, infer_shapes

from onnxcomp.errors import PassError
from onnxcomp.room import MB

KEPT_OF_ACTIVATIONS = 2.5  # every tensor, its gradient, and what products need beside them
KEPT_OF_PARAMETERS = 7.0  # values, their copy in the engine, gradient, two moments, the best, the best's copy
KNOWN_FREE = Path("/proc/meminfo")
SHARE_OF_FREE = 0.8
WITHOUT_DATA_BYTES = 2**31 - 2**24


class StepTooLargeError(PassError):
    """A training step that does not fit in memory, with the batch that would."""


def activation_bytes(proto: ModelProto, feeds: Mapping[str, Any]) -> int:
    """Bytes of all tensors that a run with these feeds computes, as far as their shapes are known."""
    if proto.ByteSize() >= WITHOUT_DATA_BYTES:
        return 0
    stated = ModelProto()
    stated.CopyFrom(proto)
    for each in stated.graph.input:
        if each.name in feeds:
            array = np.asarray(feeds[each.name])
            kind = helper.np_dtype_to_tensor_dtype(array.dtype)
            each.CopyFrom(helper.make_tensor_value_info(each.name, kind, array.shape))
    del stated.graph.value_info[:]
    try:
        inferred = infer_shapes(stated, data_prop=True)
    except InferenceError:
        return 0
    return sum(_bytes(each) for each in inferred.graph.value_info)


def step_bytes(activations: int, parameters: int) -> int:
    """Of a step. parameters: how many numbers are trained."""
    return int(KEPT_OF_ACTIVATIONS * activations + KEPT_OF_PARAMETERS * 4 * parameters)


def free_bytes() -> float:
    """Memory that can be had now; infinite where the system does not say."""
    try:
        lines = dict(line.split(":", 1) for line in KNOWN_FREE.read_text().splitlines() if ":" in line)
        return float(lines["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError, ValueError, IndexError):
        pages = "SC_AVPHYS_PAGES"
        return float(os.sysconf(pages) * os.sysconf("SC_PAGE_SIZE")) if pages in os.sysconf_names else math.inf


def refuse_large_step(name: str, needed: int, fixed: int, count: int, free: float | None = None) -> None:
    """Raise StepTooLargeError where a step of ``count`` samples does not fit. fixed: of the bytes needed what does not
    depend on the samples."""
    room = SHARE_OF_FREE * (free_bytes() if free is None else free)
    if needed <= room:
        return
    fits = int((room - fixed) / max(1.0, (needed - fixed) / count))
    helps = f"a batch of {fits} would fit (run_size={fits})" if fits >= 1 else "no batch fits"
    raise StepTooLargeError(
        f"{name}: a training step of {count} samples at once needs about {needed / MB:,.0f} MB and "
        f"{room / MB:,.0f} MB can be had: {helps}."
    )


def _bytes(info: onnx.ValueInfoProto) -> int:
    tensor = info.type.tensor_type
    sizes = [dim.dim_value for dim in tensor.shape.dim]
    if not tensor.HasField("shape") or not tensor.elem_type or not all(sizes):
        return 0
    return math.prod(sizes) * np.dtype(helper.tensor_dtype_to_np_dtype(tensor.elem_type)).itemsize
