"""Run a recipe on a model: every step applied, checked, verified against the original, kept or taken back.

result = optimize("model.onnx", recipe="small", calibration="calib.npz")
result.save("small.onnx")
"""

from onnxcomp.pipeline.api import optimize
from onnxcomp.pipeline.replay import replay
from onnxcomp.pipeline.result import Result

__all__ = ["Result", "optimize", "replay"]
