"""How long what is under way will still take, as far as it is counted: by what its parts have taken so far.

Counts may be inside each other, weights inside candidates; what is told is of the one that takes longest.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from onnxcomp.clock import clock

SEEN_S = 5.0  # of a count, before it says anything
SEEN_PARTS = 2
TOLD_S = 5.0  # less is not worth telling


@dataclass
class Count:
    """A count under way: since when, and how far it has come."""

    total: int
    started: float
    done: int = 0
    at: float = 0.0  # when that was told

    def left_s(self, now: float) -> float:
        """Seconds until it is through, 0 where too little of it was seen."""
        if self.done < SEEN_PARTS or now - self.started < SEEN_S:
            return 0.0
        each = (self.at - self.started) / self.done
        return max(0.0, each * (self.total - self.done) - (now - self.at))


@dataclass
class TimeLeft:
    """The counts under way, the outermost first. seconds: the clock."""

    seconds: Callable[[], float] = clock
    counts: list[Count] = field(default_factory=list)

    def told(self, done: int, total: int) -> float:
        """Take in how far a count has come; gives the seconds left of the count that takes longest, 0 where unknown."""
        now = self.seconds()
        if total > 1:
            self._take_in(done, total, now)
        else:  # what comes after a count's last part is no part of it
            self.counts = [each for each in self.counts if each.done < each.total - 1]
        return max((each.left_s(now) for each in self.counts), default=0.0)

    def _take_in(self, done: int, total: int, now: float) -> None:
        known = next((at for at, each in enumerate(self.counts) if each.total == total and each.done <= done), None)
        if known is None:
            self.counts = [each for each in self.counts if each.total != total]
            self.counts.append(Count(total, now, done, now))
            return
        del self.counts[known + 1 :]  # what was inside the part before is through
        self.counts[known].done, self.counts[known].at = done, now


def in_words(seconds: float) -> str:
    """``75`` -> ``about 80 s left``; nothing where that is not worth telling."""
    if seconds < TOLD_S:
        return ""
    if seconds < 95:
        return f"about {max(10, round(seconds, -1)):.0f} s left"
    if seconds < 95 * 60:
        return f"about {round(seconds / 60)} min left"
    return f"about {seconds / 3600:.1f} h left"
