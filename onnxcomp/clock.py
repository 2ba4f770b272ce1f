"""The clock that time budgets go by, in one place: whoever sets this one sets it for all."""

from __future__ import annotations

import time


def clock() -> float:
    """Seconds since some moment, never less than before."""
    return time.monotonic()
