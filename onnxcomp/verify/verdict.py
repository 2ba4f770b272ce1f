"""What came out of one verification."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from onnxcomp import formats

PARTS = ("class by class", "class balance", "worst channel", "samples")
PART_FACTOR = 1.4
MOST_SAMPLES = 10**6  # what takes more to tell is not told


@dataclass(frozen=True)
class OutputDivergence:
    """One output's divergence by one measure, with its 95% interval; kind: what the output was taken for.
    is_squared: the value is the root of what grows with the squared error."""

    name: str
    kind: str
    measure: str
    value: float
    low: float
    high: float
    is_squared: bool = False

    @property
    def is_of_parts(self) -> bool:
        """Whether classes, channels or samples are looked at one by one."""
        return any(part in self.measure for part in PARTS)

    def over(self, limit: float, metric: str) -> str:
        """That it is over the limit, in the metric's unit."""
        what = f"output {self.name} ({self.kind}, by {self.measure})"
        if metric == "sqnr":
            return f"{what}: signal to noise {formats.decibels(self.value)} is under {formats.decibels(limit)}"
        return f"{what}: {metric} {self.value:.3g} is over {limit:.3g}"


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """Whether a model may stand for the original.

    verified: False where nothing was compared: then ``passed`` only says that nothing broke.
    divergence: of the worst output, in the metric's unit; with labels or a score of the user's, the drop.
    interval: its 95% confidence interval over samples (equal ends where there is one number only).
    failed: a NaN, a changed input or output, a model that does not load or run: no budget allows it.
    reasons: why it did not pass; empty when it did. agreement: share of samples with the same winning
    class, None where no output has classes; it is reported, not budgeted.
    beside: where the metric counts samples and these are few: the divergence of the outputs and its limit, held too.
    affected_share: (sum d)^2 / (n sum d^2) of the worst lens' numbers d: 1 where all samples bear the divergence alike,
    1/n where one bears all of it.
    unseen: weights that no sample reaches and that changed by more than is safe without data.
    """

    divergence: float
    interval: tuple[float, float]
    limit: float
    samples: int
    failed: bool = False
    reasons: tuple[str, ...] = ()
    agreement: float | None = None
    outputs: tuple[OutputDivergence, ...] = ()
    score: float | None = None
    original_score: float | None = None
    verified: bool = True
    beside: tuple[float, float] | None = None
    affected_share: float | None = None
    unseen: tuple[str, ...] = ()

    @property
    def passed(self) -> bool:
        """Whether nothing failed and the divergence is within the limit."""
        is_held = self.beside is None or self.beside[0] <= self.beside[1]
        return not self.failed and self.divergence <= self.limit and is_held and not self.unseen

    def in_words(self) -> str:
        """``holds, divergence 0.011 of 0.03``, for logs."""
        if self.failed:
            return f"fails: {'; '.join(self.reasons)}"
        return f"{'holds' if self.passed else 'is over'}, divergence {self.divergence:.3g} of {self.limit:.3g}"

    @property
    def passed_safely(self) -> bool:
        """Whether the whole 95% interval of every measure is within the limit.

        A search takes the strongest of many results that pass, and so the luckiest; a single one is decided on the
        estimate.
        """
        return self.passed and self.safe_divergence <= self.limit

    @property
    def safe_divergence(self) -> float:
        """The highest end of the measures' 95% intervals: one that rests on few samples may be worse than the one that
        is worst by its estimate.

        What is the worst of several parts (a class, a channel, a share of the samples) was picked by chance, too, and
        is counted 1.4 times.
        """
        ends = [each.high for each in self.outputs]
        ends += [PART_FACTOR * each.value for each in self.outputs if each.is_of_parts]
        return max([self.interval[1], *ends])

    @property
    def quadratic_divergence(self) -> float:
        """The divergence as a quantity that grows with the squared error near the original, at most ``limit``
        where it passes: a root of a divergence squared again, and what is held beside a count in the limit's unit.
        Searches add it up; infinite for a failure."""
        if self.failed or not self.limit or not math.isfinite(self.limit):
            return math.inf if self.failed else self.divergence
        shares = [(each.value / self.limit) ** (2 if each.is_squared else 1) for each in self.outputs]
        held = 0.0 if self.beside is None else self.beside[0] / self.beside[1]
        return max(held, max(shares, default=self.divergence / self.limit)) * self.limit

    @property
    def resolution(self) -> float:
        """Half the interval: differences smaller than this cannot be told with so many samples."""
        return (self.interval[1] - self.interval[0]) / 2

    @property
    def samples_that_tell(self) -> int | None:
        """About how many samples would put the whole interval on one side of the limit, as widths go down with their
        root; None where these do, or the value is the limit itself."""
        low, high = self.interval
        if self.failed or not math.isfinite(self.limit) or not low <= self.limit < high:
            return None
        margin = abs(self.limit - self.divergence)
        width = high - self.divergence if self.divergence <= self.limit else self.divergence - low
        wanted = self.samples * (width / margin) ** 2 if margin else math.inf
        return math.ceil(wanted) if wanted < MOST_SAMPLES else None

    @property
    def doubt(self) -> str:
        """That the samples are too few to tell on which side of the limit the model is, "" where they are not."""
        wanted = self.samples_that_tell
        if wanted is None or wanted <= self.samples:
            return ""
        low, high = self.interval
        return (
            f"{self.samples:,} samples leave the error between {low:.3g} and {high:.3g}, on both sides of the limit: "
            f"about {float(f'{wanted:.2g}'):,.0f} can tell"
        )

    def describe(self) -> dict[str, Any]:
        """The verdict as plain values for receipts and ``--json``; None for what is not finite."""

        def finite(value: float | None) -> float | None:
            return value if value is not None and math.isfinite(value) else None

        return {
            "passed": self.passed,
            "verified": self.verified,
            "divergence": finite(self.divergence) if self.verified else None,
            "interval": [finite(end) if self.verified else None for end in self.interval],
            "limit": finite(self.limit),
            "samples": self.samples,
            "resolution": finite(self.resolution) if self.verified else None,
            "agreement": finite(self.agreement),
            "score": finite(self.score),
            "original_score": finite(self.original_score),
            "beside": None if self.beside is None else [finite(each) for each in self.beside],
            "reasons": list(self.reasons),
            "outputs": self._outputs(),
        }

    def _outputs(self) -> dict[str, Any]:
        """By output: what it was taken for, the worst measure and its value, and all of them."""
        found: dict[str, Any] = {}
        for each in sorted(self.outputs, key=lambda one: -one.value):
            value = each.value if math.isfinite(each.value) else None
            own = found.setdefault(each.name, {"kind": each.kind, "measure": each.measure, "divergence": value})
            own.setdefault("measures", {}).setdefault(each.measure, value)
        return found


def failure(reason: str, *, limit: float, samples: int) -> Verdict:
    """The verdict on a model that fails whatever the budget."""
    return Verdict(
        divergence=math.inf,
        interval=(math.inf, math.inf),
        limit=limit,
        samples=samples,
        failed=True,
        reasons=(reason,),
    )


def over_beside(held: tuple[float, float] | None, why: str = "too few samples to count by, and") -> tuple[str, ...]:
    """Why what is held beside a count does not hold; nothing where it does."""
    if held is None or held[0] <= held[1]:
        return ()
    return (f"{why} the divergence of the outputs, {held[0]:.3g}, is over {held[1]:.3g}",)
