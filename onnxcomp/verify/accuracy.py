"""Accuracy by the labels of the data: which output they are about, and whether they can be right at all."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from onnxcomp.errors import CalibrationError
from onnxcomp.numerics.metrics import Floats
from onnxcomp.verify.reading.outputs import Outputs
from onnxcomp.verify.reference import samples_first

CHANCE_SAMPLES = 20  # with fewer, chance cannot be told from a bad model
CHANCE_ERRORS = 3.0  # standard errors above chance that a model's accuracy must reach


class Labels:
    """The labels and the output that they are about."""

    def __init__(self, outputs: Outputs, name: str) -> None:
        self.outputs, self.name = outputs, name

    def correct(self, i: int, found: dict[str, NDArray[np.generic]]) -> Floats:
        """(samples,) 1.0 where the output's class in batch ``i`` is the label."""
        return np.asarray(self._winners(found) == self.outputs.layouts[i].labels, dtype=np.float64)

    def original_accuracy(self) -> float:
        """What the original reaches. Raises CalibrationError where that is no better than chance: then the labels are
        not this model's classes, or are shuffled."""
        winners = np.concatenate([self._winners(found) for found in self.outputs.store])
        labels = np.concatenate([np.asarray(layout.labels) for layout in self.outputs.layouts])
        accuracy = float((winners == labels).mean())
        values = np.union1d(winners, labels)
        chance = float(sum((winners == value).mean() * (labels == value).mean() for value in values))
        error = np.sqrt(chance * (1 - chance) / len(labels))
        if len(labels) >= CHANCE_SAMPLES and chance < 0.99 and accuracy <= chance + CHANCE_ERRORS * error:
            raise CalibrationError(
                f"calibration data: the model's {self.name} is right on {accuracy:.1%} of the labels, and by chance on "
                f"{chance:.1%}. Are they shuffled, or of other classes? Leave them out to compare outputs instead."
            )
        return accuracy

    def _winners(self, found: dict[str, NDArray[np.generic]]) -> NDArray[np.generic]:
        array = samples_first(found[self.name], self.outputs.axes[self.name])
        return array if self.outputs.described[self.name].kind == "labels" else array.argmax(axis=1)


def labels_of(outputs: Outputs) -> Labels | str:
    """The labels with the output that they are about, (samples, classes) scores or (samples,) integers; or why there
    is none."""
    for name, output in outputs.described.items():
        ranks = {outputs.samples(name, found[name]).ndim for found in outputs.store}
        is_scores = output.kind in ("classes", "values", "probabilities", "embedding") and ranks == {2}
        if outputs.axes[name] is not None and (is_scores or (output.kind == "labels" and ranks == {1})):
            return Labels(outputs, name)
    return "no output has one class a sample that labels could be compared with: not used"
