"""What a run may conclude from its data: whether anything is compared, and on how many distinct samples."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from onnxcomp.budget import Drop
from onnxcomp.calibration import CalibrationData
from onnxcomp.contract import Needs
from onnxcomp.errors import CalibrationError
from onnxcomp.pipeline.reach import FEW_SAMPLES, WANTED_SAMPLES
from onnxcomp.recipe import Recipe
from onnxcomp.verify import Verifier
from onnxcomp.verify.verifier import BREAKAGE_DIVERGENCE


@dataclass(frozen=True)
class Grounds:
    """is_enough: some outputs are compared, on samples that differ; else the run goes on as without data.
    are_few: so few samples differ that no weight may go far beyond what is safe without data."""

    is_enough: bool
    are_few: bool = False
    notes: list[str] = field(default_factory=list)

    @classmethod
    def of(cls, verifier: Verifier, data: CalibrationData) -> Grounds:
        """By what the verifier found. Random inputs license nothing in any case, which is said elsewhere."""
        evidence = getattr(verifier, "evidence", None)
        if data.is_random:
            return cls(is_enough=False)
        if evidence is not None and not evidence.is_enough and ":" not in verifier.metric:
            return cls(is_enough=False, notes=[f"not verified: {_why(evidence)}; {AS_WITHOUT}"])
        distinct = int(getattr(data, "distinct_count", data.sample_count))
        if distinct > FEW_SAMPLES:
            return cls(is_enough=True)
        note = f"{distinct} distinct samples license little more than none: at least {WANTED_SAMPLES} are wanted"
        return cls(is_enough=True, are_few=True, notes=[note])

    def for_breakage(self, verifier: Verifier, recipe: Recipe, options: dict[str, Any]) -> Verifier:
        """A verifier that looks for breakage only. Raises CalibrationError where a step cannot do without data."""
        if verifier.data.is_random:
            return verifier
        for step in recipe.steps:
            needy = not step.trials and any(each.needed() is Needs.CALIBRATION for each in step.rewrites)
            if needy:
                raise CalibrationError(f"{step.name}: needs calibration data that show something. {self.notes[0]}.")
        metric = "divergence" if verifier.metric in COUNTED else verifier.metric
        return Verifier(
            verifier.original, verifier.data, **options | {"metric": metric, "max_drop": Drop(BREAKAGE_DIVERGENCE)}
        )


AS_WITHOUT = "only what is safe without data was done"
COUNTED = ("accuracy", "top1")


def _why(evidence: Any) -> str:
    """Why there is nothing to go by."""
    if not evidence.compared:
        silent = "; ".join(f"output {name} shows nothing ({why})" for name, why in evidence.silent.items())
        return silent or "no output can be compared"
    return "all samples are the same" if evidence.distinct == 1 else "there are no samples"
