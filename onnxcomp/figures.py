"""Numbers as people read them: bytes, milliseconds, three digits."""

from __future__ import annotations

ROUNDING = 1e-12  # what sums in float64 leave of nothing
UNITS = (("GB", 10**9), ("MB", 10**6), ("kB", 10**3))


def size(count: float) -> str:
    """``1234567`` -> ``1.23 MB``; decimal units, as ``--target-size`` takes them."""
    for unit, factor in UNITS:
        if count >= factor:
            return f"{significant(count / factor)} {unit}"
    return f"{count:.0f} B"


def milliseconds(value: float) -> str:
    """``0.0123`` -> ``0.0123 ms``, ``1500`` -> ``1.5 s``."""
    return f"{significant(value / 1e3)} s" if value >= 1e3 else f"{significant(value)} ms"


def significant(value: float) -> str:
    """Three digits, without an exponent where that is readable: ``0.00123``, ``12.3``, ``1,234``."""
    if abs(value) < ROUNDING:
        return "0"
    if not 1e-4 <= abs(value) < 1e6:
        return f"{value:.2e}"
    if abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.3g}"
