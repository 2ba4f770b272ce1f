"""What a run may cost and what it must reach: accuracy drop, bytes, latency, time.

Written as people write them: sizes ``4x`` (four times smaller), ``25%`` (of the original), ``5MB``;
latency ``0.5x``, ``50%``, ``5ms``; time ``10m``; drop ``0.01`` (the metric's unit), ``1%`` (relative),
``30dB``.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

from onnxcomp.errors import ParameterError

SIZE_UNITS = {
    "b": 1,
    "kb": 10**3,
    "mb": 10**6,
    "gb": 10**9,
    "kib": 2**10,
    "mib": 2**20,
    "gib": 2**30,
}
LATENCY_UNITS_MS = {"us": 1e-3, "µs": 1e-3, "ms": 1.0, "s": 1e3}
TIME_UNITS_S = {"s": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0}
LEAST_PLAIN_BYTES = 1024  # a size without a unit that is smaller was meant as a ratio, or in larger units
NO_LIMIT = "none"
LARGEST_DROP = 1e30  # what no limit is in numbers that JSON can hold
NUMBER = r"(\d+(?:\.\d*)?|\.\d+)(?:e(-?\d+))?"


@dataclass(frozen=True)
class Goal:
    """A size in bytes or a latency in ms to get down to: absolute, or a ratio (0 to 1) of the original's."""

    value: float
    is_ratio: bool

    def limit(self, original: float) -> float:
        """The largest value allowed, in the unit of ``original``."""
        return self.value * original if self.is_ratio else self.value


@dataclass(frozen=True)
class Drop:
    """How much worse the metric may get: in its unit, or as a share of what the original reaches."""

    value: float
    is_relative: bool = False

    def limit(self, original: float | None) -> float:
        """The largest drop allowed; ``original`` is the original's score, None for divergences.

        A divergence is measured from the original, which itself stands at zero: there 1% means 0.01.
        """
        return self.value * abs(original) if self.is_relative and original is not None else self.value


@dataclass(frozen=True, kw_only=True)
class Budget:
    """The limits of one optimization; what is None is not limited (the drop: the metric's own default)."""

    max_drop: Drop | None = None
    target_size: Goal | None = None
    target_latency: Goal | None = None
    time_budget_s: float | None = None

    @classmethod
    def parse(
        cls,
        *,
        max_drop: str | None = None,
        target_size: str | None = None,
        target_latency: str | None = None,
        time_budget: str | None = None,
    ) -> Budget:
        """The budget that the command line's words mean. Raises ParameterError naming the option."""
        return cls(
            max_drop=None if max_drop is None else parse_drop(max_drop),
            target_size=None if target_size is None else parse_size(target_size),
            target_latency=None if target_latency is None else parse_latency(target_latency),
            time_budget_s=None if time_budget is None else parse_time(time_budget),
        )


def parse_size(text: str) -> Goal:
    """``4x`` -> a quarter of the original; ``25%`` likewise; ``5MB``, ``5MiB``, ``120000`` -> bytes.

    A number without a unit counts bytes, from 1,024 on; a smaller one is refused.
    """
    value, unit = _number_and_unit(text, "target-size", "4x, 25% or 5MB")
    if not unit and value < LEAST_PLAIN_BYTES:
        units = ", ".join(f"{value:g}{each}" for each in ("x", "%", "kB", "MB"))
        raise ParameterError(f"target-size: must have a unit ({units}) where it is so small, got {text!r}")
    if unit == "x" and value >= 1:
        return Goal(1 / value, True)
    if unit == "%" and 0 < value <= 100:
        return Goal(value / 100, True)
    if unit in SIZE_UNITS or not unit:
        return Goal(value * SIZE_UNITS.get(unit, 1), False)
    raise _refused("target-size", "4x (times smaller), 25% (of the original) or 5MB", text)


def parse_latency(text: str) -> Goal:
    """``0.5x`` -> half of the original's time; ``50%`` likewise; ``5ms``, ``200us``, ``1s`` -> ms."""
    value, unit = _number_and_unit(text, "target-latency", "0.5x, 50% or 5ms")
    if unit == "x" and 0 < value <= 1:
        return Goal(value, True)
    if unit == "%" and 0 < value <= 100:
        return Goal(value / 100, True)
    if unit in LATENCY_UNITS_MS:
        return Goal(value * LATENCY_UNITS_MS[unit], False)
    raise _refused("target-latency", "0.5x or 50% (of the original's time) or 5ms", text)


def parse_time(text: str) -> float:
    """Seconds: ``90``, ``90s``, ``10m``, ``1h30m``."""
    parts = re.findall(r"([\d.]+)\s*([a-z]*)", text.strip().lower())
    seconds = 0.0
    for number, unit in parts:
        if not re.fullmatch(NUMBER, number) or (unit or "s") not in TIME_UNITS_S:
            raise _refused("time-budget", "a time such as 90s, 10m or 1h30m", text)
        seconds += float(number) * TIME_UNITS_S[unit or "s"]
    if not re.fullmatch(r"([\d.]+\s*[a-z]*\s*)+", text.strip().lower()) or not 0 < seconds < math.inf:
        raise _refused("time-budget", "a time such as 90s, 10m or 1h30m", text)
    return seconds


def parse_drop(text: str) -> Drop:
    """``0.01`` -> absolute in the metric's unit; ``1%`` -> relative; ``30dB`` -> noise to signal 0.001; ``none``."""
    if text.strip().lower() == NO_LIMIT:
        return Drop(LARGEST_DROP)
    value, unit = _number_and_unit(text, "max-drop", "0.01, 1% or 30dB")
    if unit == "%":
        return Drop(value / 100, True)
    if unit == "db":
        return Drop(10 ** (-value / 10))
    if not unit:
        return Drop(value)
    raise _refused("max-drop", "0.01 (the metric's unit), 1% (relative) or 30dB", text)


def _number_and_unit(text: str, option: str, example: str) -> tuple[float, str]:
    found = re.fullmatch(rf"\s*{NUMBER}\s*([a-zµ%]*)\s*", text.lower())
    if not found:
        raise _refused(option, f"such as {example}", text)
    mantissa, exponent, unit = found.groups()
    value = float(f"{mantissa}e{exponent or 0}")
    if not math.isfinite(value):
        raise _refused(option, f"a number that a float can hold, such as {example}", text)
    return value, unit


def _refused(option: str, allowed: str, text: str) -> ParameterError:
    return ParameterError(f"{option}: must be {allowed}, got {text!r}")
