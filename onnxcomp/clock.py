"""The clock that time budgets go by, in one place: whoever sets this one sets it for all."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from typing import Any


def clock() -> float:
    """Seconds since some moment, never less than before."""
    return time.monotonic()


@dataclass(frozen=True)
class Moment:
    """A moment on the clock, which stays the same when it is sent to another process or machine."""

    at: float = math.inf

    @property
    def is_past(self) -> bool:
        """Whether it has come."""
        return clock() > self.at

    def __reduce__(self) -> tuple[Any, ...]:
        return _by_epoch, (time.time() + self.at - clock(),)


def _by_epoch(seconds: float) -> Moment:
    return Moment(clock() + seconds - time.time())
