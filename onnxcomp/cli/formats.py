"""Numbers as people read them, and what two of them come to."""

from __future__ import annotations

from onnxcomp.figures import milliseconds, significant, size

__all__ = ["count", "milliseconds", "seconds", "shortened", "significant", "size", "smaller"]


def seconds(value: float) -> str:
    """``75`` -> ``1 min 15 s``."""
    if value < 60:
        return f"{significant(value)} s"
    minutes, rest = divmod(round(value), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s"


def smaller(before: float, after: float) -> str:
    """How much smaller ``after`` is: ``3.86x smaller``, ``1.2x larger``, ``same size``."""
    if not after or not before or abs(after - before) < 0.005 * before:
        return "same size"
    return f"{before / after:.3g}x smaller" if after < before else f"{after / before:.3g}x larger"


def count(number: int, noun: str) -> str:
    """``1 weight``, ``2 weights``, ``3 batches``."""
    ending = "es" if noun.endswith(("s", "ch")) else "s"
    return f"{number:,} {noun}{'' if number == 1 else ending}"


def shortened(name: str, length: int = 48) -> str:
    """A long name without its middle; exporters write names of hundreds of letters."""
    if len(name) <= length:
        return name
    half = (length - 3) // 2
    return f"{name[:half]}...{name[-half:]}"
