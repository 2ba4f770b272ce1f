"""From what was counted to a verdict: the worst of all counts, held against the limit."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from onnxcomp.numerics import metrics
from onnxcomp.numerics.metrics import Floats
from onnxcomp.verify.comparison import ComparedBatches
from onnxcomp.verify.evidence import Evidence
from onnxcomp.verify.limits import DEFAULT_MAX_DIVERGENCE
from onnxcomp.verify.verdict import OutputDivergence, Verdict, failure, over_beside

Held = tuple[float, float] | None
"""The worst divergence and its limit, where samples are too few to count by."""


@dataclass(frozen=True)
class Ruling:
    """What counts are held against. original_score: of labels or of the user's own function, None for a divergence."""

    metric: str
    limit: float
    samples: int
    evidence: Evidence
    original_score: float | None

    def failed(self, reason: str) -> Verdict:
        """The verdict on a model that cannot be compared."""
        return failure(reason, limit=self.limit, samples=self.samples)

    def of_divergences(self, comparison: ComparedBatches, held: Held) -> Verdict:
        """The verdict by the worst of all outputs and measures."""
        found, affected = comparison.divergences()
        worst = _worst(found)
        return Verdict(
            divergence=worst.value if worst else 0.0,
            interval=(worst.low, worst.high) if worst else (0.0, 0.0),
            limit=self.limit,
            samples=self.samples,
            reasons=(*self._over(worst), *over_beside(held)),
            agreement=comparison.agreement,
            outputs=tuple(found),
            verified=self.evidence.is_enough,
            beside=held,
            affected_share=affected,
        )

    def of_labels(self, changes: Floats, comparison: ComparedBatches, held: Held) -> Verdict:
        """changes: (samples,) 1 where the candidate alone is wrong, -1 where it alone is right."""
        lost, won = int((changes > 0).sum()), int((changes < 0).sum())
        got = metrics.drop(lost, won, len(changes), distinct=self.evidence.distinct)
        assert self.original_score is not None
        verdict = self._of_drop(got.value, (got.low, got.high), self.original_score - got.value)
        reasons = (*verdict.reasons, *over_beside(held))
        return dataclasses.replace(verdict, agreement=comparison.agreement, beside=held, reasons=reasons)

    def of_score(self, score: float) -> Verdict:
        """The verdict by the user's own score."""
        assert self.original_score is not None
        if not np.isfinite(score):
            return self.failed(f"{self.metric} gave {score}")
        drop = self.original_score - score
        return self._of_drop(drop, (drop, drop), score)

    def with_own_states(self, verdict: Verdict, divergences: Sequence[OutputDivergence]) -> Verdict:
        """A verdict that passed, with what the model does on its own states: the worse of both counts."""
        worst = _worst(divergences)
        if worst is None:
            return verdict
        if self.metric != "divergence":
            held = max(verdict.beside or (0.0, DEFAULT_MAX_DIVERGENCE), (worst.value, DEFAULT_MAX_DIVERGENCE))
            return dataclasses.replace(verdict, beside=held, reasons=over_beside(held, "on its own states"))
        outputs = (*verdict.outputs, *divergences)
        if worst.value <= verdict.divergence:
            return dataclasses.replace(verdict, outputs=outputs)
        interval = (worst.low, worst.high)
        return dataclasses.replace(
            verdict, divergence=worst.value, interval=interval, outputs=outputs, reasons=self._over(worst)
        )

    def _over(self, worst: OutputDivergence | None) -> tuple[str, ...]:
        return () if worst is None or worst.value <= self.limit else (worst.over(self.limit, self.metric),)

    def _of_drop(self, drop: float, interval: tuple[float, float], score: float) -> Verdict:
        text = f"{self.metric} fell from {self.original_score:.4g} to {score:.4g}, allowed {self.limit:.3g}"
        return Verdict(
            divergence=drop,
            interval=interval,
            limit=self.limit,
            samples=self.samples,
            reasons=() if drop <= self.limit else (text,),
            score=score,
            original_score=self.original_score,
            verified=bool(self.samples),
        )


def _worst(found: Sequence[OutputDivergence]) -> OutputDivergence | None:
    return max(found, key=lambda each: each.value, default=None)
