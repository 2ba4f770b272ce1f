"""Is a rewritten model as good as the original? Asked on the target, of samples that calibration never saw."""

from onnxcomp.verify.evidence import Evidence
from onnxcomp.verify.limits import DEFAULT_MAX_DIVERGENCE
from onnxcomp.verify.trials import ValueTrials
from onnxcomp.verify.verdict import OutputDivergence, Verdict
from onnxcomp.verify.verifier import Verifier

__all__ = ["DEFAULT_MAX_DIVERGENCE", "Evidence", "OutputDivergence", "ValueTrials", "Verdict", "Verifier"]
