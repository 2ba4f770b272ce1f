"""Memory that was freed goes back to the system, and the garbage collector waits where it would find nothing.

glibc keeps what threads have freed, in a heap for each of them, in case they want it again: after a search has run a
model in threads that is some hundred MB, which other phases of a run do not find.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import sys
from collections.abc import Callable, Iterator
from typing import Any


def return_freed() -> None:
    """Have the C library give back what it keeps, where it can (glibc's malloc_trim). It takes milliseconds."""
    trim = _trim() if sys.platform == "linux" else None
    if trim is not None:
        trim(0)


@contextlib.contextmanager
def uncollected() -> Iterator[None]:
    """Have the garbage collector wait: it would look through all that is made again and again, half of the time."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def _trim() -> Callable[[int], Any] | None:
    found: Callable[[int], Any] | None = getattr(ctypes.CDLL(None), "malloc_trim", None)
    return found
