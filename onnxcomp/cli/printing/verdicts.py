"""A verdict in words: passed or not, how far from the original, and what so many samples can tell."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from onnxcomp import formats
from onnxcomp.budget import LARGEST_DROP

if TYPE_CHECKING:
    from onnxcomp.pipeline.reports.check import Check

NAMED = 3  # outputs named in a line


def verdict_words(verdict: Mapping[str, Any], *, metric: str) -> list[tuple[str, str]]:
    """Rows of a name and what is to be said about it, from ``Verdict.describe()``."""
    rows = [("verdict", verdict_line(verdict, metric=metric))]
    rows += judged(verdict)
    rows += agreement(verdict)
    rows += [("why", each) for each in verdict["reasons"]]
    return rows


def agreement(verdict: Mapping[str, Any]) -> list[tuple[str, str]]:
    """How many samples have the same winning class, where an output has classes or may have some."""
    share = verdict.get("agreement")
    if share is None:
        return []
    kinds = {each["kind"] for each in verdict["outputs"].values()}
    unsure = "were these class scores, " if kinds and "classes" not in kinds else ""
    winner = "the winning class would be" if unsure else "the winning class is"
    places = "" if formats.is_of_samples(share, int(verdict["samples"])) else "places in the "
    return [("agreement", f"{unsure}{winner} the same on {share:.1%} of the {places}samples")]


def judged(verdict: Mapping[str, Any], evidence: Mapping[str, Any] | None = None) -> list[tuple[str, str]]:
    """What each output was taken for and how far off it is by the measure that counts, the worst one first; then what
    shows nothing."""
    silence = (evidence or {}).get("silent", {})
    outputs = sorted(verdict["outputs"].items(), key=lambda each: -(each[1]["divergence"] or 0.0))
    outputs = [each for each in outputs if each[0] not in silence]
    words = [f"{name}: {each['kind']}, {_number(each['divergence'])} by {each['measure']}" for name, each in outputs]
    more = [f"{len(words) - NAMED} more"] if len(words) > NAMED else []
    silent = [f"{name}: {why}" for name, why in silence.items()]
    rows = [("judged as", "; ".join([*words[:NAMED], *more]))] if words else []
    return rows + ([("not judged", "; ".join(silent[:NAMED]))] if silent else [])


def verdict_line(verdict: Mapping[str, Any], *, metric: str) -> str:
    """``within the limit on 64 samples: divergence 0.011 (95% interval 0.008 to 0.014), limit 0.03``."""
    if not verdict.get("verified", True):
        return "not verified: nothing could be compared"
    if verdict["divergence"] is None:
        return f"failed on {formats.count(verdict['samples'], 'sample')}, whatever the limit"
    outcome = "within the limit" if verdict["passed"] else "OVER the limit"
    if verdict["passed"] and verdict["limit"] >= LARGEST_DROP:
        outcome = "measured"
    low = verdict["interval"][0]
    if not verdict["passed"] and verdict["divergence"] is not None and low is not None and low <= verdict["limit"]:
        outcome = "over the limit, by less than so few samples can tell,"
    samples = formats.count(verdict["samples"], "sample")
    return f"{outcome} on {samples}: {measured_words(verdict, metric=metric)}"


def measured_words(verdict: Mapping[str, Any], *, metric: str) -> str:
    """What was measured, with its interval and limit."""
    value, interval = verdict["divergence"], verdict["interval"]
    number = formats.decibels if metric == "sqnr" else formats.significant
    if not verdict.get("verified", True):
        return "nothing could be compared"
    if value is None:
        return "the model failed"
    if verdict.get("score") is not None:
        words = f"{metric} {verdict['original_score']:.4g} -> {verdict['score']:.4g}, a drop of {_number(value)}"
    else:
        words = f"{metric} {number(value)}"
    if interval[0] is not None and interval[0] != interval[1]:
        words += f" (95% interval {number(interval[0])} to {number(interval[1])})"
    held = verdict.get("beside")
    beside = f"; divergence {_number(held[0])}, held to {_number(held[1])} as well" if held else ""
    bound = "no limit" if verdict["limit"] >= LARGEST_DROP else f"limit {number(verdict['limit'])}"
    return f"{words}, {bound}{beside}"


def gate_line(found: Check) -> str:
    """``PASS small.onnx: 78,771 bytes, 13.5x smaller; divergence 0.012, limit 0.03, on 150 samples, as recorded``."""
    if not found.passed:
        return f"FAIL {found.model}: {'; '.join(found.problems)}"
    size = f"{found.model_bytes:,} bytes"
    if found.original_bytes is not None:
        size += f", {formats.smaller(found.original_bytes, found.model_bytes)}"
    samples = formats.count(int(found.verdict["samples"]), "sample")
    how = "measured now" if found.measured else "as recorded"
    words = f"{measured_words(found.verdict, metric=found.metric)}, on {samples}, {how}"
    notes = "".join(f" ({each})" for each in found.notes)
    return f"PASS {found.model}: {size}; {words}{notes}"


def _number(value: float | None) -> str:
    return "unknown" if value is None else formats.significant(value)
