"""Execution providers: what this machine has, what it loads, and which quantization it runs fast.

``Target.of("cpu")`` -> provider CPUExecutionProvider, threads, processor features, QuantizationStyle.
"""

from __future__ import annotations

import functools
import platform
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from onnxcomp.errors import ParameterError, TargetError

if TYPE_CHECKING:
    from onnxcomp.runtime import ModelSource, Session


@dataclass(frozen=True, kw_only=True)
class QuantizationStyle:
    """The integer arithmetic that a provider has fast kernels for.

    ``activation`` and ``weight`` are element types; symmetric means a zero point in the middle of the
    range. ``reduce_range`` keeps weights to 7 bits where the processor's 16-bit sums would saturate.
    ``fast_integer`` is False where integers are only stored and float16 is what runs fast.
    """

    activation: str = "uint8"
    activation_symmetric: bool = False
    weight: str = "int8"
    weight_symmetric: bool = True
    per_channel: bool = True
    reduce_range: bool = False
    fast_integer: bool = True


ASYMMETRIC = QuantizationStyle()
SYMMETRIC = QuantizationStyle(activation="int8", activation_symmetric=True)

# Short name -> ONNX Runtime's name and its style. The CPU row was measured (uint8 asymmetric activations and
# int8 weights per channel run ResNet-18 in 0.285 of float32's time, int8 x int8 in 0.76 to 0.80); the others
# say what each provider is known for; they were neither measured nor checked against its documentation.
PROVIDERS: Mapping[str, tuple[str, QuantizationStyle]] = {
    "cpu": ("CPUExecutionProvider", ASYMMETRIC),
    "cuda": ("CUDAExecutionProvider", replace(SYMMETRIC, fast_integer=False)),
    "tensorrt": ("TensorrtExecutionProvider", SYMMETRIC),
    "nvtensorrt": ("NvTensorRTRTXExecutionProvider", SYMMETRIC),
    "rocm": ("ROCMExecutionProvider", replace(SYMMETRIC, fast_integer=False)),
    "migraphx": ("MIGraphXExecutionProvider", SYMMETRIC),
    "openvino": ("OpenVINOExecutionProvider", ASYMMETRIC),
    "dnnl": ("DnnlExecutionProvider", ASYMMETRIC),
    "vitisai": ("VitisAIExecutionProvider", replace(SYMMETRIC, per_channel=False)),
    "qnn": ("QNNExecutionProvider", ASYMMETRIC),
    "nnapi": ("NnapiExecutionProvider", ASYMMETRIC),
    "coreml": ("CoreMLExecutionProvider", replace(ASYMMETRIC, fast_integer=False)),
    "dml": ("DmlExecutionProvider", replace(ASYMMETRIC, per_channel=False)),
    "xnnpack": ("XnnpackExecutionProvider", replace(SYMMETRIC, activation_symmetric=False)),
    "webgpu": ("WebGpuExecutionProvider", replace(ASYMMETRIC, fast_integer=False)),
    "webnn": ("WebNNExecutionProvider", replace(ASYMMETRIC, fast_integer=False)),
    "acl": ("ACLExecutionProvider", SYMMETRIC),
    "cann": ("CANNExecutionProvider", SYMMETRIC),
    "rknpu": ("RknpuExecutionProvider", replace(ASYMMETRIC, per_channel=False)),
    "js": ("JsExecutionProvider", replace(ASYMMETRIC, fast_integer=False)),
    "azure": ("AzureExecutionProvider", ASYMMETRIC),
}

# ONNX Runtime -> highest opset and IR version it loads: the ONNX release that each was built with
# (https://onnxruntime.ai/docs/reference/compatibility.html and that release's own table of versions).
# The installed version is asked instead (`supported`), so a newer one needs no new row here.
VERSIONS: Mapping[tuple[int, int], tuple[int, int]] = {
    (1, 0): (11, 6),
    (1, 2): (12, 7),
    (1, 6): (13, 7),
    (1, 8): (14, 7),
    (1, 9): (15, 8),
    (1, 11): (16, 8),
    (1, 12): (17, 8),
    (1, 14): (18, 8),
    (1, 15): (19, 9),
    (1, 17): (20, 9),
    (1, 18): (21, 10),
    (1, 21): (22, 10),
    (1, 22): (23, 11),
    (1, 24): (25, 13),
}

DOT_PRODUCT_FEATURES = {
    "avx512_vnni": "vnni",
    "avx_vnni": "vnni",
    "asimddp": "dotprod",
    "i8mm": "i8mm",
    "avx512f": "avx512",
    "avx2": "avx2",
    "amx_int8": "amx",
}


