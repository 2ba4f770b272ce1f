"""What a run may conclude from its data: whether anything is compared, and on how many distinct samples."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from onnxcomp.budget import Drop
from onnxcomp.calibration import CalibrationData
from onnxcomp.errors import CalibrationError
from onnxcomp.pipeline.safety.reach import FEW_SAMPLES, WANTED_SAMPLES
from onnxcomp.recipe import Recipe
from onnxcomp.verify import Verifier
from onnxcomp.verify.limits import BREAKAGE_DIVERGENCE

AS_WITHOUT = "only what is safe without data was done"


@dataclass(frozen=True)
class Grounds:
    """is_enough: some outputs are compared, on samples that differ; else the run goes on as without data.
    are_few: so few samples differ that no weight may go far beyond what is safe without data."""

    is_enough: bool
    are_few: bool = False
    notes: list[str] = field(default_factory=list)

    @classmethod
    def of(cls, verifier: Verifier, data: CalibrationData, recipe: Recipe) -> Grounds:
        """By what the verifier found. Random inputs license nothing in any case, which is said elsewhere, but for what
        the recipe would have tried with data; a score of the user's is measured on data of its own."""
        if data.is_random:
            waiting = ", ".join(recipe.waits_for_data())
            notes = [f"not tried without calibration data ({WANTED_SAMPLES} samples or more): {waiting}"]
            return cls(is_enough=False, notes=notes if waiting else [])
        if not verifier.evidence.is_enough and ":" not in verifier.metric:
            return cls(is_enough=False, notes=[f"not verified: {verifier.evidence.lack}; {AS_WITHOUT}"])
        if data.distinct_count > FEW_SAMPLES:
            return cls(is_enough=True)
        said = f"{data.distinct_count} distinct samples license little more than none"
        return cls(is_enough=True, are_few=True, notes=[f"{said}: at least {WANTED_SAMPLES} are wanted"])

    def for_breakage(self, verifier: Verifier, recipe: Recipe, options: dict[str, Any]) -> Verifier:
        """A verifier that looks for breakage only. Raises CalibrationError where a step cannot do without data."""
        if verifier.data.is_random:
            return verifier
        for step in recipe.needy():
            raise CalibrationError(f"{step.name}: needs calibration data that show something. {self.notes[0]}.")
        # What does not vary from sample to sample has no spread to hold errors against, but a size.
        limits = {"metric": "sqnr", "max_drop": Drop(BREAKAGE_DIVERGENCE)}
        return Verifier(verifier.original, verifier.data, **options | limits)
