"""Which float types shorter than float32 each execution provider computes in.

On CPU it was measured: ONNX Runtime (1.32, x86) puts Casts around every operator and computes in float32. The
others are what is written of them, for a session with default options. None of them was run here, and that a type is
computed in does not say how much faster it is. A provider that is not listed is taken to store short floats only.

    cuda, dml           https://github.com/microsoft/onnxruntime/blob/main/docs/OperatorKernels.md: float16 nearly
                        everywhere; bfloat16 in cuda's MatMul, Gemm, elementwise operators and, from opset 22, Conv
    rocm                cuda's kernels: https://github.com/microsoft/onnxruntime/issues/13262
    tensorrt            https://github.com/microsoft/onnxruntime/pull/24915: bfloat16 wants compute capability 8
    nvtensorrt          https://github.com/microsoft/onnxruntime/pull/24743
    migraphx            https://github.com/ROCm/onnxruntime/pull/117: bfloat16 from MIGraphX 2.9 on
    qnn                 enable_htp_fp16_precision is on by default: float32 models are computed in float16, too
    cann                precision_mode: what can be computed in either type is computed in float16
    webgpu, js, webnn   the types that their kernels are registered with; wants a device with shader-f16

coreml is not listed. Only its ML Programs take float16 (https://github.com/microsoft/onnxruntime/pull/22068), and by
default it makes a neural network, which leaves every node in float16 to the CPU.
"""

from __future__ import annotations

from collections.abc import Mapping

BOTH = frozenset({"float16", "bfloat16"})
HALF = frozenset({"float16"})

COMPUTED: Mapping[str, frozenset[str]] = {
    "cuda": BOTH,
    "tensorrt": BOTH,
    "nvtensorrt": BOTH,
    "rocm": BOTH,
    "migraphx": BOTH,
    "dml": HALF,
    "qnn": HALF,
    "webgpu": HALF,
    "webnn": HALF,
    "js": HALF,
    "cann": HALF,
}


def computes_in(name: str, dtype: str) -> bool:
    """Whether the provider of this short name computes in the type."""
    return dtype in COMPUTED.get(name, frozenset())
