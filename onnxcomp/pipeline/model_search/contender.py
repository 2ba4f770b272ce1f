"""One rewrite of the whole model that takes part in a race."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from onnxcomp.contract import Pass
from onnxcomp.model import Model
from onnxcomp.pipeline.history.records import title
from onnxcomp.pipeline.in_turn import InTurn
from onnxcomp.receipt import Tried
from onnxcomp.verify import Verdict


@dataclass
class Contender:
    """One rewrite of the whole model: its passes in turn, the main one perhaps at some of its nodes only."""

    made: InTurn
    verdict: Verdict | None = None
    ratio: float = math.inf
    lost: str = ""

    @property
    def model(self) -> Model:
        """What the passes made."""
        return self.made.model

    def account(self) -> Tried:
        """The trial as the receipt has it."""
        measured = math.isfinite(self.ratio)
        verified = self.verdict is not None and math.isfinite(self.verdict.divergence)
        return Tried(
            name=title(self.made.passes) + ("" if self.made.include is None else f" at {len(self.made.names)} nodes"),
            outcome=self.lost or "kept",
            bytes_after=self.model.size_bytes if measured else None,
            latency_ratio=self.ratio if measured else None,
            divergence=self.verdict.divergence if verified and self.verdict is not None else None,
        )


def ranked(trials: Iterable[Contender]) -> list[Contender]:
    """The fastest first."""
    return sorted(trials, key=lambda each: each.ratio)


def nothing_changed(made: InTurn) -> str:
    """That a pass found nothing to do, with the reason that it gave most often."""
    reasons = [each.reason for each in made.outcomes[-1].skipped] or [each.what for each in made.taken]
    found = Counter(reasons).most_common(1)
    idle = made.passes[len(made.outcomes) - 1].pass_name()
    return f"nothing to do for {idle}" + (f": {found[0][0]}" if found else "")


def main_pass(passes: Sequence[Pass]) -> tuple[int]:
    """The position of the pass that a trial is about: the last that is not exact, else the last."""
    fast = [index for index, each in enumerate(passes) if "latency" in each.effect.shrinks]
    inexact = [index for index in fast if not passes[index].effect.is_exact]
    return ((inexact or fast or [len(passes) - 1])[-1],)


def has_parts(made: InTurn) -> bool:
    """Whether it can be done at some of its nodes only."""
    return len(made.names) > 1 and not made.restore
