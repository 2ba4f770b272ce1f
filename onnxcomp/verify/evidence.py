"""What the data can show of a model: how many samples differ, and which outputs say anything on them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

LEAST_DISTINCT = 2
NOT_FEW = 64  # samples, of which some should be hard
WITHOUT_DOUBT = 0.9


@dataclass(frozen=True)
class Evidence:
    """distinct: samples that differ in content. compared: outputs whose comparison means something; silent: the
    others, with the reason ("no values", "constant", "not finite", "a copy of input past.0.key")."""

    distinct: int
    compared: tuple[str, ...]
    silent: Mapping[str, str]

    @property
    def is_enough(self) -> bool:
        """Whether anything can be verified."""
        return self.distinct >= LEAST_DISTINCT and bool(self.compared)

    @property
    def lack(self) -> str:
        """Why nothing can be verified, or ""."""
        if self.is_enough:
            return ""
        if self.compared:
            return "all samples are the same" if self.distinct else "there are no samples"
        said = "; ".join(f"output {name}: {reason}" for name, reason in self.silent.items())
        return f"no output can be compared ({said})" if said else "no output can be compared"

    def describe(self) -> dict[str, Any]:
        """As plain values."""
        return {"distinct": self.distinct, "compared": list(self.compared), "silent": dict(self.silent)}


def lack_of_doubt(least: float | None, distinct: int) -> list[str]:
    """A note where the original is sure of all samples, as it is of those that it was trained on: what a rewrite loses
    shows first where it is not. least: the least probability of a winning class, None where there are no classes."""
    if least is None or least < WITHOUT_DOUBT or distinct < NOT_FEW:
        return []
    return [
        f"the original is sure of all {distinct:,} samples (its least winning probability is {least:.2g}): if it was "
        "trained on them, they hide what is lost on others, and inputs that it has not seen tell more"
    ]
