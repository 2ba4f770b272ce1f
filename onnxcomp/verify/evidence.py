"""What the data can show of a model: how many samples differ, and which outputs say anything on them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

LEAST_DISTINCT = 2


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
