"""Numbers as people read them: bytes, ratios, milliseconds."""

from __future__ import annotations

import math

ROUNDING = 1e-12  # what sums in float64 leave of nothing
UNITS = (("GB", 10**9), ("MB", 10**6), ("kB", 10**3))
LITTLE = 0.005  # what makes less of a size is said in bytes
NOISE = 0.05  # what two measurements of a few microseconds differ by
LOAD_NOISE = 0.25  # what two loads of one model differ by, at least


def size(count: float) -> str:
    """``1234567`` -> ``1.23 MB``; decimal units, as ``--target-size`` takes them."""
    for unit, factor in UNITS:
        if count >= factor:
            return f"{significant(count / factor)} {unit}"
    return f"{count:.0f} B"


def milliseconds(value: float) -> str:
    """``0.0123`` -> ``0.0123 ms``, ``1500`` -> ``1.5 s``."""
    return f"{significant(value / 1e3)} s" if value >= 1e3 else f"{significant(value)} ms"


def seconds(value: float) -> str:
    """``75`` -> ``1 min 15 s``."""
    if value < 60:
        return f"{significant(value)} s"
    minutes, rest = divmod(round(value), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s"


def significant(value: float) -> str:
    """Three digits, without an exponent where that is readable: ``0.00123``, ``12.3``, ``1,234``."""
    if abs(value) < ROUNDING:
        return "0"
    if not 1e-4 <= abs(value) < 1e6:
        return f"{value:.2e}"
    if abs(value) >= 1000:
        return f"{value:,.0f}"
    return f"{value:.3g}"


def decibels(power: float) -> str:
    """Noise over signal as people name it: ``0.001`` -> ``30 dB``."""
    return f"{-10 * math.log10(power):.3g} dB" if power > 0 else "no noise"


def smaller(before: float, after: float) -> str:
    """How much smaller ``after`` is, in bytes: ``3.86x smaller``, ``1.2x larger``, ``385 B smaller``, ``same size``."""
    if not after or not before or after == before:
        return "same size"
    if abs(after - before) < LITTLE * before:
        return f"{size(abs(after - before))} {'smaller' if after < before else 'larger'}"
    return f"{before / after:.3g}x smaller" if after < before else f"{after / before:.3g}x larger"


def faster(ratio: float, noise: float = NOISE) -> str:
    """What a ratio of times comes to: ``1.9x faster``, ``1.2x SLOWER``; ``unchanged`` within the noise."""
    if 1 / (1 + noise) <= ratio <= 1 + noise or not ratio:
        return "unchanged"
    return f"{1 / ratio:.3g}x faster" if ratio < 1 else f"{ratio:.3g}x SLOWER"


def gained(before: float, after: float) -> str:
    """The bytes that a step takes away or adds: ``-470 kB``, ``+12 B``; nothing where there are none."""
    return f"{'-' if after < before else '+'}{size(abs(after - before))}" if after != before else ""


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


def is_of_samples(share: float, count: int) -> bool:
    """Whether a share can be one of ``count`` samples: of those that hold many winners each, such as the pixels of a
    segmentation, it seldom is."""
    return abs(share * count - round(share * count)) < 1e-6 * max(1, count)
