"""When a run must be through, and when it has to stop searching for that: what its end takes is known by its beginning.

    started ........ steps ........ deadline ... the last checks, storing, measuring, writing ... end

Each kind of work at the end is expected to take what the first of its kind took.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from dataclasses import dataclass, field

from onnxcomp.clock import clock

CHECKS = 3  # of whole models, when the last step has been judged: stored, as a result, and room for a slower one
EXACT_CHECKS = 2  # after the last exact pass: that nothing changed, and as a result
STORING = 1.0  # times what the exact passes before took together: compact storage, and the file
CHILD_START_S = 0.5  # a process that measures, before it opens the model
CHILDREN = 6
LATENCIES_S = 1.0
MEASURED_SHARE = 0.1  # of the budget, at most, is kept for measuring: rather no figures than no search
LEAST_S = 2.0  # after the end, for the one thing that a run is not to go without


@dataclass
class TimeBudget:
    """limit_s: of the run from ``started`` on. is_measured: whether original and result are timed at the end.

    check_s: what running a model on the verification samples takes; open_s: opening the model; exact_s: the exact
    passes so far, longest_s: the longest of them.
    """

    started: float = field(default_factory=clock)
    limit_s: float = math.inf
    is_measured: bool = True
    check_s: float = 0.0
    exact_s: float = 0.0
    longest_s: float = 0.0
    open_s: float = 0.0

    @property
    def end(self) -> float:
        """When the run must be through."""
        return self.started + self.limit_s

    @property
    def deadline(self) -> float:
        """When steps that search must be through, so that the rest of the run is by the end."""
        return self.end - CHECKS * self.check_s - STORING * self.exact_s - self._kept_s

    @property
    def has_time_for_exact(self) -> bool:
        """Whether one more exact pass may begin; where all of them take next to nothing, in any case."""
        until = self.end - EXACT_CHECKS * self.check_s - self.longest_s - self._kept_s
        return self.exact_s < LEAST_S or clock() <= until

    @property
    def _kept_s(self) -> float:
        """What is kept for measuring."""
        return min(self.measuring_s, MEASURED_SHARE * self.limit_s) if self.is_measured else 0.0

    def note_exact(self, seconds: float) -> None:
        """Note what an exact pass took."""
        self.exact_s += seconds
        self.longest_s = max(self.longest_s, seconds)

    @property
    def measuring_s(self) -> float:
        """What timing the original and the result takes."""
        return LATENCIES_S + CHILDREN * (CHILD_START_S + self.open_s)

    @property
    def last_moment(self) -> float:
        """Until when the one thing may go on without which there would be no result."""
        return max(self.end, clock() + LEAST_S)

    @property
    def spent_s(self) -> float:
        """What the run has taken so far."""
        return clock() - self.started

    @contextlib.contextmanager
    def noting(self, kind: str) -> Iterator[None]:
        """Note what work of a kind takes: ``check_s``, ``exact_s``, ``open_s``."""
        before = clock()
        yield
        setattr(self, kind, clock() - before)

    def allows(self, seconds: float) -> bool:
        """Whether work of so many seconds is through by the end."""
        return clock() + seconds <= self.end
