"""Named inputs for calibration and verification, streamed from files, functions or a seed."""

from onnxcomp.calibration.data import Batch, CalibrationData
from onnxcomp.calibration.groups import Group
from onnxcomp.calibration.sample_axes import Cut, find_cut
from onnxcomp.calibration.sequences import Sequences

__all__ = ["Batch", "CalibrationData", "Cut", "Group", "Sequences", "find_cut"]
