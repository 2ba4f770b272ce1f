"""Where the result must run: an execution provider, its processor, and what it loads.

``Target.of("cpu")`` -> provider CPUExecutionProvider, threads, the processor, QuantizationStyle.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from onnxcomp.errors import TargetError
from onnxcomp.graph.integers.style import QuantizationStyle
from onnxcomp.target.processors import fitted_to, processor
from onnxcomp.target.styles import ASYMMETRIC, STYLES
from onnxcomp.target.versions import supported

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from onnxcomp.runtime import ModelSource, Session

# Short name -> ONNX Runtime's name.
PROVIDERS: Mapping[str, str] = {
    "cpu": "CPUExecutionProvider",
    "cuda": "CUDAExecutionProvider",
    "tensorrt": "TensorrtExecutionProvider",
    "nvtensorrt": "NvTensorRTRTXExecutionProvider",
    "rocm": "ROCMExecutionProvider",
    "migraphx": "MIGraphXExecutionProvider",
    "openvino": "OpenVINOExecutionProvider",
    "dnnl": "DnnlExecutionProvider",
    "vitisai": "VitisAIExecutionProvider",
    "qnn": "QNNExecutionProvider",
    "nnapi": "NnapiExecutionProvider",
    "coreml": "CoreMLExecutionProvider",
    "dml": "DmlExecutionProvider",
    "xnnpack": "XnnpackExecutionProvider",
    "webgpu": "WebGpuExecutionProvider",
    "webnn": "WebNNExecutionProvider",
    "acl": "ACLExecutionProvider",
    "cann": "CANNExecutionProvider",
    "rknpu": "RknpuExecutionProvider",
    "js": "JsExecutionProvider",
    "azure": "AzureExecutionProvider",
}

# Providers with threads of their own, which ONNX Runtime's number does not bind, and their option for it.
THREAD_OPTIONS: Mapping[str, str] = {
    "openvino": "num_of_threads",  # https://onnxruntime.ai/docs/execution-providers/OpenVINO-ExecutionProvider.html
}


@dataclass(frozen=True, kw_only=True)
class Target:
    """Where the result must run: everything that verification and quantization ask about a provider.

    name: the short name (``cpu``), or ONNX Runtime's own where there is no short one.
    provider: ONNX Runtime's name. threads: intra-op threads of every session opened here.
    cpu: the processor that the model is made for, "" on other providers.
    min_ort: the oldest ONNX Runtime that must load the result; None means the installed one.
    optimization: of graphs, as in ``Session``; all but for what is opened once and hardly run.
    """

    name: str
    provider: str
    style: QuantizationStyle
    threads: int = 1
    provider_options: Mapping[str, str] = field(default_factory=dict)
    custom_ops: tuple[Path, ...] = ()
    cpu: str = ""
    min_ort: tuple[int, int] | None = None
    optimization: str = "all"

    @classmethod
    def of(
        cls,
        name: str = "cpu",
        *,
        threads: int = 1,
        provider_options: Mapping[str, str] | None = None,
        custom_ops: tuple[Path, ...] = (),
        cpu: str | None = None,
        min_ort: tuple[int, int] | None = None,
    ) -> Target:
        """The target called ``name``: short (cpu, cuda, openvino, ...) or ONNX Runtime's own name.

        cpu: a processor's name (vnni, avx2, neon-dotprod, ...) where it is not this machine's own.
        Raises TargetError, listing what is installed, when this ONNX Runtime does not have the provider, and
        ParameterError for a processor that is not known.
        """
        from onnxcomp.runtime import available_providers

        short, provider, style = _resolve(name)
        chosen = processor(cpu)
        installed = available_providers()
        if provider not in installed:
            names = ", ".join(_short_name(item) for item in installed)
            raise TargetError(f"execution provider {name!r} is not installed; installed are: {names}")
        return cls(
            name=short,
            provider=provider,
            style=fitted_to(style, chosen),
            threads=threads,
            provider_options=_with_threads(short, threads, provider_options or {}),
            custom_ops=custom_ops,
            cpu=chosen.name if style.on_processor else "",
            min_ort=min_ort,
        )

    def session(
        self,
        model: ModelSource,
        *,
        config: Mapping[str, str] | None = None,
        initializers: Mapping[str, NDArray[Any]] | None = None,
        frugal: bool = False,
    ) -> Session:
        """``model`` open on this target; initializers, frugal: as in ``Session``. Raises TargetError."""
        from onnxcomp.runtime import Session

        return Session(
            model,
            provider=self.provider,
            provider_options=self.provider_options,
            threads=self.threads,
            optimization=self.optimization,
            config=config,
            custom_ops=self.custom_ops,
            initializers=initializers,
            frugal=frugal,
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


def _with_threads(name: str, threads: int, options: Mapping[str, str]) -> dict[str, str]:
    """The provider's options, with the number of threads where it wants to be told and was not."""
    if name not in THREAD_OPTIONS or threads < 1:
        return dict(options)
    return {THREAD_OPTIONS[name]: str(threads), **options}


def _resolve(name: str) -> tuple[str, str, QuantizationStyle]:
    wanted = name.lower()
    for short, provider in PROVIDERS.items():
        if wanted in (short, provider.lower()):
            return short, provider, STYLES[short]
    return name, name, ASYMMETRIC


def _short_name(provider: str) -> str:
    return next((short for short, known in PROVIDERS.items() if known == provider), provider)
