"""Named inputs for calibration and verification, streamed from files, functions or a seed."""

from onnxcomp.calibration.data.calibration_data import Batch, CalibrationData
from onnxcomp.calibration.data.groups import Group
from onnxcomp.calibration.data.sample_axes import Cut, find_cut
from onnxcomp.calibration.data.sequences import Sequences

__all__ = ["Batch", "CalibrationData", "Cut", "Group", "Sequences", "find_cut"]
