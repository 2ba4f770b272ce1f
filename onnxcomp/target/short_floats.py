"""Which float types shorter than float32 each execution provider computes in, faster than in float32.

On CPU it was measured: ONNX Runtime (1.32, x86) puts Casts around every operator and computes in float32. The
others are what their documentation says. A provider that is not listed takes short floats as storage only.
"""

from __future__ import annotations

from collections.abc import Mapping

TENSOR_CORES = frozenset({"float16", "bfloat16"})
HALF = frozenset({"float16"})

COMPUTED: Mapping[str, frozenset[str]] = {
    "cuda": TENSOR_CORES,
    "tensorrt": TENSOR_CORES,
    "nvtensorrt": TENSOR_CORES,
    "rocm": TENSOR_CORES,
    "migraphx": TENSOR_CORES,
    "dml": HALF,
    "coreml": HALF,
    "qnn": HALF,
    "webgpu": HALF,
    "webnn": HALF,
    "js": HALF,
    "cann": HALF,
}


def computes_in(name: str, dtype: str) -> bool:
    """Whether the provider of this short name computes in the type."""
    return dtype in COMPUTED.get(name, frozenset())