@dataclass(frozen=True, kw_only=True)
class Target:
    """Where the result must run: everything that verification and quantization ask about a provider.

    name: the short name (``cpu``), or ONNX Runtime's own where there is no short one.
    provider: ONNX Runtime's name. threads: intra-op threads of every session opened here.
    min_ort: the oldest ONNX Runtime that must load the result; None means the installed one.
    """

    name: str
    provider: str
    style: QuantizationStyle
    threads: int = 1
    provider_options: Mapping[str, str] = field(default_factory=dict)
    custom_ops: tuple[Path, ...] = ()
    min_ort: tuple[int, int] | None = None

    @classmethod
    def of(
        cls,
        name: str = "cpu",
        *,
        threads: int = 1,
        provider_options: Mapping[str, str] | None = None,
        custom_ops: tuple[Path, ...] = (),
        min_ort: tuple[int, int] | None = None,
    ) -> Target:
        """The target called ``name``: short (cpu, cuda, openvino, ...) or ONNX Runtime's own name.

        Raises TargetError, listing what is installed, when this ONNX Runtime does not have it.
        """
        from onnxcomp.runtime import available_providers

        short, provider, style = _resolve(name)
        installed = available_providers()
        if provider not in installed:
            names = ", ".join(_short_name(item) for item in installed)
            raise TargetError(f"execution provider {name!r} is not installed; installed are: {names}")
        if short == "cpu":
            style = cpu_style(processor_features(), platform.machine())
        return cls(
            name=short,
            provider=provider,
            style=style,
            threads=threads,
            provider_options=dict(provider_options or {}),
            custom_ops=custom_ops,
            min_ort=min_ort,
        )

    def session(self, model: ModelSource, *, config: Mapping[str, str] | None = None) -> Session:
        """``model`` open on this target with all graph optimizations on. Raises TargetError."""
        from onnxcomp.runtime import Session

        return Session(
            model,
            provider=self.provider,
            provider_options=self.provider_options,
            threads=self.threads,
            config=config,
            custom_ops=self.custom_ops,
        )

    @property
    def supported_opset(self) -> int:
        """The highest opset (default domain) that this target, and ``min_ort``, load."""
        return min(limit[0] for limit in self._limits())

    @property
    def supported_ir(self) -> int:
        """The highest IR version that this target, and ``min_ort``, load."""
        return min(limit[1] for limit in self._limits())

    def _limits(self) -> list[tuple[int, int]]:
        return [supported(), *([] if self.min_ort is None else [supported(self.min_ort)])]


def supported(version: tuple[int, int] | None = None) -> tuple[int, int]:
    """Highest (opset, IR version) that ONNX Runtime ``version`` loads; the installed one is asked itself.

    Raises ParameterError for a version before 1.0.
    """
    if version is None:
        return _asked()
    rows = [limits for known, limits in VERSIONS.items() if known <= version]
    if not rows:
        raise ParameterError(f"min-ort: must be 1.0 or newer, got {version[0]}.{version[1]}")
    return rows[-1]


def oldest_ort(*, opset: int, ir: int) -> tuple[int, int] | None:
    """The oldest ONNX Runtime in the table that loads this opset and IR version; None if none does."""
    return next((known for known, limits in VERSIONS.items() if limits[0] >= opset and limits[1] >= ir), None)


@functools.cache
def _asked() -> tuple[int, int]:
    """What the installed ONNX Runtime loads, found by opening one-node models of rising versions."""
    from onnx import TensorProto, defs, helper

    from onnxcomp.runtime import loads

    def opens(opset: int, ir: int) -> bool:
        value = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1]) for name in "xy"]
        graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "g", value[:1], value[1:])
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=ir)
        return loads(model.SerializeToString())

    opset = max(n for n in range(7, defs.onnx_opset_version() + 1) if opens(n, 3 if n < 9 else 8))
    newest_ir = helper.VERSION_TABLE[-1][1]
    return opset, max(n for n in range(3, newest_ir + 1) if opens(min(opset, 9), n))


@functools.cache
def processor_features() -> frozenset[str]:
    """What the processor has for integer arithmetic: vnni, amx, avx2, avx512, dotprod, i8mm."""
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        words = set(cpuinfo.read_text(errors="replace").split())
        return frozenset(name for flag, name in DOT_PRODUCT_FEATURES.items() if flag in words)
    # Every Apple processor of the M line has the dot product instructions.
    apple = platform.system() == "Darwin" and platform.machine() == "arm64"
    return frozenset({"dotprod"} if apple else ())


def cpu_style(features: frozenset[str], machine: str) -> QuantizationStyle:
    """The CPU's style: 7-bit weights on x86 without VNNI, where sums of two u8 x s8 products saturate."""
    is_x86 = machine.lower() in ("x86_64", "amd64", "i386", "i686", "x86")
    return replace(ASYMMETRIC, reduce_range=is_x86 and not features & {"vnni", "amx"})


def _resolve(name: str) -> tuple[str, str, QuantizationStyle]:
    wanted = name.lower()
    for short, (provider, style) in PROVIDERS.items():
        if wanted in (short, provider.lower()):
            return short, provider, style
    return name, name, ASYMMETRIC


def _short_name(provider: str) -> str:
    return next((short for short, (known, _) in PROVIDERS.items() if known == provider), provider)
