"""ONNX Runtime behind one door: model bytes or a file and named arrays in, named arrays out.

Nothing outside this package imports onnxruntime. Its errors leave here as one-line TargetError (a model
that does not load) or VerificationError (a model that does not run).
"""

from onnxcomp.model_source import ModelSource
from onnxcomp.runtime.isolated import IsolatedRun, Load, measure_apart, measure_load, measure_loads, run_isolated
from onnxcomp.runtime.measure import Latency, measure_latency
from onnxcomp.runtime.optimized import optimized
from onnxcomp.runtime.peaks import IntegerGain, MachinePeaks, measure_gains, measure_peaks
from onnxcomp.runtime.profile import ExecutedNode, profile_kernels, profile_nodes, profile_operators
from onnxcomp.runtime.session import (
    Feeds,
    Session,
    Value,
    ValueSpec,
    available_providers,
    evaluate,
    installed_release,
    installed_version,
    known_providers,
    loads,
    one_line,
)

__all__ = [
    "ExecutedNode",
    "Feeds",
    "IntegerGain",
    "IsolatedRun",
    "Latency",
    "Load",
    "MachinePeaks",
    "ModelSource",
    "Session",
    "Value",
    "ValueSpec",
    "available_providers",
    "evaluate",
    "installed_release",
    "installed_version",
    "known_providers",
    "loads",
    "measure_apart",
    "measure_gains",
    "measure_latency",
    "measure_load",
    "measure_loads",
    "measure_peaks",
    "one_line",
    "optimized",
    "profile_kernels",
    "profile_nodes",
    "profile_operators",
    "run_isolated",
]
