"""Is a rewritten model as good as the original? Asked on the target, of samples that calibration never saw."""

from onnxcomp.verify.verdict import OutputDivergence, Verdict
from onnxcomp.verify.verifier import DEFAULT_MAX_DIVERGENCE, Verifier

__all__ = ["DEFAULT_MAX_DIVERGENCE", "OutputDivergence", "Verdict", "Verifier"]
