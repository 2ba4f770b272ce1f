"""Execution providers: what this machine has, what it loads, and which quantization it runs fast."""

from onnxcomp.graph.integers.style import QuantizationStyle
from onnxcomp.target.place import PROVIDERS, Target
from onnxcomp.target.processors import ALIASES, PROCESSORS, Processor, identify, processor
from onnxcomp.target.styles import STYLES
from onnxcomp.target.versions import VERSIONS, oldest_ort, supported

__all__ = [
    "ALIASES", "PROCESSORS", "PROVIDERS", "STYLES", "VERSIONS", "Processor", "QuantizationStyle", "Target",
    "identify", "oldest_ort", "processor", "supported",
]  # fmt: skip
