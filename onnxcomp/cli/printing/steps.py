"""What each step of a recipe did to the model, a line each: those that changed it, and those that were not used."""

from __future__ import annotations

import re
from collections.abc import Sequence

from onnxcomp import formats
from onnxcomp.receipt import Entry, Receipt, StepReport
from onnxcomp.registry import storing_pass

FEW_KINDS = 2  # of changes that a line names
NAMED = 3  # weights named in a line
RAW = re.compile(r"\w+ExecutionProvider cannot load the model: .*")
NOT_LOADED = "its result did not load in ONNX Runtime (please report it; -v shows ONNX Runtime's message)"

Row = tuple[str, str, str]


def changed(receipt: Receipt) -> list[Row]:
    """The steps that changed the model: name, bytes, what was done."""
    kept = [each for each in receipt.steps if each.decision.startswith("kept") and is_change(each)]
    return [(each.rewrite, formats.gained(each.bytes_before, each.bytes_after), _done(each)) for each in kept]


def is_change(report: StepReport) -> bool:
    """Whether the model is another after the step."""
    return bool(report.changed) or report.bytes_after != report.bytes_before


def unused(receipt: Receipt) -> list[tuple[str, str]]:
    """The steps that found something and of which nothing goes on: name, why not."""
    found = [each for each in receipt.steps if each.decision == "taken back"]
    return [(each.rewrite, f"not used: {plain(each.reason)}{_named(each.taken_back)}") for each in found]


def plain(reason: str) -> str:
    """A reason without ONNX Runtime's own words for a model that it does not load."""
    return RAW.sub(NOT_LOADED, reason)


def counted(receipt: Receipt) -> str:
    """``5 of 17 steps changed the model, 1 was not used, 11 had nothing to do (-v lists them all):``."""
    kept, left = len(changed(receipt)), len(unused(receipt))
    parts = [f"{kept} of {formats.count(len(receipt.steps), 'step')} changed the model"]
    if left:
        parts.append(f"{left} {'was' if left == 1 else 'were'} not used")
    idle = len(receipt.steps) - kept - left
    if idle:
        parts.append(f"{idle} had nothing to do")
    return f"{', '.join(parts)} (-v lists {'it' if idle == 1 else 'all'})"


def unstored(receipt: Receipt) -> str:
    """What saves the bytes of values that nothing in the recipe stores, "" where something does."""
    names = [
        each.rewrite
        for each in receipt.steps
        if each.decision.startswith("kept")
        and each.divergence is not None
        and each.bytes_after >= each.bytes_before
        and each.changed
    ]
    storing = storing_pass()
    if not names or any(each.rewrite == storing for each in receipt.steps):
        return ""
    known = ", ".join(dict.fromkeys(names))
    return f"{known} changed values only, which takes no bytes away: `onnxcomp run ... --store` stores them in fewer"


def _done(report: StepReport) -> str:
    """``6 weights in 2 to 4 bits``; what was taken back of it is named."""
    words = _what(report.changed)
    back = len(report.taken_back)
    if not back:
        return words
    names = [formats.shortened(each.name) for each in report.taken_back[:NAMED]]
    more = f" and {back - NAMED} more" if back > NAMED else ""
    return f"{words}; {back} taken back: {', '.join(names)}{more}"


def _what(entries: Sequence[Entry]) -> str:
    names = dict.fromkeys(each.name for each in entries)
    widths = [float(each.details["bits"]) for each in entries if isinstance(each.details.get("bits"), int | float)]
    if widths:
        low, high = f"{min(widths):.2g}", f"{max(widths):.2g}"
        return f"{formats.count(len(names), 'weight')} in {low if low == high else f'{low} to {high}'} bits"
    kinds = dict.fromkeys(each.what for each in entries)
    if len(entries) == 1:
        return f"{formats.shortened(entries[0].name)}: {entries[0].what}"
    if all("bytes_after" in each.details for each in entries):
        return f"{formats.count(len(names), 'weight')} stored in fewer bytes"
    if len(kinds) == 1:
        return f"{next(iter(kinds))}: {formats.count(len(names), 'place')}"
    return ", ".join(kinds) if len(kinds) <= FEW_KINDS else formats.count(len(names), "place")


def _named(entries: Sequence[Entry]) -> str:
    names = [formats.shortened(each.name) for each in entries[:NAMED]]
    more = f" and {len(entries) - NAMED} more" if len(entries) > NAMED else ""
    return f" ({', '.join(names)}{more})" if names else ""
